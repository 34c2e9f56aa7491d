"""Two processes train as one: equal weights and metrics, one writer, and they stop and resume together."""

import multiprocessing
import os
import re
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cifarkit import seed_everything
from cifarkit.data import ImageDataset, Loader
from cifarkit.diffusion import NoiseSchedule
from cifarkit.models import Discriminator, Generator, UNet
from cifarkit.seeding import RngState
from cifarkit.training import (
    Callback,
    ClassificationTask,
    CSVLogger,
    ExponentialMovingAverage,
    GANHealth,
    ModelCheckpoint,
    NonFiniteLossError,
    Run,
    Task,
    Trainer,
    Update,
    distributed,
    load_checkpoint,
    run_folder,
)
from cifarkit.training.tasks.diffusion import DiffusionTask
from cifarkit.training.tasks.gan import GANTask

Pair = Callable[..., list[Any]]


def work(rank: int, port: int, connection: Any) -> None:
    """Do what the test asks for, as process ``rank`` of two that torchrun has started."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while (order := connection.recv()) is not None:
        scenario, arguments = order
        try:
            connection.send((scenario(*arguments), None))
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {error}"))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Return a function that runs another one in two processes, and returns what both return."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=work, args=(rank, port, pipes[rank][1]), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()

    def run(scenario: Callable[..., Any], *arguments: Any) -> list[Any]:
        for ours, _ in pipes:
            ours.send((scenario, arguments))
        assert all(ours.poll(120) for ours, _ in pipes), "the processes wait for each other"
        answers = [ours.recv() for ours, _ in pipes]
        assert not any(error for _, error in answers), [error for _, error in answers]
        return [answer for answer, _ in answers]

    yield run
    for (ours, _), process in zip(pipes, processes, strict=True):
        ours.send(None)
        process.join(20)


def loader(batch_size: int, count: int = 32, **options: Any) -> Loader:
    """Load pictures in batches of a size that all processes share."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pictures = ImageDataset(pixels, torch.randint(0, 3, (count,), generator=generator), ("a", "b", "c"))
    part = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    return Loader(
        pictures, batch_size // part["world_size"], **{"transform": signed, "shuffle": True, **part, **options}
    )


def signed(images: Tensor) -> Tensor:
    return images * 2 - 1


def classifier(dropout: float = 0.0, norm: bool = False) -> ClassificationTask:
    torch.manual_seed(distributed.rank())  # so that rank 1 would begin elsewhere
    middle = nn.BatchNorm2d(4) if norm else nn.Tanh()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.Dropout(dropout), nn.Flatten(), nn.Linear(144, 3))
    return ClassificationTask(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))


def diffusion() -> DiffusionTask:
    torch.manual_seed(0)
    model = UNet(base_channels=8, multipliers=(1, 2), num_classes=3)
    return DiffusionTask(model, torch.optim.Adam(model.parameters(), 1e-3), NoiseSchedule.cosine(50))


def gan() -> GANTask:
    shape: dict[str, Any] = {"base_channels": 4, "image_size": 8, "num_classes": 3}
    networks = Generator(latent_dim=8, **shape), Discriminator(**shape, spectral_norm=True)
    return GANTask(*networks, *(torch.optim.Adam(item.parameters(), 0.01) for item in networks))


def fit(task: Task, train: Any, val: Any = None, *callbacks: Callback, resume: Any = None, **settings: Any) -> Run:
    options = {"progress": False, "max_epochs": 2, "log_every_n_steps": 3, "callbacks": callbacks, **settings}
    return Trainer(**options).fit(task, train, val, resume=resume)


def outcome(run: Run) -> dict[str, Any]:
    clocks = ("seconds", "images_per_second")
    rows = [{name: value for name, value in row.items() if name not in clocks} for row in run.history]
    weights = {name: tensor.clone() for name, tensor in run.task.state_dict().items()}
    return {
        "weights": weights,
        "history": rows,
        "counters": [run.step, run.epoch, run.images],
        "why": run.stopped_because,
    }


def assert_equal_weights(results: list[Any]) -> None:
    first, second = (result["weights"] for result in results)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# The same result as one process.


def classify(batch_size: int = 8, count: int = 80, **settings: Any) -> dict[str, Any]:
    run = fit(classifier(), loader(batch_size, count), loader(16, 36, shuffle=False), **settings)
    assert not torch.distributed.is_initialized()
    return outcome(run)


