"""Does every training survive what happens to machines? Counts of kills, full disks, damaged files and odd clocks.

    python benchmarks/crash_campaign.py            # 300 kills, 50 SIGTERM, 20 full disks, 200 damaged files
    python benchmarks/crash_campaign.py --tiny     # to see that it runs, and how long all of it would take here

A classifier, a GAN and a diffusion model are trained with SWA, EMA, accumulation and in turns bf16 and fp16, on one
thread. Each case disturbs one training, lets it go on with ``resume="auto"``, and compares weights, averages,
optimizers and scalers bit for bit with those of an undisturbed training. Finished cases are kept in a work file, and
the next call goes on behind them; one of another version of PyTorch or another seed is refused. A kill may come before
the first save: then there is nothing to resume, the training begins anew, and the report says how often that was.

The half second of grace after SIGTERM wants a machine that does little else.

A full disk is a limit on the size of files (RLIMIT_FSIZE), or the real one of a small file system given by --full, such
as that of ``mount -t tmpfs -o size=64m tmpfs FOLDER``. A folder that is read-only is one by its permissions, or, where
the user is root, whom they do not bind, by an error in place of each new file. Needs fork, so Linux or macOS.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from report import Report, Table, arguments, destination
from torch import Tensor, nn

from cifarkit import Callback, ClassificationTask, Run, Task, Trainer, load_checkpoint, schedules
from cifarkit.data import ImageDataset, Loader
from cifarkit.diffusion import NoiseSchedule
from cifarkit.files import write_atomically
from cifarkit.models import Discriminator, Generator, UNet
from cifarkit.training import (
    DiffusionTask,
    ExponentialMovingAverage,
    GANTask,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from cifarkit.training.averaging import WeightAveraging
from cifarkit.training.checkpoint import write_checkpoint
from cifarkit.transforms import Compose, Normalize, RandomCrop

Row = dict[str, Any]
Hurt = Callable[[int, Iterator[Row]], None]  # the number of a process, and what it tells as it goes
COUNTS = {"kill -9": 300, "SIGTERM": 50, "full disk": 20, "read-only folder": 20, "damaged file": 200}
COUNTS |= {"clock jumps": 20}
TINY = {"kill -9": 3, "SIGTERM": 2, "full disk": 2, "read-only folder": 2, "damaged file": 10, "clock jumps": 2}
SIDE, EPOCHS, IMAGES, BATCH, ACCUMULATE = 8, 3, 48, 6, 2
UPDATES = EPOCHS * IMAGES // (BATCH * ACCUMULATE)
DAMAGES = 5  # of one file, one after the other
GRACE_SECONDS = 0.5  # from SIGTERM to the end of the process, beside one update
ATTEMPTS = 20  # draws of an instant until one falls into the training


# The trainings.


def classifier() -> Task:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(8 * 36, 3))
    model = nn.Sequential(*layers)
    return ClassificationTask(model, torch.optim.AdamW(model.parameters(), 0.01), label_smoothing=0.1)


def gan() -> Task:
    generator = Generator(latent_dim=8, base_channels=8, num_classes=3, image_size=SIDE)
    discriminator = Discriminator(base_channels=8, num_classes=3, image_size=SIDE)
    optimizers = [torch.optim.Adam(each.parameters(), 2e-3, (0.5, 0.999)) for each in (generator, discriminator)]
    return GANTask(generator, discriminator, *optimizers)


def diffusion() -> Task:
    model = UNet(base_channels=32, multipliers=(1, 1), num_classes=3, blocks=1, attention_levels=(1,), dropout=0.1)
    return DiffusionTask(model, torch.optim.Adam(model.parameters(), 1e-3), NoiseSchedule.cosine(100))


TASKS: dict[str, Callable[[], Task]] = {"classifier": classifier, "GAN": gan, "diffusion": diffusion}
PRECISIONS = ("bf16-mixed", "fp16-mixed")
KINDS = [(task, PRECISIONS[turn % 2]) for turn, task in enumerate([*TASKS, *TASKS])]  # of training: each once


def pictures() -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (IMAGES,), generator=generator)
    pixels = torch.randint(0, 80, (IMAGES, 3, SIDE, SIDE), generator=generator) + 80 * labels[:, None, None, None]
    return ImageDataset(pixels.byte(), labels, ("a", "b", "c"))


class Witness(Callback):
    """Tell the parent process how the training began and what its longest update took."""

    order = -20

    def __init__(self, folder: Path, tell: Callable[..., None]) -> None:
        self.existed, self.tell = (folder / "last.pt").exists(), tell
        self.longest, self.last = 0.0, time.monotonic()

    def on_fit_start(self, run: Run) -> None:
        self.tell(existed=self.existed, resumed=run.resumed)
        self.last = time.monotonic()

    def on_step_end(self, run: Run) -> None:
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        self.tell(step=run.step)

    def on_interrupt(self, run: Run) -> None:
        self.tell(longest_step=self.longest)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run: Run) -> None:
        if run.step == self.step:
            run.stop("far enough")


def train(
    kind: tuple[str, str], folder: Path, tell: Callable[..., None], *, every: int = 1, stop_at: int | None = None
) -> None:
    """Train, or go on with what is in the folder, and write what came out of a whole training."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    random.seed(os.getpid())  # so that whatever a resumed run repeats is from its checkpoint
    torch.manual_seed(0 if not (folder / "last.pt").exists() else os.getpid())
    name, precision = kind
    task, data = TASKS[name](), pictures()
    averages = [StochasticWeightAveraging(1e-3, start=0.3), ExponentialMovingAverage(0.9)]
    monitor = "val_acc_ema" if name == "classifier" else None
    callbacks = [*averages, ModelCheckpoint(folder, monitor, every_n_steps=every), Witness(folder, tell)]
    callbacks += [] if stop_at is None else [StopAt(stop_at)]
    loader = Loader(data, BATCH, shuffle=True, transform=Compose([RandomCrop(SIDE, 1), Normalize(0.5, 0.5)]))
    settings: Row = {"accumulate_grad_batches": ACCUMULATE, "precision": precision}
    settings |= {"schedule": schedules.cosine(0.2), "device": "cpu", "progress": False}
    trainer = Trainer(max_epochs=EPOCHS, callbacks=callbacks, **settings)
    run = trainer.fit(task, loader, Loader(data, BATCH, transform=Normalize(0.5, 0.5)), resume="auto")
    if stop_at is None:
        write_checkpoint(outcome(run), folder / "outcome.pt")


