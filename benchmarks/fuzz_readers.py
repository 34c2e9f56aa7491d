"""Feed the file readers with damaged files that are bred for reaching new lines of code, for a bounded time.

    python benchmarks/fuzz_readers.py                 # ten minutes, shared by the readers
    python benchmarks/fuzz_readers.py --tiny          # seconds, to see that it runs
    python benchmarks/fuzz_readers.py --seconds 3600 --seed 1
    python benchmarks/fuzz_readers.py --only npz      # one reader; no figures are written

Every reader must take a file or refuse it by ValueError. Anything else is a finding: another exception, a crash of
the process, or a file that takes more than five seconds of the processor; the file is kept in --findings. A file that
made a reader reach a pair of lines in a row that none reached before is kept and changed further. Needs fork, so Linux
or macOS.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import Report, Table, arguments, destination
from torch import nn

from cifarkit.commands import shared
from cifarkit.data import ImageDataset, Loader, load_npz, read_images
from cifarkit.generation import folder as export
from cifarkit.reporting.reading import read_run
from cifarkit.sharing import read_config
from cifarkit.training import (
    ClassificationTask,
    EarlyStopping,
    ExponentialMovingAverage,
    ModelCheckpoint,
    Trainer,
    load_checkpoint,
    load_weights,
    save_weights,
)

WATCHED = ("cifarkit", "zipfile", "_format_impl", "npyio", "_npyio_impl", "_weights_only_unpickler", "/PIL/", "json")
SLOW_SECONDS, MEMORY_BYTES, LONGEST = 5, 8 * 2**30, 1 << 20
TELLING = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"-1", b"9" * 20, b"../", b"[" * 50]


@dataclass
class Reader:
    """A reader of files, a good file of it, and how the part to damage is packed."""

    name: str
    suffix: str
    read: Callable[[Path], Any]
    seed: bytes
    pack: Callable[[bytes], bytes] = lambda content: content
    file: str = "settings"  # how it is called, if the reader looks for that in a folder


@dataclass
class Tally:
    files: int = 0
    taken: int = 0
    pairs: int = 0
    findings: list[str] = field(default_factory=list)


def npz(images: bytes | None = None) -> bytes:
    """Pack arrays as numpy.savez does, with the bytes of the images' entry replaced."""
    arrays = {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.arange(2), "classes": np.array(["a", "b"])}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.save(part, array)
            archive.writestr(f"{name}.npy", part.getvalue() if name != "images" or images is None else images)
    return buffer.getvalue()


def checkpoint() -> bytes:
    """Pack a state as torch.save does."""
    packed = io.BytesIO()
    torch.save({"weight": torch.zeros(2, 2), "run": {"step": 3, "names": ["a", None]}}, packed)
    return packed.getvalue()


def run(folder: Path, resume: Path | None = None) -> None:
    """Train a little, and stop in mid-epoch; or take up the state of that run, without an update."""
    images = np.zeros((12, 3, 4, 4), np.uint8)
    loader = Loader(ImageDataset(images, np.arange(12) % 2, ("a", "b")), 4, shuffle=True)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    task = ClassificationTask(model, torch.optim.AdamW(model.parameters(), 0.01))
    callbacks = [
        ExponentialMovingAverage(0.9, batchnorm_samples=0),
        EarlyStopping("train_loss"),
        ModelCheckpoint(folder),
    ]
    steps = {"max_steps": 4} if resume is None else {"max_epochs": 0}
    Trainer(**steps, callbacks=callbacks, device="cpu", progress=False).fit(task, loader, resume=resume)


def run_checkpoint(folder: Path) -> bytes:
    """Return the checkpoint of a small run, without the checksum that would hide every change."""
    packed = io.BytesIO()
    run(folder)
    torch.save(load_checkpoint(folder / "last.pt"), packed)
    return packed.getvalue()