def classify_uneven() -> dict[str, Any]:
    return classify(count=45)


def classify_accumulating() -> dict[str, Any]:
    return classify(count=45, accumulate_grad_batches=4, gradient_clip_val=0.1)


@pytest.mark.parametrize("scenario", [classify, classify_uneven, classify_accumulating])
def test_two_processes_are_one_with_the_doubled_batch(scenario: Callable[[], dict[str, Any]], pair: Pair) -> None:
    alone, results = scenario(), pair(scenario)
    assert_equal_weights(results)
    assert results[0]["history"] == results[1]["history"]
    torch.testing.assert_close(results[0]["weights"], alone["weights"], rtol=0, atol=1e-6)
    assert results[0]["counters"] == results[1]["counters"] == alone["counters"]
    for ours, theirs in zip(results[0]["history"], alone["history"], strict=True):
        assert ours["val_acc"] == theirs["val_acc"]
        assert ours == pytest.approx(theirs, rel=1e-5)


def classify_fp16() -> dict[str, Any]:
    return classify(count=45, precision="fp16-mixed", accumulate_grad_batches=3, gradient_clip_val=0.1)


def classify_bf16() -> dict[str, Any]:
    return classify(count=45, precision="bf16-mixed", accumulate_grad_batches=2)


def classify_compiled() -> dict[str, Any]:
    return classify(compile=True)


@pytest.mark.filterwarnings("ignore:fp16-mixed is meant for GPUs", "ignore:this processor has no bf16")
@pytest.mark.parametrize(
    ("scenario", "rounding"),
    [(classify_fp16, 2e-3), (classify_bf16, 2e-2), pytest.param(classify_compiled, 1e-5, marks=pytest.mark.slow)],
)
def test_in_other_precisions_and_compiled_too(
    scenario: Callable[[], dict[str, Any]], rounding: float, pair: Pair
) -> None:
    alone, results = scenario(), pair(scenario)
    assert_equal_weights(results)
    assert results[0]["history"] == results[1]["history"]
    assert results[0]["counters"] == results[1]["counters"] == alone["counters"]
    torch.testing.assert_close(results[0]["weights"], alone["weights"], rtol=0, atol=rounding)


class Overflowing(ClassificationTask):
    """Its second loss is far too large for fp16, on rank 1 alone."""

    calls = 0

    def updates(self, batch: Any) -> Iterator[Update]:
        self.calls += 1
        for update in super().updates(batch):
            factor = 1e30 if self.calls == 2 and distributed.rank() == 1 else 1.0
            yield Update(update.loss * factor, update.optimizer, {})


def overflow_on_one_rank() -> dict[str, Any]:
    plain = classifier()
    task = Overflowing(plain.model, torch.optim.SGD(plain.model.parameters(), 0.05))
    run = fit(task, loader(8), precision="fp16-mixed", max_epochs=1)
    return outcome(run) | {"scale": run.scalers["model"].get_scale(), "calls": task.calls}


def test_an_overflow_on_one_rank_skips_the_step_on_both(pair: Pair) -> None:
    results = pair(overflow_on_one_rank)
    assert_equal_weights(results)
    assert [(result["calls"], result["counters"][0]) for result in results] == [(4, 3), (4, 3)]
    assert results[0]["scale"] == results[1]["scale"] == 2**15


def count_exchanges(factor: int) -> tuple[int, list[int], int]:
    """Return the updates, the sizes of the exchanges of numbers, and how many there were of whole numbers."""
    exchanged: list[Tensor] = []
    plain = torch.distributed.all_reduce

    def counting(tensor: Tensor, *rest: Any) -> Any:
        exchanged.append(tensor.detach().clone())
        return plain(tensor, *rest)

    torch.distributed.all_reduce = counting
    try:
        run = fit(classifier(), loader(8, 64), max_epochs=1, accumulate_grad_batches=factor)
    finally:
        torch.distributed.all_reduce = plain
    floats = [tensor.numel() for tensor in exchanged if tensor.is_floating_point()]
    return run.step, floats, len(exchanged) - len(floats)