def outcome(run: Run) -> Row:
    return {
        "task": run.task.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in run.task.optimizers.items()},
        "scalers": {name: scaler.state_dict() for name, scaler in run.scalers.items()},
        "averages": [callback.state_dict() for callback in run.callbacks if isinstance(callback, WeightAveraging)],
        "counters": [run.step, run.epoch, run.images],
    }


def same(first: Any, second: Any) -> bool:
    """Compare nested states; tensors bit for bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


# Processes.


@dataclass
class End:
    """How a child ended: the signal that ended it or 0, its exit code, and all that it told."""

    signal: int
    code: int
    told: Row = field(default_factory=dict)


def in_child(work: Callable[[Callable[..., None]], None], hurt: Hurt | None = None) -> End:
    """Do the work in a forked process, which has PyTorch loaded already; hurt is given its number and what it tells."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_run_child(work, lambda **facts: os.write(writer, json.dumps(facts).encode() + b"\n")))
    os.close(writer)
    end = End(0, -1)

    def listen(pipe: Any) -> Iterator[Row]:
        for line in pipe:
            end.told |= json.loads(line)
            yield end.told

    with os.fdopen(reader, "rb") as pipe:
        if hurt is not None:
            hurt(child, listen(pipe))
        for _ in listen(pipe):
            pass
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        end.signal = os.WTERMSIG(status)
    else:
        end.code = os.WEXITSTATUS(status)
    return end


