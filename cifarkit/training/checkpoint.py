"""When a run is saved, and which of its checkpoints a fit goes on from."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarkit.checks import check_integer
from cifarkit.files import remove_abandoned, shown, write_atomically
from cifarkit.training.archive import load_checkpoint, write_checkpoint
from cifarkit.training.callbacks import Callback, check_mode, monitored_value
from cifarkit.training.compatibility import is_of_this_metric
from cifarkit.training.contract import check_state
from cifarkit.training.distributed import from_first_rank
from cifarkit.training.weights import load_weights, save_weights

if TYPE_CHECKING:
    from cifarkit.training.run import Run

# Also the names of what was split off, so that this module stays the place to import them from.
__all__ = [
    "ModelCheckpoint",
    "explain_resuming",
    "find_checkpoint",
    "load_checkpoint",
    "load_weights",
    "save_weights",
    "write_checkpoint",
]


class ModelCheckpoint(Callback):
    """Save the run: the last state, and the best ones by a metric.

    ``folder/last.pt`` is written after every epoch and on SIGTERM or Ctrl-C; ``folder/best.pt`` whenever the metric
    improves. With ``save_top_k`` above 1 the k best are also kept under names like ``epoch=003-val_acc=0.9340.pt``.
    Of several processes rank 0 writes and the others wait; all must have the callback.

    Args:
        folder: where to write; made if absent.
        monitor: name of an epoch metric, or None to keep only the last state.
        mode: "max" if higher is better, "min" if lower is.
        save_top_k: how many of the best to keep, at least 1.
        every_n_steps: also write last.pt after so many updates.
    Raises:
        ValueError: for a misspelt mode, a count below 1, a folder that is a file, two that would write best.pt into one
            folder, and at the first epoch for an unknown metric.
        TypeError: at the start, if the task keeps something else than tensors by ``get_extra_state``.
        OSError: while saving; a failed save ends the run rather than being passed over.
    """

    order = 100  # what is saved after an update is the state of all callbacks

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        mode: str = "max",
        save_top_k: int = 1,
        every_n_steps: int | None = None,
    ) -> None:
        self.folder, self.monitor, self.mode = Path(folder), monitor, check_mode(mode, monitor)
        if self.folder.is_file():
            raise ValueError(f"folder={str(folder)!r} is a file; give its folder, {self.folder.parent}")
        self.save_top_k = check_integer("save_top_k", save_top_k, 1)
        self.every_n_steps = None if every_n_steps is None else check_integer("every_n_steps", every_n_steps, 1)
        self.best: list[tuple[float, str]] = []  # (metric, file name), the best first
        self._chosen: str | None = None  # the file of this epoch, when it is among the best
        self._dropped: list[str] = []

    @property
    def last_path(self) -> Path:
        return self.folder / "last.pt"

    @property
    def best_path(self) -> Path:
        return self.folder / "best.pt"

    def on_fit_start(self, run: Run) -> None:
        self.best = []
        check_state(run.task)
        self._require_own_folder(run)
        from_first_rank(lambda: self._open_folder(run))

    def _require_own_folder(self, run: Run) -> None:
        judges = [item for item in run.callbacks if isinstance(item, ModelCheckpoint) and item.monitor is not None]
        here = [item.monitor for item in judges if item.folder.resolve() == self.folder.resolve()]
        if self.monitor is not None and len(here) > 1:
            raise ValueError(
                f"ModelCheckpoints of {' and '.join(map(str, here))} would both write best.pt into "
                f"{shown(self.folder)}; give each a folder of its own"
            )

    def _open_folder(self, run: Run) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder)
        if not self.last_path.exists() or self._goes_on(run):
            return
        if run.resumed:
            warnings.warn(
                f"{shown(self.folder)} holds a last.pt, which the run that goes on from {run.last_checkpoint} "
                "will replace",
                stacklevel=2,
            )
        else:
            warnings.warn(
                f"{shown(self.folder)} holds the checkpoints of another run, which this one will replace; give each "
                "run a folder of its own, as run_folder makes them, or continue with fit(resume='auto')",
                stacklevel=2,
            )

    def _goes_on(self, run: Run) -> bool:
        """Tell whether the run was taken up from a folder of its own, and not from elsewhere into this one."""
        folders = [item.folder.resolve() for item in run.callbacks if isinstance(item, ModelCheckpoint)]
        path = Path(run.last_checkpoint or "")
        return run.resumed and not {path.parent.resolve(), path.resolve().parent}.isdisjoint(folders)

    def on_step_end(self, run: Run) -> None:
        if self.every_n_steps and run.step % self.every_n_steps == 0:
            self.save_last(run)

    def on_epoch_end(self, run: Run) -> None:
        self._chosen = None
        if self.monitor is not None and (value := self._monitored(run)) is not None:
            self._choose(value, run.history[-1]["epoch"])

    def _monitored(self, run: Run) -> float | None:
        """Return the metric as rank 0 knows it: ranks that disagree on the best would wait for each other in vain."""
        assert self.monitor is not None
        name = self.monitor
        return from_first_rank(lambda: monitored_value(run, name))

    def on_save(self, run: Run) -> None:
        if self._chosen is not None:
            state, chosen = run.state_dict(), self.folder / self._chosen
            from_first_rank(lambda: self._write_best(state, chosen))
        self.save_last(run)

    def _write_best(self, state: dict[str, Any], path: Path) -> None:
        write_checkpoint(state, path)
        if path.name != "best.pt" and self.best[0][1] == path.name:
            write_atomically(path.read_bytes(), self.best_path)
        for name in self._dropped:
            (self.folder / name).unlink(missing_ok=True)

    def on_interrupt(self, run: Run) -> None:
        self.save_last(run)

    def save_last(self, run: Run) -> None:
        """Write last.pt now."""
        state = run.state_dict()
        from_first_rank(lambda: write_checkpoint(state, self.last_path))
        run.last_checkpoint = str(self.last_path)

    def _choose(self, value: float, epoch: int) -> None:
        """Enter the epoch into the list of the best if it belongs there; another save_top_k may have made the list."""
        sign, most = 1 if self.mode == "min" else -1, self.save_top_k
        chosen = f"epoch={epoch:03d}-{self.monitor}={value:.4f}.pt" if most > 1 else "best.pt"
        others = self.best if most == 1 else [item for item in self.best if item[1] != chosen]  # it is written anew
        if math.isnan(value) or (len(others) >= most and not sign * value < sign * others[most - 1][0]):
            return
        if others and sign * value < sign * others[0][0]:  # best.pt will be this epoch's
            others = [item for item in others if item[1] != "best.pt"]
        before, self._chosen = self.best, chosen
        self.best = sorted([*others, (value, chosen)], key=lambda item: sign * item[0])[:most]
        kept = {"best.pt", *(name for _, name in self.best)}
        self._dropped = [name for _, name in before if name not in kept]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor or "", "mode": self.mode}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["best"] and not is_of_this_metric(state, self):
            return
        best = [(float(value), self._own(name)) for value, name in state["best"]]
        if any(math.isnan(value) for value, _ in best):  # it would stay the best for ever
            raise ValueError("the checkpoint counts a metric that is NaN among the best")
        self.best = best

    def on_resume(self, run: Run) -> None:
        missing = from_first_rank(lambda: [name for _, name in self.best if not self._holds(run, name)])
        if missing:
            self.best = [item for item in self.best if item[1] not in missing]
            warnings.warn(
                f"{shown(self.folder)} does not hold {missing[0]}, one of the best of the run that goes on; the best "
                "are chosen anew among those that follow",
                stacklevel=2,
            )

    def _holds(self, run: Run, name: str) -> bool:
        """Tell whether a file is there, and of this run, which may have been taken up from elsewhere."""
        path = self.folder / name
        if self._goes_on(run) or not path.is_file():
            return path.is_file()
        try:
            saved = load_checkpoint(path)["run"]
            rows = _ends(saved["history"])[: saved["epoch"]]  # not that of a part of an epoch, which may have been done
            return rows == _ends(run.history)[: len(rows)]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _own(self, name: str) -> str:
        """Return the name of a kept file if it is in the folder: what is dropped from the best is deleted."""
        path, folder = Path(name), self.folder.resolve()
        if path.suffix != ".pt" or ".." in path.parts or not (folder / path).parent.resolve().is_relative_to(folder):
            where = shown(self.folder)
            raise ValueError(f"the checkpoint counts {name!r} among the best files, which is none in {where}")
        return name


def _ends(history: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Return what tells the epochs of one run from those of another."""
    return [(row["epoch"], row["step"], row["seconds"]) for row in history]