@pytest.mark.parametrize(("factor", "updates"), [(1, 8), (4, 2)])
def test_gradients_are_exchanged_once_an_update_however_many_batches_it_has(
    factor: int, updates: int, pair: Pair
) -> None:
    size = sum(parameter.numel() for parameter in classifier().parameters())
    for step, sizes, counts in pair(count_exchanges, factor):
        assert step == updates
        assert sizes == [size] * updates
        assert counts <= 2 * updates + 3  # how many samples, whether to go on; and at the ends of epoch and fit


# Every task.


def train_gan() -> dict[str, Any]:
    return outcome(fit(gan(), loader(8), None, ExponentialMovingAverage(0.5, batchnorm_samples=8)))


def train_diffusion() -> dict[str, Any]:
    return outcome(fit(diffusion(), loader(8), loader(8), accumulate_grad_batches=2))


@pytest.mark.parametrize("scenario", [train_gan, train_diffusion])
def test_generative_tasks_keep_equal_weights(scenario: Callable[[], dict[str, Any]], pair: Pair) -> None:
    results = pair(scenario)
    assert_equal_weights(results)
    assert results[0]["history"] == results[1]["history"]


class LoseStatistics(Callback):
    """Lose what BatchNorm knows, on rank 1 alone."""

    order = -30  # before GANHealth looks

    def on_step_end(self, run: Run) -> None:
        if run.step == 6 and distributed.rank() == 1:
            next(item for name, item in run.task.named_buffers() if name.endswith("running_var")).fill_(torch.inf)


def lose_statistics_on_one_rank() -> dict[str, Any]:
    health = GANHealth(8)
    return outcome(fit(gan(), loader(8), None, LoseStatistics(), health)) | {"returned": health.returned}


def test_what_one_rank_has_lost_takes_both_back(pair: Pair) -> None:
    results = pair(lose_statistics_on_one_rank)
    assert [result["returned"] for result in results] == [1, 1]
    assert_equal_weights(results)