def _run_child(work: Callable[[Callable[..., None]], None], tell: Callable[..., Any]) -> int:
    try:
        work(tell)
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException as error:
        tell(error=type(error).__name__, message=str(error))
        return 1
    return 0


@dataclass
class Case:
    """One training to disturb."""

    fault: str
    kind: tuple[str, str]  # task and precision
    index: int
    folder: Path
    undisturbed: Path
    seconds: float  # of the undisturbed training
    full: Path | None
    draws: random.Random

    def begin(self) -> End:
        """Train up to a random update, and leave its last.pt."""
        step = self.draws.randint(1, UPDATES - 1)
        return in_child(lambda tell: train(self.kind, self.folder, tell, stop_at=step))

    def go_on(self, hurt: Hurt | None = None) -> End:
        every = 1 + self.index % 3
        return in_child(lambda tell: train(self.kind, self.folder, tell, every=every), hurt)

    def verdict(self, ends: Sequence[End], **facts: Any) -> Row:
        """Go on to the end, and say whether everything was resumed and came out the same."""
        last = self.go_on()
        starts = [end.told for end in (*ends[1:], last) if "existed" in end.told]  # those after a disturbance
        silent = sum(told["existed"] and not told["resumed"] for told in starts)
        path = self.folder / "outcome.pt"
        identical = path.exists() and same(load_checkpoint(path), load_checkpoint(self.undisturbed))
        own = {"last.pt", "best.pt", "outcome.pt"}
        left = sorted(path.name for path in self.folder.iterdir() if path.name not in own)
        row = {"ended": last.code == 0, "identical": identical, "silent": silent, "left_behind": left}
        row |= {"starts": len(starts), "resumed": sum(told["existed"] and told["resumed"] for told in starts)}
        row["anew"] = sum(not told["existed"] for told in starts)  # for want of anything to resume
        return {"ok": last.code == 0 and identical and not silent and not left} | row | facts | {"end": last.told}


# The faults.


def signal_at_random(case: Case, number: int, updates: int) -> tuple[End, float]:
    """Go on, and send a signal after so many updates and a random part of the next; return the end and its seconds."""
    seconds, pause = 0.0, case.draws.uniform(0, 1.5 * case.seconds / UPDATES)

    def hurt(child: int, tales: Iterator[Row]) -> None:
        nonlocal seconds
        for _ in zip(range(updates + 1), tales, strict=False):  # the first is told when the training begins
            pass
        time.sleep(pause)
        start = time.monotonic()
        os.kill(child, number)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        seconds = time.monotonic() - start

    return case.go_on(hurt), seconds


def kill(case: Case) -> Row:
    """Kill up to three times in a row."""
    ends: list[End] = []
    for _ in range(ATTEMPTS):
        for most in (UPDATES - 2, 2, 2)[: case.draws.randint(1, 3)]:
            end, _ = signal_at_random(case, signal.SIGKILL, case.draws.randint(-1, most))
            if end.signal != signal.SIGKILL:
                break
            ends.append(end)
        if ends:
            break
        shutil.rmtree(case.folder, ignore_errors=True)  # it was through before the signal came
    return case.verdict(ends, count=len(ends))


def terminate(case: Case) -> Row:
    """Ask once to end, at a random instant after the beginning, and look at the clock."""
    for _ in range(ATTEMPTS):
        end, seconds = signal_at_random(case, signal.SIGTERM, case.draws.randint(0, UPDATES - 2))
        if end.code != 0:
            break
        shutil.rmtree(case.folder)
    saved = (case.folder / "last.pt").exists()
    late = max(0.0, seconds - end.told.get("longest_step", 0.0))
    row = case.verdict([end], count=1, late_seconds=late, exit_code=end.code)
    return row | {"ok": row["ok"] and end.code == 128 + signal.SIGTERM and saved}