def explain_resuming(callbacks: Sequence[Callback]) -> str:
    """Say with what an interrupted run goes on, or that nothing of it was saved."""
    saved = next((callback.last_path for callback in callbacks if isinstance(callback, ModelCheckpoint)), None)
    return "nothing was saved, for want of a ModelCheckpoint" if saved is None else f"go on with resume='{saved}'"


def _newest_of_the_best(folder: Path) -> Path | None:
    """Return the one of the kept best checkpoints that has trained longest, for want of a last.pt, and warn.

    Raises:
        ValueError: if best.pt stands beside others and is damaged, so that nobody knows which it is.
    """
    kept = [path for path in folder.glob("*.pt") if re.match(r"best\.pt$|epoch=\d+", path.name)]
    if not kept:
        return None
    newest = kept[0] if len(kept) == 1 else max(kept, key=_age)
    words = f"{shown(folder)} has no last.pt; the run goes on from {shown(newest.name)}, the newest there is"
    warnings.warn(words, stacklevel=2)
    return newest


def _age(path: Path) -> tuple[int, float]:
    """Return the epochs done, as the name says or best.pt holds; the clock, which may have jumped, decides ties."""
    found = re.match(r"epoch=(\d+)", path.name)
    run = {} if found else load_checkpoint(path).get("run")
    epochs = run.get("epoch") if isinstance(run, dict) else None
    done = int(found[1]) + 1 if found else epochs if type(epochs) is int else 0
    return done, path.stat().st_mtime