def with_pickle(packed: bytes, pickled: bytes) -> bytes:
    """Replace the pickle in a file of torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            own = entry.filename.endswith("data.pkl")
            target.writestr(entry.filename, pickled if own else source.read(entry))
    return buffer.getvalue()


def inner(packed: bytes, suffix: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(suffix)))


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((9, 7), 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def readers(folder: Path) -> list[Reader]:
    """Return all readers; folder is for the files of their seeds."""
    model = nn.Linear(2, 2)
    save_weights(model, folder / "w.safetensors")
    line = '{"file": "a/000000.png", "attempt": 0}'
    made = export.encode_picture(torch.zeros(3, 2, 2, dtype=torch.uint8), line)
    settings = b'{"format": 1, "classes": ["a", "b"], "seed": 0, "keep": null, "about": {}}'
    packed, whole = checkpoint(), run_checkpoint(folder / "run")
    table = b"epoch,step,train_loss,stopped_because\n0,3,0.5,\n1,6,0.25,far enough\n"
    kind = {"kind": "diffusion model", "network": {"num_classes": 2}, "classes": ["a", "b"], "image_shape": [3, 8, 8]}
    kind |= {"flags": dict.fromkeys(shared._FLAGS, 0)}
    kinds = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm", "TGA": "tga"}
    return [
        Reader("npz", ".npz", load_npz, npz()),
        Reader("npz, an array", ".npz", load_npz, inner(npz(), "images.npy"), npz),
        Reader("checkpoint", ".pt", load_checkpoint, packed),
        Reader(
            "checkpoint, its pickle",
            ".pt",
            load_checkpoint,
            inner(packed, "data.pkl"),
            lambda pickled: with_pickle(packed, pickled),
        ),
        Reader(
            "a run's, taken up",
            ".pt",
            lambda path: run(path.parent / "run", path),
            inner(whole, "data.pkl"),
            lambda pickled: with_pickle(whole, pickled),
        ),
        Reader(
            "safetensors",
            ".safetensors",
            lambda path: load_weights(model, path),
            (folder / "w.safetensors").read_bytes(),
        ),
        Reader("generated picture", ".png", export.read_picture, made),
        Reader("settings.json", ".json", lambda path: export.read_settings(path.parent), settings),
        Reader(
            "a run's settings.json", ".json", lambda path: shared.read_settings(path.parent), json.dumps(kind).encode()
        ),
        Reader("config.json", ".json", lambda path: read_config(path.parent), b'{"num_classes": 2}', file="config"),
        Reader("metrics.csv", ".csv", lambda path: read_run(path.parent), table, file="metrics"),
        *(Reader(kind, f".{suffix}", read_images, picture(kind)) for kind, suffix in kinds.items()),
    ]


def mutate(content: bytes, other: bytes, draws: random.Random) -> bytes:
    """Change a file a few times: bits, bytes, numbers that tell, cuts, repeats, and pieces of another file."""
    changed = bytearray(content)
    for _ in range(1 << draws.randrange(4)):
        place = draws.randrange(len(changed) + 1)
        way = draws.randrange(6)
        if way == 0 and place < len(changed):
            changed[place] ^= 1 << draws.randrange(8)
        elif way == 1 and place < len(changed):
            changed[place] = draws.randrange(256)
        elif way == 2:
            telling = draws.choice(TELLING)
            changed[place : place + len(telling)] = telling
        elif way == 3:
            del changed[place : place + 1 + draws.randrange(16)]
        elif way == 4:
            changed[place:place] = changed[place : place + 1 + draws.randrange(32)]
        else:
            start = draws.randrange(len(other) + 1)
            changed[place : place + 16] = other[start : start + 16]
    return bytes(changed[:LONGEST])


class Coverage:
    """The pairs of lines in a row that ran in the watched modules."""

    def __init__(self) -> None:
        self.pairs: set[tuple[str, int, int]] = set()

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not any(part in name for part in WATCHED):
            return None
        last = frame.f_lineno

        def inside(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            self.pairs.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return inside

        return inside


def breed(
    reader: Reader, folder: Path, until: float, seed: int, current: mmap.mmap, tell: Callable[[str], None]
) -> None:
    """Fuzz one reader in this process; the file being read is always in current, should the process die."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    draws, coverage = random.Random(seed), Coverage()
    corpus, path, files, taken = [reader.seed], folder / f"{reader.file}{reader.suffix}", 0, 0
    while time.monotonic() < until:
        inside = mutate(draws.choice(corpus), draws.choice(corpus), draws) if files else reader.seed
        content = reader.pack(inside)
        current[: 4 + len(content)] = len(content).to_bytes(4, "little") + content
        path.write_bytes(content)
        known, start = len(coverage.pairs), time.process_time()  # which a busy machine does not change
        signal.alarm(60 * SLOW_SECONDS)  # the default action ends the process, which the parent takes for a finding
        sys.settrace(coverage.trace)
        try:
            reader.read(path)
            taken += 1
        except ValueError:
            pass
        except BaseException as error:
            sys.settrace(None)
            tell(f"finding {type(error).__name__}: {str(error)[:100]!r}")
            (folder / f"finding-{files}{reader.suffix}").write_bytes(content)
        finally:
            sys.settrace(None)
            signal.alarm(0)
        if time.process_time() - start > SLOW_SECONDS:
            tell(f"finding slow: {time.process_time() - start:.0f} s")
            (folder / f"finding-{files}{reader.suffix}").write_bytes(content)
        files += 1
        if len(coverage.pairs) > known:
            corpus.append(inside)
        tell(f"count {files} {taken} {len(coverage.pairs)}")


