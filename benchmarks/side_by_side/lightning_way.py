"""A ResNet-18 on CIFAR-10 with Lightning, as its tutorial does it: SGD, one cycle, crops and mirror images.

pip install lightning torchvision
python lightning_way.py
"""

import os

import lightning
import torch
import torchvision
from cifar10 import CIFAR10
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.functional import accuracy
from torchvision import transforms


def create_model():
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


class Images(lightning.LightningDataModule):
    def __init__(self, folder="data", batch_size=64, size=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)):
        super().__init__()
        normalize = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        changes = [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip()]
        self.train_set = CIFAR10(folder, train=True, transform=transforms.Compose([*changes, *normalize]))
        self.val_set = CIFAR10(folder, train=False, transform=transforms.Compose(normalize))
        self.batch_size = batch_size
        self.workers = max(1, os.cpu_count() // 2)

    def train_dataloader(self):
        settings = {"num_workers": self.workers, "persistent_workers": True}
        return DataLoader(self.train_set, self.batch_size, shuffle=True, drop_last=True, **settings)

    def val_dataloader(self):
        return DataLoader(self.val_set, 256, num_workers=self.workers, persistent_workers=True)


class Classifier(lightning.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.model = create_model()

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_acc", accuracy(logits, labels, task="multiclass", num_classes=10), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9, weight_decay=5e-4)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, steps, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(epochs=30, precision="32-true", seed=7, callbacks=(), **images):
    lightning.seed_everything(seed, workers=True)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        precision=precision,
        callbacks=[LearningRateMonitor("step"), *callbacks],
        logger=CSVLogger("runs"),
    )
    trainer.fit(Classifier(lr=0.1), Images(**images))
    print(trainer.callback_metrics["val_acc"].item())


if __name__ == "__main__":
    main()
