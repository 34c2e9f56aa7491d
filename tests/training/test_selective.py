"""SelectiveTask: which images reach which network, in what order."""

import pytest
import torch
from torch import Tensor, nn

from cifarkit import data
from cifarkit.models import SpeedNet
from cifarkit.training import ClassificationTask, SelectiveTask, Trainer, muon_groups
from cifarkit.training.muon import Muon


class Brightness(nn.Module):
    """A proxy whose logit of class 0 is the brightness: dark images of class 0 are hard."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((len(images), torch.is_grad_enabled()))
        bright = self.scale * images.mean((1, 2, 3))
        return torch.stack([bright, torch.zeros_like(bright)], 1)


class Listener(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.seen = nn.Linear(3, 2), []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.mean((1, 2, 3)))
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


def make_task(**options: float) -> SelectiveTask:
    model, proxy = Listener(), Brightness()
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (model, proxy)]
    return SelectiveTask(model, optimizers[0], proxy, optimizers[1], **options)


def brightnesses(count: int) -> Tensor:
    return torch.arange(count).float()[:, None, None, None].expand(count, 3, 4, 4)


def test_the_model_sees_the_images_that_are_hardest_for_the_proxy() -> None:
    task = make_task(keep=0.25)
    list(task.updates((brightnesses(8), torch.zeros(8, dtype=torch.int64))))
    assert task.model.seen[0].tolist() == [0, 1]


def test_the_proxy_learns_from_its_share_and_judges_the_rest() -> None:
    task = make_task(proxy_share=0.25)
    list(task.updates((brightnesses(8), torch.zeros(8, dtype=torch.int64))))
    assert task.proxy.seen == [(2, True), (6, False)]


def test_the_proxy_is_updated_first() -> None:
    task = make_task(proxy_share=1.0)
    updates = list(task.updates((brightnesses(4), torch.zeros(4, dtype=torch.int64))))
    assert [update.optimizer for update in updates] == ["proxy", "model"]
    updates[0].loss.backward()
    assert task.proxy.scale.grad is not None
    assert task.model.head.weight.grad is None


def test_keeping_everything_is_plain_classification() -> None:
    task, labels = make_task(keep=1.0), torch.arange(8) % 2
    plain = ClassificationTask(task.model, task.optimizers["model"])
    _, selective = task.updates((brightnesses(8), labels))
    (expected,) = plain.updates((brightnesses(8), labels))
    torch.testing.assert_close(selective.loss, expected.loss)
    torch.testing.assert_close(selective.metrics["acc"], expected.metrics["acc"])


def test_before_the_start_the_model_sees_the_first_images() -> None:
    task = make_task(keep=0.25, start=2)
    for _ in range(3):
        list(task.updates((brightnesses(8).flip(0), torch.zeros(8, dtype=torch.int64))))
    assert [images.tolist() for images in task.model.seen] == [[7, 6], [7, 6], [0, 1]]


def test_a_checkpoint_knows_how_many_batches_were_seen() -> None:
    task, other = make_task(start=2), make_task(start=2)
    list(task.updates((brightnesses(8), torch.zeros(8, dtype=torch.int64))))
    other.load_state_dict(task.state_dict())
    assert other.batches_seen == 1


def test_vectors_will_do() -> None:
    model, proxy = nn.Linear(6, 2), nn.Linear(6, 2)
    task = SelectiveTask(
        model, torch.optim.SGD(model.parameters(), 0.1), proxy, torch.optim.SGD(proxy.parameters(), 0.1), keep=0.5
    )
    assert len(list(task.updates((torch.randn(8, 6), torch.zeros(8, dtype=torch.int64))))) == 2


def test_a_single_image_will_do() -> None:
    assert len(list(make_task(keep=0.01, proxy_share=0.01).updates((brightnesses(1), torch.zeros(1).long())))) == 2


def test_the_trainer_trains_both_and_reports_both() -> None:
    nets = [SpeedNet(widths=(8, 8, 8)) for _ in range(2)]
    optimizers = [Muon(muon_groups(net)) for net in nets]
    task = SelectiveTask(nets[0], optimizers[0], nets[1], optimizers[1], label_smoothing=0.1)
    before = [net.head.weight.clone() for net in nets]
    trainer = Trainer(max_epochs=1, progress=False, accumulate_grad_batches=2)
    run = trainer.fit(task, data.Loader(data.shapes(80), 20), data.Loader(data.shapes(20), 20))
    assert {"train_loss", "train_acc", "train_proxy_loss", "train_proxy_acc", "val_acc"} <= set(run.history[0])
    assert not any(torch.equal(old, net.head.weight) for old, net in zip(before, nets, strict=True))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="keep=0 must be"):
        make_task(keep=0)
    with pytest.raises(ValueError, match="proxy_share=2 must be"):
        make_task(proxy_share=2)
    model = Listener()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match="a proxy network and its optimizer, both built; got str and SGD"):
        SelectiveTask(model, optimizer, "small", optimizer)  # type: ignore[arg-type]


def test_what_tells_real_from_generated_is_left_out() -> None:
    task = make_task(keep=0.5)
    generated = torch.tensor([False] * 6 + [True] * 2)  # of which none is kept
    *_, last = task.updates((brightnesses(8), torch.zeros(8, dtype=torch.int64), generated))
    assert task.model.seen[0].tolist() == [0, 1, 2, 3]
    assert {*last.metrics} == {"acc"}


def test_a_label_that_the_proxy_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="labels run from 0 to 7, but the model tells 2 classes apart"):
        list(make_task().updates((brightnesses(8), torch.arange(8))))
    with pytest.raises(TypeError, match="labels must be int64"):
        list(make_task().updates((brightnesses(8), torch.zeros(8))))