def fuzz(reader: Reader, seconds: float, seed: int, findings: Path) -> Tally:
    """Fuzz one reader in a child process, so that a crash of it is a finding and not the end."""
    current, tally = mmap.mmap(-1, LONGEST * 4), Tally()
    source, target = os.pipe()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    child = os.fork()
    if child == 0:
        os.close(source)
        try:
            breed(reader, folder, time.monotonic() + seconds, seed, current, lambda text: _write(target, text))
        except BaseException as error:
            _write(target, f"finding fuzzer - {error!r}")
        os._exit(0)
    os.close(target)
    with os.fdopen(source) as pipe:
        for line in pipe:
            word, _, rest = line.strip().partition(" ")
            if word == "count":
                tally.files, tally.taken, tally.pairs = map(int, rest.split())
            else:
                tally.findings.append(rest)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        tally.findings.append(f"the process was ended by {name}")
        length = int.from_bytes(current[:4], "little")
        (folder / f"finding-{name}{reader.suffix}").write_bytes(current[4 : 4 + length])
    for path in folder.glob("finding-*"):
        findings.mkdir(parents=True, exist_ok=True)
        (findings / f"{reader.name.replace(' ', '-')}-{seed}-{path.name}").write_bytes(path.read_bytes())
    shutil.rmtree(folder)
    return tally


def _write(descriptor: int, text: str) -> None:
    os.write(descriptor, text.replace("\n", " ").encode(errors="replace") + b"\n")


def words_for(findings: list[str]) -> str:
    """Say on one line of a table what was found."""
    return "; ".join(findings[:3]).replace("|", "/") or "none"


def main() -> None:
    parser = arguments(__doc__, "fuzz_readers")
    parser.add_argument("--seconds", type=float, help="for all readers together; 600, with --tiny 10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="the name of one reader, such as npz")
    parser.add_argument("--findings", type=Path, default=Path("runs") / "fuzz_findings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds = options.seconds or (10 if options.tiny else 600)
    Image.init()
    with tempfile.TemporaryDirectory() as place:
        every = [item for item in readers(Path(place)) if options.only in (None, item.name)]
        if not every:
            parser.error(f"--only={options.only!r} is none of: {', '.join(item.name for item in readers(Path(place)))}")
        tallies = {item.name: fuzz(item, seconds / len(every), options.seed, options.findings) for item in every}
    rows = [
        [name, f"{tally.files:,}", f"{tally.taken:,}", f"{tally.pairs:,}", words_for(tally.findings)]
        for name, tally in tallies.items()
    ]
    columns = ["reader", "files", "taken", "pairs of lines reached", "findings"]
    report = Report("fuzz_readers", {"seconds": seconds, "seed": options.seed}, ("numpy", "pillow", "safetensors"))
    report.tables.append(Table("Damaged files and what the readers made of them", columns, rows))
    report.figures = {name: vars(tally) for name, tally in tallies.items()}
    found = sum(len(tally.findings) for tally in tallies.values())
    report.aim("every file is taken or refused by ValueError", f"{found} findings", found == 0)
    partial = options.only is not None and options.out is None  # whose table would replace that of all readers
    report.publish(None if partial else destination(options, "fuzz_readers"))
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
