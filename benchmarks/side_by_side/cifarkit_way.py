"""The same training with cifarkit: ResNet-18, SGD, one cycle, crops and mirror images.

pip install cifarkit
python cifarkit_way.py
"""

from pathlib import Path

import torch

import cifarkit
from cifarkit import data, models, schedules, transforms


def main(folder="data", epochs=30, batch_size=64, precision="fp32", seed=7, callbacks=()):
    cifarkit.seed_everything(seed)
    train_set, val_set = data.load_npz(Path(folder, "train.npz")), data.load_npz(Path(folder, "val.npz"))
    normalize = transforms.Normalize(*train_set.mean_std())
    crop = transforms.RandomCrop(train_set.image_shape[1], padding=4, mode="constant")
    augment = transforms.Compose([crop, transforms.RandomHorizontalFlip(), normalize])
    model = models.resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    run_folder = cifarkit.run_folder("resnet18")
    trainer = cifarkit.Trainer(
        max_epochs=epochs,
        precision=precision,
        schedule=schedules.one_cycle(),
        callbacks=[cifarkit.ModelCheckpoint(run_folder), *callbacks],
        loggers=[cifarkit.CSVLogger(run_folder)],
    )
    run = trainer.fit(
        cifarkit.ClassificationTask(model, optimizer),
        data.Loader(train_set, batch_size, shuffle=True, drop_last=True, transform=augment, seed=seed),
        data.Loader(val_set, 256, transform=normalize),
    )
    print(run.metrics["val_acc"])


if __name__ == "__main__":
    main()