class Sometimes(Task):
    """A task of which one part is used by rank 1 alone, and another by none."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(192, 1) for _ in range(3)])
        self.optimizers = {"model": torch.optim.SGD(self.parameters(), 0.1, weight_decay=0.1)}

    def updates(self, batch: Any) -> Iterator[Any]:
        images = batch[0].flatten(1)
        yield Update(sum(part(images).mean() for part in self.parts[: 1 + distributed.rank()]))


def use_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    task = Sometimes()
    before = [part.weight.clone() for part in task.parts]
    result = outcome(fit(task, loader(8)))
    return result | {"moved": [not torch.equal(part.weight, old) for part, old in zip(task.parts, before, strict=True)]}


def test_a_part_that_one_process_uses_learns_and_one_that_none_uses_stays(pair: Pair) -> None:
    results = pair(use_parts)
    assert_equal_weights(results)
    assert results[0]["moved"] == [True, True, False]


# Files and random states.


def train_and_save(folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    seed_everything(3)
    own = folder / f"rank{distributed.rank()}"  # of which only that of rank 0 may appear
    callbacks = [ExponentialMovingAverage(0.5), ModelCheckpoint(own), *([StopAt(stop_at)] if stop_at else [])]
    task = classifier(dropout=0.5, norm=True)
    return outcome(fit(task, loader(8), loader(8), *callbacks, resume="auto", loggers=[CSVLogger(own)])) | {
        "average": callbacks[0].averaged.state_dict(),
        "random": RngState.capture().torch_cpu,
    }


class StopAt(Callback):
    """Stop, signal or break rank 1 alone."""

    def __init__(self, step: int, how: str = "stop") -> None:
        self.step, self.how = step, how

    def on_step_end(self, run: Run) -> None:
        if run.step == self.step and distributed.rank() == 1:
            if self.how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                run.stop("far enough")


def test_rank_0_writes_and_both_resume_with_their_random_states(pair: Pair, tmp_path: Path) -> None:
    whole = pair(train_and_save, tmp_path / "whole")
    assert_equal_weights(whole)
    torch.testing.assert_close(whole[0]["average"], whole[1]["average"], rtol=0, atol=0)
    assert not torch.equal(whole[0]["random"], whole[1]["random"])
    stopped = pair(train_and_save, tmp_path / "parts", 3)
    assert [result["counters"][0] for result in stopped] == [3, 3]
    assert [result["why"] for result in stopped] == ["far enough", "far enough"]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["rank0"]
    resumed = pair(train_and_save, tmp_path / "parts")
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one["random"], other["random"])
        torch.testing.assert_close(other["weights"], one["weights"], rtol=0, atol=1e-6)  # averaged once more: BatchNorm


def resume(path: Path) -> dict[str, Any]:
    return outcome(fit(classifier(), loader(8), None, resume=path, max_epochs=3))


def save_midway(folder: Path) -> int:
    return fit(classifier(), loader(8), None, StopAt(6), ModelCheckpoint(folder), max_epochs=3).step


def test_a_checkpoint_of_two_processes_resumes_with_one_and_back(pair: Pair, tmp_path: Path) -> None:
    whole = outcome(fit(classifier(), loader(8), max_epochs=3))
    assert pair(save_midway, tmp_path) == [6, 6]
    torch.testing.assert_close(resume(tmp_path)["weights"], whole["weights"], rtol=0, atol=1e-6)
    fit(classifier(), loader(8), None, ModelCheckpoint(tmp_path / "one"), max_steps=5)
    results = pair(resume, tmp_path / "one")
    assert_equal_weights(results)
    torch.testing.assert_close(results[0]["weights"], whole["weights"], rtol=0, atol=1e-6)


def make_folder(root: Path) -> Path:
    return run_folder("try", root)


def test_the_processes_of_a_run_share_its_folder(pair: Pair, tmp_path: Path) -> None:
    first, second = pair(make_folder, tmp_path)
    assert first == second
    assert len(list(tmp_path.iterdir())) == 1


# Stopping together, and mistakes.


def get_signal(folder: Path) -> Any:
    run_step: list[int] = []

    class Remember(Callback):
        def on_interrupt(self, run: Run) -> None:
            run_step.append(run.step)

    try:
        fit(classifier(), loader(8), None, StopAt(3, "signal"), ModelCheckpoint(folder), Remember())
    except SystemExit as left:
        return left.code, run_step
    return None


def test_a_signal_to_one_process_saves_once_and_stops_both(pair: Pair, tmp_path: Path) -> None:
    assert pair(get_signal, tmp_path) == [(143, [3])] * 2
    state = load_checkpoint(tmp_path / "last.pt")
    assert state["run"]["step"] == 3
    assert len(state["other_ranks"]) == 1


def failure_of(mistake: str, folder: Path) -> str:
    """Return the message of what a fit raises."""
    callbacks, rank = [ModelCheckpoint(folder)], distributed.rank()
    train: Any = loader(8)
    if mistake == "unsharded":
        train = loader(8, rank=0, world_size=1)
    elif mistake == "plain":
        train = DataLoader(TensorDataset(train._images.float(), train._labels), 4)
    elif mistake == "callback":
        callbacks = callbacks[rank:]
    elif mistake == "nan" and rank == 1:
        train = list(train)
        train[1][0].fill_(torch.nan)
    elif mistake == "damaged":
        folder = folder / f"{rank}"
        folder.mkdir()
        (folder / "last.pt").write_bytes(b"nothing")
    try:
        fit(classifier(), train, None, *callbacks, resume=folder if mistake == "damaged" else None)
    except (ValueError, RuntimeError, NonFiniteLossError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing failed"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("unsharded", r"ValueError: train_loader has rank=0, world_size=1, but this is process . of 2: give Loader\("),
        ("plain", r"ValueError: train_loader has rank=0, world_size=1, but .* DataLoader a DistributedSampler"),
        (
            "callback",
            r"ValueError: callbacks must be the same on every rank; got \['ModelCheckpoint'\], \[\] on ranks 0 to 1",
        ),
        ("nan", r"NonFiniteLossError: train_loss is nan at step 1 .*rate 0.05"),
        ("damaged", r"ValueError: .* is damaged|RuntimeError: rank 0 failed: ValueError: .*0/last.pt is damaged"),
    ],
)
def test_both_processes_say_what_is_wrong(mistake: str, message: str, pair: Pair, tmp_path: Path) -> None:
    for answer in pair(failure_of, mistake, tmp_path):
        assert re.match(message, answer), answer


def test_one_process_refuses_the_part_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="train_loader has rank=1, world_size=2, but this is process 0 of 1"):
        fit(classifier(), loader(8, rank=1, world_size=2))
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (distributed.rank(), distributed.world_size()) == (2, 4)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distributed.own_device("auto") == "auto"
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.own_device("auto") == distributed.own_device(torch.device("cuda")) == "cuda:1"
    assert distributed.own_device("cuda:3") == "cuda:3"
