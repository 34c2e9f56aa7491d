"""estimate_seconds: what it counts, with a clock of our own, and that it leaves no trace."""

import copy
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from cifarkit import data
from cifarkit.training import ClassificationTask, Trainer, estimate, estimate_seconds, trainer
from cifarkit.transforms import ByEpoch, RandomCrop


class Clock:
    """Time that passes only in the network: a microsecond a pixel."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.head = clock, nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        self.clock.now += images.numel() / images.shape[1] * 1e-6
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)
    return clock


def make_task(clock: Clock) -> ClassificationTask:
    model = Timed(clock)
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))


def test_every_size_of_image_is_timed_and_counted(clock: Clock) -> None:
    loader = data.Loader(data.shapes(60), 20, transform=ByEpoch({0: RandomCrop(24, 0), 2: RandomCrop(32, 2)}))
    seconds = estimate_seconds(Trainer(max_epochs=5, progress=False), make_task(clock), loader, steps=4)
    assert seconds == pytest.approx(60 * (2 * 24**2 + 3 * 32**2) * 1e-6)


def test_updates_of_several_batches_and_a_last_step_count(clock: Clock) -> None:
    loader = data.Loader(data.shapes(60), 10)
    trainer = Trainer(max_epochs=2, max_steps=8, accumulate_grad_batches={0: 1, 1: 3}, progress=False)
    seconds = estimate_seconds(trainer, make_task(clock), loader, steps=6)
    assert seconds == pytest.approx((6 * 10 + 2 * 30) * 32**2 * 1e-6)


def test_a_short_epoch_is_timed_again_and_again(clock: Clock) -> None:
    loader = data.Loader(data.shapes(20), 20, transform=ByEpoch({0: RandomCrop(24, 0), 4: RandomCrop(32, 2)}))
    seconds = estimate_seconds(Trainer(max_epochs=8, progress=False), make_task(clock), loader, steps=20)
    assert seconds == pytest.approx(20 * 4 * (24**2 + 32**2) * 1e-6)


def test_epochs_are_timed_without_end(clock: Clock) -> None:
    loader = data.Loader(data.shapes(60), 10, transform=ByEpoch({0: RandomCrop(24, 0), 2: RandomCrop(32, 2)}))
    trainer = Trainer(max_steps=1, accumulate_grad_batches={0: 1, 1: 3}, progress=False)
    epochs = list(islice(estimate.timed_epochs(trainer, make_task(clock), loader, 2), 4))
    assert [updates for updates, _ in epochs] == [6, 2, 2, 2]
    expected = [10 * 24**2, 30 * 24**2, 30 * 32**2, 30 * 32**2]
    assert [seconds for _, seconds in epochs] == pytest.approx([pixels * 1e-6 for pixels in expected])


def test_networks_are_not_compiled_afterwards(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(clock)
    monkeypatch.setattr(
        trainer, "compile_networks", lambda task: setattr(task.model, "_compiled_call_impl", task.model.forward)
    )
    estimate_seconds(
        Trainer(max_epochs=1, compile=True, progress=False), task, data.Loader(data.shapes(20), 10), steps=1
    )
    assert task.model._compiled_call_impl is None


def test_nothing_is_left_behind(clock: Clock) -> None:
    task, loader = make_task(clock), data.Loader(data.shapes(60), 20, shuffle=True)
    before, position = copy.deepcopy(task.state_dict()), loader.state_dict()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    estimate_seconds(Trainer(max_epochs=2, progress=False), task, loader, steps=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())
    assert (loader.state_dict(), task.training) == (position, True)
    assert not task.optimizers["model"].state
    assert torch.equal(torch.rand(3), expected)


class Counting:
    """A loader that counts epochs and makes no copies of itself."""

    epoch = 7

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from [(torch.rand(4, 3, 8 + self.epoch, 8 + self.epoch), torch.zeros(4, dtype=torch.int64))] * 2


def test_a_loader_that_makes_no_copies_keeps_its_epoch(clock: Clock) -> None:
    loader = Counting()
    seconds = estimate_seconds(Trainer(max_epochs=2, progress=False), make_task(clock), loader, steps=2)
    assert seconds == pytest.approx(2 * 4 * (8**2 + 9**2) * 1e-6)
    assert loader.epoch == 7


def test_a_rate_that_is_far_too_high_is_no_matter(clock: Clock) -> None:
    task = make_task(clock)
    task.optimizers["model"] = torch.optim.SGD(task.parameters(), 1e38)
    loader = data.Loader(data.shapes(60), 20)
    assert estimate_seconds(Trainer(max_epochs=1, progress=False), task, loader, steps=9) > 0


def test_a_torch_dataloader_will_do(clock: Clock) -> None:
    loader = torch.utils.data.DataLoader(data.shapes(40), batch_size=20)
    floats = [(images.float(), labels) for images, labels in loader]
    seconds = estimate_seconds(Trainer(max_epochs=3, progress=False), make_task(clock), floats, steps=2)
    assert seconds == pytest.approx(3 * 40 * 32**2 * 1e-6)


def test_a_loader_without_a_length_is_named(clock: Clock) -> None:
    with pytest.raises(TypeError, match="loader must be an iterable of batches with a length; got generator"):
        estimate_seconds(Trainer(max_epochs=1), make_task(clock), iter(data.Loader(data.shapes(20), 10)))


def test_steps_are_checked(clock: Clock) -> None:
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        estimate_seconds(Trainer(max_epochs=1), make_task(clock), data.Loader(data.shapes(20), 10), steps=0)
