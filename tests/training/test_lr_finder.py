"""lr_find: an even ladder, everything put back however it ends, and a suggestion only where there is one."""

import copy
import hashlib
import itertools
import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.data import ImageDataset, Loader
from cifarkit.seeding import Draws, RngState
from cifarkit.training import (
    ClassificationTask,
    ModelCheckpoint,
    Task,
    Trainer,
    Update,
    freeze,
    lr_find,
)
from cifarkit.training.lr_finder import LearningRateSweep, geometric_ladder, suggest

QUIET: Any = {"progress": False}


class TinyNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(16, 3)
        )


def jitter(images: Tensor, draws: Draws) -> Tensor:
    return images + 0.1 * draws.normal(*images.shape[1:])


def loader(count: int = 40) -> Loader:
    """Images whose brightness tells the class, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (count,), generator=generator)
    pixels = torch.randint(0, 80, (count, 3, 4, 4), generator=generator) + 80 * labels[:, None, None, None]
    return Loader(ImageDataset(pixels.byte(), labels, ("a", "b", "c")), 8, transform=jitter, shuffle=True)


def make_task(**options: Any) -> ClassificationTask:
    torch.manual_seed(0)
    model = TinyNet()
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[5].parameters(), "lr": 0.1}]
    return ClassificationTask(model, torch.optim.SGD(groups, momentum=0.9), **options)


def feed(digest: Any, value: Any) -> None:
    """Take a nested state into a hash."""
    if isinstance(value, Tensor):
        digest.update(value.detach().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in value:
            digest.update(str(key).encode())
            feed(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            feed(digest, item)
    else:
        digest.update(repr(value).encode())


def state_hash(task: Task, batches: Any) -> str:
    """Hash everything a fit could change."""
    parameters, digest = list(task.parameters()), hashlib.sha256()
    flags = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    optimizers = {name: optimizer.state_dict() for name, optimizer in task.optimizers.items()}
    position = batches.state_dict() if isinstance(batches, Loader) else None
    modes = [module.training for module in task.modules()]
    feed(digest, [task.state_dict(), flags, optimizers, position, modes, RngState.capture().state_dict()])
    return digest.hexdigest()


# The ladder.


@pytest.mark.parametrize(("low", "high", "steps"), [(1e-6, 10, 100), (1e-4, 1e-1, 10), (0.5, 0.6, 37)])
def test_the_ladder_is_geometric(low: float, high: float, steps: int) -> None:
    ladder = geometric_ladder(low, high, steps)
    assert (ladder[0], len(ladder)) == (low, steps)
    assert ladder[-1] == pytest.approx(high, rel=1e-12)
    ratios = [after / before for before, after in itertools.pairwise(ladder)]
    assert ratios == pytest.approx([(high / low) ** (1 / (steps - 1))] * (steps - 1), rel=1e-9)


def test_the_sweep_climbs_the_ladder_and_groups_keep_their_ratio() -> None:
    rates: list[list[float]] = []

    task = make_task()
    optimizer = task.optimizers["model"]
    optimizer.register_step_pre_hook(lambda own, *_: rates.append([group["lr"] for group in own.param_groups]))
    sweep = lr_find(task, loader(), min_lr=1e-5, max_lr=1e-2, steps=30, trainer=Trainer(max_epochs=1, **QUIET))
    assert sweep.learning_rates == pytest.approx(geometric_ladder(1e-5, 1e-2, 30), rel=1e-9)
    assert [first for first, _ in rates] == pytest.approx(sweep.learning_rates, rel=1e-9)
    assert [second / first for first, second in rates] == pytest.approx([5.0] * 30, rel=1e-9)
    assert len(sweep.losses) == 30


def test_losses_are_those_of_the_same_training_by_hand() -> None:
    sweep = lr_find(make_task(), loader(), min_lr=1e-3, max_lr=1, steps=12)
    task, losses = make_task(), []
    model, optimizer = task.model.train(), task.optimizers["model"]
    endless = itertools.chain.from_iterable(itertools.repeat(loader()))
    for rate, (images, labels) in zip(geometric_ladder(1e-3, 1, 12), endless, strict=False):
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, 5 * rate
        loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sweep.losses == pytest.approx(losses, rel=1e-6)


# Nothing is left behind.


class Trap(ClassificationTask):
    """Raise, or send a signal, at the fifth update."""

    def __init__(self, spring: Callable[[], None], **options: Any) -> None:
        torch.manual_seed(0)
        model = TinyNet()
        super().__init__(model, torch.optim.Adam(model.parameters(), 0.1), **options)
        self.spring, self.updates_seen = spring, 0

    def updates(self, batch: Any) -> Iterator[Update]:
        self.updates_seen += 1
        random.random(), np.random.rand(), torch.rand(1)
        if self.updates_seen == 5:
            self.spring()
        yield from super().updates(batch)


def fail(error: BaseException) -> Callable[[], None]:
    def spring() -> None:
        raise error

    return spring


def nothing() -> None:
    pass


def prepare(task: Task, batches: Loader, training_first: bool) -> None:
    """Leave traces of former work everywhere that a sweep could wipe out."""
    if training_first:
        Trainer(max_steps=7, **QUIET).fit(task, batches)
    task.train()
    freeze(task.get_submodule("model.0"))
    task.get_submodule("model.3").eval()
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(iter(batches))


@pytest.mark.parametrize("training_first", [False, True])
@pytest.mark.parametrize(
    ("spring", "leaves_with"),
    [
        (nothing, None),
        (fail(ZeroDivisionError()), ZeroDivisionError),
        (fail(KeyboardInterrupt()), KeyboardInterrupt),
        (lambda: os.kill(os.getpid(), signal.SIGINT), SystemExit),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit),
    ],
    ids=["ends", "raises", "interrupted", "SIGINT", "SIGTERM"],
)
def test_everything_is_as_before(spring: Any, leaves_with: type[BaseException] | None, training_first: bool) -> None:
    task, batches = Trap(nothing), loader()
    prepare(task, batches, training_first)
    task.spring, task.updates_seen = spring, 0
    before, handlers = state_hash(task, batches), [signal.getsignal(number) for number in (2, 15)]
    if leaves_with is None:
        lr_find(task, batches, steps=10)
    else:
        with pytest.raises(leaves_with):
            lr_find(task, batches, steps=10)
    assert task.updates_seen >= 5
    assert state_hash(task, batches) == before
    assert [signal.getsignal(number) for number in (2, 15)] == handlers


@pytest.mark.filterwarnings("ignore:this processor has no bf16", "ignore:fp16-mixed is meant for GPUs")
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"precision": "fp16-mixed", "gradient_clip_val": 1.0},
        {"max_steps": 1, "accumulate_grad_batches": {0: 2, 1: 4}, "gradient_clip_val": 0.1},
    ],
    ids=str,
)
def test_everything_is_as_before_with_every_trick(options: dict[str, Any], tmp_path: Path) -> None:
    task, batches = make_task(), loader()
    prepare(task, batches, training_first=True)
    checkpoint = ModelCheckpoint(tmp_path / "run", every_n_steps=1)
    trainer = Trainer(**({"max_epochs": 3} | options), callbacks=[checkpoint], **QUIET)
    settings, before = copy.copy(vars(trainer)), state_hash(task, batches)
    sweep = lr_find(task, batches, min_lr=1e-4, max_lr=1e-1, steps=20, trainer=trainer)
    assert state_hash(task, batches) == before
    assert vars(trainer) == settings
    assert not (tmp_path / "run").exists()
    assert sweep.learning_rates == pytest.approx(geometric_ladder(1e-4, 1e-1, 20), rel=1e-9)


def test_a_fit_after_a_sweep_is_the_fit_without_it() -> None:
    def train(sweep: bool, look: bool) -> Task:
        task, batches = make_task(), loader()
        torch.manual_seed(3)
        if look:
            next(iter(batches))
        if sweep:
            lr_find(task, batches, steps=12)
        return Trainer(max_epochs=2, **QUIET).fit(task, batches).task

    plain = train(sweep=False, look=False).state_dict()
    for look in (False, True):
        assert all(torch.equal(plain[name], tensor) for name, tensor in train(True, look).state_dict().items())


def test_a_second_sweep_is_the_first_again() -> None:
    task, batches = make_task(), loader()
    assert lr_find(task, batches, steps=15) == lr_find(task, batches, steps=15)


def test_batches_in_a_list_or_a_torch_loader_will_do() -> None:
    data = [(images, int(label)) for images, labels in loader() for images, label in zip(images, labels, strict=True)]
    batches = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)  # type: ignore[arg-type,var-annotated]
    for source in (list(loader()), batches):
        task = make_task()
        before = state_hash(task, source)
        assert len(lr_find(task, source, min_lr=1e-5, max_lr=1e-3, steps=13).losses) == 13
        assert state_hash(task, source) == before


# What the curve says.


def curve(steps: int = 100, centre: float = -2.5, steepness: float = 3.0) -> tuple[list[float], list[float], float]:
    """A loss that falls like a sigmoid in log10 of the rate, steepest at its centre."""
    rates = geometric_ladder(1e-6, 10, steps)
    losses = [2.3 - 1.5 / (1 + math.exp(-steepness * (math.log10(rate) - centre))) for rate in rates]
    return rates, losses, 10**centre


@pytest.mark.parametrize("centre", [-4.0, -2.5, -1.3])
@pytest.mark.parametrize("steps", [40, 100, 300])
def test_the_suggestion_is_the_middle_of_the_steepest_descent(centre: float, steps: int) -> None:
    rates, losses, steepest = curve(steps, centre)
    suggestion, verdict = suggest(rates, losses)
    assert suggestion is not None
    assert abs(math.log10(suggestion / steepest)) < 7 / (steps - 1)  # a rung of the ladder
    assert verdict == f"suggested learning rate {suggestion:.3g}, the middle of the steepest descent"


@pytest.mark.parametrize("offset", [0.0, -5.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_neither_offset_nor_scale_nor_an_explosion_moves_it(offset: float, scale: float) -> None:
    rates, losses, _ = curve()
    exploding = [loss + math.exp(0.9 * (index - 88)) if index > 70 else loss for index, loss in enumerate(losses)]
    changed = [scale * loss + offset for loss in exploding]
    assert suggest(rates, changed)[0] == pytest.approx(suggest(rates, losses)[0], rel=0.05)


def test_noise_moves_it_little() -> None:
    rates, losses, steepest = curve()
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.05, len(losses))
        suggestion, _ = suggest(rates, [loss + float(error) for loss, error in zip(losses, noise, strict=True)])
        assert suggestion is not None
        assert abs(math.log10(suggestion / steepest)) < 0.45


@pytest.mark.parametrize("steps", [20, 100, 400])
def test_flat_noise_has_no_clear_descent(steps: int) -> None:
    rates, draws = geometric_ladder(1e-6, 10, steps), np.random.default_rng(0)
    curves = [list(map(float, draws.normal(2.3, 0.1, steps))) for _ in range(60)]
    verdicts = [suggest(rates, losses) for losses in curves]
    fooled = sum(suggestion is not None for suggestion, _ in verdicts)
    assert fooled <= 5  # about one in 50 by chance
    assert (
        None,
        "no suggestion: the loss has no clear descent; widen the sweep, use more steps or bigger batches",
    ) in (verdicts)


@pytest.mark.parametrize("losses", [[2.3] * 50, list(range(50))], ids=["constant", "rising"])
def test_a_curve_that_never_falls_has_no_suggestion(losses: list[float]) -> None:
    assert suggest(geometric_ladder(1e-6, 10, 50), losses)[0] is None


def test_an_early_explosion_is_told() -> None:
    sweep = LearningRateSweep([0.1] * 4, [2.3, 2.2, 9.0, 50.0])
    assert sweep.suggestion is None
    assert sweep.verdict == "no suggestion: the loss exploded after 4 updates; start from a lower min_lr"


def test_a_net_that_learns_gets_a_rate_that_learns() -> None:
    sweep = lr_find(make_task(), loader(200), steps=80)
    assert sweep.suggestion is not None
    assert 1e-4 < sweep.suggestion < 1
    assert len(sweep.losses) <= 80

    def loss_after(rate: float) -> float:
        task = make_task()
        task.optimizers["model"].param_groups[0]["lr"] = rate
        task.optimizers["model"].param_groups[1]["lr"] = 5 * rate
        return float(Trainer(max_epochs=2, **QUIET).fit(task, loader(200)).history[-1]["train_loss"])

    assert loss_after(sweep.suggestion) < min(loss_after(sweep.suggestion / 100), 1.0)


class Bowl(Task):
    """A quadratic whose loss may lie below zero, or turn NaN above a rate."""

    def __init__(self, floor: float = 0.0, nan_from: float = math.inf) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 3.0))
        self.optimizers = {"model": torch.optim.SGD([self.weight], 1e-6)}
        self.floor, self.nan_from = floor, nan_from

    def updates(self, batch: Any) -> Iterator[Update]:
        rate = self.optimizers["model"].param_groups[0]["lr"]  # of the update before
        loss = self.weight.square().sum() / 2 + self.floor
        yield Update(loss * math.nan if rate > self.nan_from else loss)


BATCH = [[torch.zeros(1, 1)]]


@pytest.mark.parametrize("floor", [0.0, -100.0, -17.5])
def test_losses_below_zero_do_not_matter(floor: float) -> None:
    sweep, above = (lr_find(Bowl(level), BATCH, min_lr=1e-5, max_lr=100) for level in (floor, 0.0))
    assert sweep.suggestion == pytest.approx(above.suggestion, rel=0.1)
    assert sweep.suggestion is not None
    assert 0.005 < sweep.suggestion < 1
    assert len(sweep.losses) < 100  # beyond a rate of 2 it explodes, and the sweep ends


def test_nan_ends_the_sweep() -> None:
    sweep = lr_find(Bowl(nan_from=0.0099), BATCH, min_lr=1e-5, max_lr=10, steps=61)
    assert sweep.learning_rates == pytest.approx(geometric_ladder(1e-5, 10, 61)[:31])  # up to 0.01
    assert len(sweep.losses) == 31
    assert all(math.isfinite(loss) for loss in sweep.losses)
    early = lr_find(Bowl(nan_from=1e-5), BATCH, min_lr=1e-5, max_lr=10)
    assert early.verdict == "no suggestion: the loss exploded after 2 updates; start from a lower min_lr"


def test_a_sweep_draws_itself(tmp_path: Path) -> None:
    rates, losses, _ = curve()
    LearningRateSweep(rates, losses).plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.0}, "min_lr=0.0 and max_lr=10.0 must satisfy 0 < min_lr < max_lr"),
        ({"min_lr": 1.0, "max_lr": 0.1}, "min_lr=1.0 and max_lr=0.1 must satisfy"),
        ({"steps": 9}, "steps=9 must be at least 10"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lr_find(Bowl(), BATCH, **options)


def test_a_task_that_cannot_be_swept_is_named() -> None:
    task = Bowl()
    task.optimizers["other"] = torch.optim.SGD([task.weight], 0.1)
    with pytest.raises(ValueError, match=r"lr_find sweeps one optimizer; this task has \['model', 'other'\]"):
        lr_find(task, BATCH)
    task = Bowl()
    task.optimizers["model"].param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match=r"the first parameter group has lr=0\.0; give a positive one"):
        lr_find(task, BATCH)
    with pytest.raises(ValueError, match="train_loader has no batches"):
        lr_find(Bowl(), [])


def test_buffers_that_no_checkpoint_holds_are_put_back_too() -> None:
    class Counting(Trap):
        def __init__(self) -> None:
            super().__init__(nothing)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def updates(self, batch: Any) -> Any:
            self.calls += 1
            yield from super().updates(batch)

    task = Counting()
    lr_find(task, loader(), steps=10, trainer=Trainer(max_steps=10, **QUIET))
    assert task.calls == 0
    with pytest.raises(TypeError, match="min_lr"):
        lr_find(task, loader(), min_lr="a")  # type: ignore[arg-type]