def _steps_done(path: Path) -> int:
    """Return the updates that a run had done, so that of two files the one that has trained longer is gone on from.

    A damaged file has none, with a warning, since there is another.
    """
    try:
        run = load_checkpoint(path).get("run")
    except (OSError, ValueError) as error:
        warnings.warn(f"another checkpoint is gone on from, if one is sound: {error}", stacklevel=2)
        return -1
    steps = run.get("step") if isinstance(run, dict) else None
    return steps if type(steps) is int else -1


def find_checkpoint(resume: str | Path | None, callbacks: Sequence[Callback]) -> Path | None:
    """Return the file that ``fit(resume=...)`` means, or None to start anew.

    Raises:
        FileNotFoundError: if a named file does not exist.
        ValueError: for "auto" without a ModelCheckpoint.
    """
    if resume is None:
        return None
    if not isinstance(resume, (str, Path)):
        raise TypeError(f"resume={resume!r} must be a checkpoint file, its folder, or 'auto'")
    if resume == "auto":
        paths = [callback.last_path for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        if not paths:
            raise ValueError("resume='auto' needs a ModelCheckpoint among the callbacks, which says where to look")
        there = list(dict.fromkeys(path for path in paths if os.path.lexists(path)))
        found = there[0] if len(there) == 1 else max(there, key=_steps_done, default=None)
        resume = found or _newest_of_the_best(paths[0].parent)
        if resume is None:
            return None
    path = Path(resume)
    path = path / "last.pt" if path.is_dir() else path
    if not path.is_file():
        hint = "the link leads nowhere" if path.is_symlink() else "'auto' starts anew if there is none"
        raise FileNotFoundError(f"resume={str(resume)!r}: there is no checkpoint; {hint}")
    return path