def fill_disk(case: Case) -> Row:
    """Go on with no room for the next checkpoint."""
    begun = case.begin()
    before = (case.folder / "last.pt").read_bytes()
    room = case.draws.randrange(len(before))

    def work(tell: Callable[..., None]) -> None:
        if case.full is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        else:
            _occupy(case.full, room)
        train(case.kind, case.folder, tell)

    return _verdict_of_refusal(case, begun, in_child(work), before)


def _occupy(place: Path, room: int) -> None:
    """Leave so many bytes free on a small file system."""
    with (place / "filler").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(place).free - room)))


def forbid_writing(case: Case) -> Row:
    """Go on in a folder that may only be read."""
    begun, before = case.begin(), (case.folder / "last.pt").read_bytes()
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if set(mode) & set("wxa+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *rest, **options)

    def work(tell: Callable[..., None]) -> None:
        if os.geteuid() == 0:
            Path.open = refuse  # type: ignore[method-assign,assignment]
        train(case.kind, case.folder, tell)

    case.folder.chmod(0o555)
    end = in_child(work)
    case.folder.chmod(0o755)
    return _verdict_of_refusal(case, begun, end, before)


def _verdict_of_refusal(case: Case, begun: End, end: End, before: bytes) -> Row:
    """A save that failed must have said where, and have left the old checkpoint and nothing else."""
    if case.full is not None:
        (case.full / "filler").unlink(missing_ok=True)
    clear = end.told.get("error") in ("OSError", "PermissionError") and str(case.folder) in end.told["message"]
    kept = (case.folder / "last.pt").read_bytes() == before
    row = case.verdict([begun, end], count=1, clear=clear, message=end.told.get("message"))
    return row | {"ok": row["ok"] and clear and kept}


def damage(case: Case) -> Row:
    """Cut last.pt at a random place or change up to eight of its bytes, some times; then put the good file back."""
    begun, path = case.begin(), case.folder / "last.pt"
    good, clear, silent, messages = path.read_bytes(), 0, 0, []
    for turn in range(DAMAGES):
        path.write_bytes(_spoilt(good, case.draws, cut=turn % 2 == 0))
        told = case.go_on().told
        messages.append(told.get("message"))
        clear += told.get("error") == "ValueError" and f"{path} is damaged" in told["message"]
        silent += "resumed" in told  # it got as far as to train
    path.write_bytes(good)
    row = case.verdict([begun], count=DAMAGES, clear=clear, message=messages[-1])
    return row | {"silent": row["silent"] + silent, "ok": row["ok"] and clear == DAMAGES and not silent}


def _spoilt(content: bytes, draws: random.Random, *, cut: bool) -> bytes:
    if cut:
        return content[: draws.randrange(len(content))]
    changed = bytearray(content)
    for position in draws.sample(range(len(content)), draws.randint(1, 8)):
        changed[position] ^= draws.randint(1, 255)
    return bytes(changed)


def shift_clocks(case: Case) -> Row:
    """Let the wall clock jump both ways and the others forward, up to a day at some of their readings."""
    begun, seed = case.begin(), case.draws.random()

    def work(tell: Callable[..., None]) -> None:
        draws = random.Random(seed)

        def jumping(clock: Callable[[], float], low: float) -> Callable[[], float]:
            ahead = [0.0]

            def read() -> float:
                ahead[0] += draws.uniform(low, 86_400) if draws.random() < 0.05 else 0.0
                return clock() + ahead[0]

            return read

        time.time = jumping(time.time, -86_400)
        time.monotonic, time.perf_counter = jumping(time.monotonic, 0), jumping(time.perf_counter, 0)
        train(case.kind, case.folder, tell)

    return case.verdict([begun, in_child(work)], count=1)


FAULTS: dict[str, Callable[[Case], Row]] = {
    "kill -9": kill,
    "SIGTERM": terminate,
    "full disk": fill_disk,
    "read-only folder": forbid_writing,
    "damaged file": damage,
    "clock jumps": shift_clocks,
}


# The campaign.


class Campaign:
    """Cases one after the other, each noted in the work file when it is done.

    Args:
        place: folder of the work file and of the trainings.
        full: folder on a small file system for the full disks, or None.
    """

    def __init__(self, place: Path, full: Path | None, seed: int) -> None:
        self.place, self.full, self.seed = place, full, seed
        self.notes = place / "work.jsonl"
        place.mkdir(parents=True, exist_ok=True)
        self.rows = self._finished()
        self.seconds = {"-".join(kind): self.undisturbed(kind) for kind in KINDS}

    def _finished(self) -> list[Row]:
        """Read the work file, without the line that a killed campaign has not ended."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        rows: list[Row] = [json.loads(line) for line in lines if line.endswith("}")]
        for row in rows:
            if (row["torch"], row["seed"]) != (torch.__version__, self.seed):
                found = f"PyTorch {row['torch']} and seed {row['seed']}"
                raise SystemExit(f"{self.notes} is of {found}; give another --work")
        write_atomically("".join(json.dumps(row) + "\n" for row in rows).encode(), self.notes)
        return rows

    def undisturbed(self, kind: tuple[str, str]) -> float:
        """Train in peace, twice, and return the seconds; what comes out must be the same both times."""
        outcomes = []
        for turn in ("first", "second"):
            folder = self.place / "undisturbed" / torch.__version__ / f"{'-'.join(kind)}-{turn}"
            shutil.rmtree(folder, ignore_errors=True)
            start = time.monotonic()
            end = in_child(lambda tell: train(kind, folder, tell))  # noqa: B023  (called at once)
            if end.code:
                raise SystemExit(f"{kind} does not train even in peace: {end.told}")
            outcomes.append(load_checkpoint(folder / "outcome.pt"))
        if not same(*outcomes):
            raise SystemExit(f"{kind} gives two outcomes in peace; nothing can be compared on this machine")
        return time.monotonic() - start

    def run(self, fault: str, wanted: int) -> None:
        """Do the cases of one fault that are missing, tasks and precisions in turns, until so many are counted."""
        index = 0
        while self.count(fault) < wanted or index < len(TASKS):
            if not any((row["fault"], row["index"]) == (fault, index) for row in self.rows):
                self.do(fault, KINDS[index % len(KINDS)], index)
            index += 1

    def do(self, fault: str, kind: tuple[str, str], index: int) -> None:
        place = self.full if self.full is not None and fault == "full disk" else self.place
        name = "-".join(kind)
        folder = place / f"{fault}-{name}-{index}".replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        peace = self.place / "undisturbed" / torch.__version__ / f"{name}-first" / "outcome.pt"
        draws = random.Random(f"{self.seed} {fault} {index}")
        case = Case(fault, kind, index, folder, peace, self.seconds[name], self.full, draws)
        row = {"fault": fault, "task": kind[0], "precision": kind[1], "index": index, "seed": self.seed}
        start = time.monotonic()
        row |= {"torch": torch.__version__} | FAULTS[fault](case)
        row["seconds"] = time.monotonic() - start
        self.rows.append(row)
        with self.notes.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if row["ok"]:
            shutil.rmtree(folder)  # a failed one is kept to be looked at
        print(f"{fault} {index}, {name}: {'ok' if row['ok'] else f'FAILED {row}'}", flush=True)

    def seconds_of(self, counts: dict[str, int]) -> float:
        """Return how long so many disturbances take, judged by those that are done."""
        took = {fault: sum(row["seconds"] for row in self.of(fault)) / self.count(fault) for fault in counts}
        return sum(took[fault] * counts[fault] for fault in counts)

    def of(self, fault: str) -> list[Row]:
        return [row for row in self.rows if row["fault"] == fault]

    def count(self, fault: str) -> int:
        return sum(row["count"] for row in self.of(fault))


def table(campaign: Campaign, counts: dict[str, int]) -> Table:
    rows = []
    for fault in counts:
        done = campaign.of(fault)
        by_task = Counter(row["task"] for row in done)
        shares = ", ".join(f"{name} {by_task[name]}" for name in TASKS)
        clear = [row["clear"] for row in done if "clear" in row]
        told = f"{sum(clear)} of {campaign.count(fault)}" if clear else "none to give"
        starts = [str(sum(row[name] for row in done)) for name in ("starts", "resumed", "anew", "silent")]
        identical = f"{sum(row['identical'] for row in done)} of {len(done)}"
        survived = sum(row["count"] for row in done if row["ended"] and row["identical"] and not row["silent"])
        went_on = f"{survived} of {campaign.count(fault)}"
        rows.append([fault, str(campaign.count(fault)), went_on, shares, *starts, identical, told])
    columns = ["fault", "times", "went on to the same end", "trainings", "starts after it", "resumed"]
    columns += ["with nothing saved yet", "silently anew", "trainings bit-identical in the end", "clear error"]
    return Table("Disturbed trainings and what became of them", columns, rows)


def without_places(row: Row, places: dict[Path, str]) -> Row:
    """Return a row whose message names no folder of this machine."""
    message = row.get("message") or ""
    for place, name in places.items():
        message = message.replace(str(place), name)
    return row | ({"message": message} if message else {})


def main() -> None:
    parser = arguments(__doc__, "crash_campaign")
    place = Path(__file__).resolve().parents[1] / "runs"
    parser.add_argument("--work", type=Path, help="folder of the work file; runs/crash_campaign, with --tiny another")
    parser.add_argument("--full", type=Path, help="folder on a small file system, which is filled up; else a limit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = TINY if options.tiny else COUNTS
    work = options.work or place / ("crash_campaign_tiny" if options.tiny else "crash_campaign")
    campaign = Campaign(work.resolve(), options.full and options.full.resolve(), options.seed)
    for fault, wanted in counts.items():
        campaign.run(fault, wanted)
    if options.tiny:
        print(f"All of it would take about {campaign.seconds_of(COUNTS) / 60:.0f} minutes at this pace.")
    settings = {"seed": options.seed, "counts": counts, "epochs": EPOCHS, "images": IMAGES, "full": bool(options.full)}
    report = Report("crash_campaign", settings | {"precision": PRECISIONS}, tables=[table(campaign, counts)])
    places = {campaign.place: "work", **({} if campaign.full is None else {campaign.full: "small-disk"})}
    report.figures = {
        "cases": [without_places(row, places) for row in campaign.rows],
        "seconds_undisturbed": campaign.seconds,
    }
    for fault in counts:
        done = campaign.of(fault)
        good = sum(row["ok"] for row in done)
        report.aim(f"{fault}: every training as if undisturbed", f"{good} of {len(done)}", good == len(done))
    resumed = sum(row["resumed"] for row in campaign.of("kill -9"))
    if not options.tiny:
        report.aim("kill -9: at least 200 resumed from a checkpoint", f"{resumed}", resumed >= 200)
    late = [row["late_seconds"] for row in campaign.of("SIGTERM")]
    lost = not all(target["met"] for target in report.targets)
    punctual = max(late) <= GRACE_SECONDS
    report.aim("SIGTERM: gone within one update + 0.5 s", f"at most {max(late):.2f} s beside it", punctual)
    report.publish(destination(options, "crash_campaign"))
    raise SystemExit(0 if not lost and (punctual or options.tiny) else 1)  # a busy machine may be late in a short try


if __name__ == "__main__":
    main()
