"""Checkpoints: written whole or not at all, checked by a checksum, loaded without running code."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarkit.checks import check_integer
from cifarkit.files import read_file, remove_abandoned, require_plain_zip, write_atomically
from cifarkit.training.callbacks import Callback, check_mode, monitored_value
from cifarkit.training.distributed import from_first_rank

if TYPE_CHECKING:
    from cifarkit.training.run import Run

_END_RECORD = b"PK\x05\x06"  # the last record of a zip file; its last two bytes are the length of a comment
_LABEL = b"sha256:"
_PLAIN_TYPES = (bool, int, float, complex, str, bytes, set, torch.Size, torch.dtype, torch.device)


def write_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Save tensors and plain types to path, atomically and with a checksum.

    The file is an ordinary ``torch.save`` zip; the SHA-256 of it stands in the zip's comment, so that
    ``torch.load`` reads it without this library. NumPy's scalars are saved as Python's.

    Raises:
        TypeError: if something in the state could not be loaded without running code.
    """
    buffer = io.BytesIO()
    torch.save(_plain(state, "state"), buffer)
    content = buffer.getvalue()
    if content[-22:-18] != _END_RECORD or content[-2:] != b"\0\0":
        raise RuntimeError("torch.save wrote a zip file of unknown form; cannot add a checksum")
    comment = _LABEL + hashlib.sha256(content).hexdigest().encode()
    write_atomically(content[:-2] + len(comment).to_bytes(2, "little") + comment, path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU after checking that it is whole; nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or is no checkpoint; the message names it.
    """
    path = Path(path)
    content = read_file(path)
    _require_checksum(content, path)
    try:
        require_plain_zip(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damage that no checksum guards against can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as tensors and plain types: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__} where a dict was expected")
    return state


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Save a network's weights, as safetensors if the name ends so, else as a plain ``torch.save`` dict.

    Raises:
        ImportError: if the name ends in .safetensors and the extra is not installed.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if Path(path).suffix == ".safetensors":
        write_atomically(_safetensors().save(weights), path)
    else:
        write_checkpoint(weights, path)


def load_weights(model: nn.Module, path: str | Path, *, average: str | None = None) -> nn.Module:
    """Load weights into a network and return it.

    Args:
        model: the network, built like the one that was saved.
        path: a file of :func:`save_weights`, or a checkpoint of a run whose task holds the network.
        average: take the averaged weights of a checkpoint instead: "ema" or "swa".
    Raises:
        ValueError: if the file is damaged, or its weights do not fit; the message names the first that does not.
    """
    weights = _load_safetensors(Path(path)) if Path(path).suffix == ".safetensors" else load_checkpoint(path)
    if "format_version" in weights:
        try:
            weights = _network_of_run(weights, model, path, average)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} calls itself the checkpoint of a run and lacks its parts: {error!r}") from error
    elif average is not None:
        raise ValueError(f"average={average!r}: {path} holds plain weights and no averaged ones")
    own = model.state_dict()
    for key in [*own, *weights]:
        sides = (weights, own)
        there, here = (tuple(getattr(side[key], "shape", "?")) if key in side else "absent" for side in sides)
        if there != here:
            raise ValueError(f"{path} does not fit {type(model).__name__}: {key!r} is {there} there and {here} here")
    model.load_state_dict(weights)
    return model


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
        ValueError: for a misspelt mode, a count below 1, and at the first epoch for an unknown metric.
        OSError: while saving; a failed save ends the run rather than being passed over.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        mode: str = "max",
        save_top_k: int = 1,
        every_n_steps: int | None = None,
    ) -> None:
        self.folder, self.monitor, self.mode = Path(folder), monitor, check_mode(mode, monitor)
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
        from_first_rank(lambda: self._open_folder(run))

    def _open_folder(self, run: Run) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder)
        if self.last_path.exists() and not run.resumed:
            warnings.warn(
                f"{self.folder} holds the checkpoints of another run, which this one will replace; give each run a "
                "folder of its own, as run_folder makes them, or continue with fit(resume='auto')",
                stacklevel=2,
            )

    def on_step_end(self, run: Run) -> None:
        if self.every_n_steps and run.step % self.every_n_steps == 0:
            self.save_last(run)

    def on_epoch_end(self, run: Run) -> None:
        self._chosen = None
        if self.monitor is not None and (value := monitored_value(run, self.monitor)) is not None:
            self._choose(value, run.history[-1]["epoch"])

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
        """Enter the epoch into the list of the best if it belongs there."""
        sign = 1 if self.mode == "min" else -1
        if math.isnan(value) or (len(self.best) == self.save_top_k and not sign * value < sign * self.best[-1][0]):
            return
        self._chosen = f"epoch={epoch:03d}-{self.monitor}={value:.4f}.pt" if self.save_top_k > 1 else "best.pt"
        kept, dropped = self.best[: self.save_top_k - 1], self.best[self.save_top_k - 1 :]
        self.best = sorted([*kept, (value, self._chosen)], key=lambda item: sign * item[0])
        self._dropped = [name for _, name in dropped if name != self._chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = [(float(value), self._own(name)) for value, name in state["best"]]

    def _own(self, name: str) -> str:
        """Return the name of a kept file if it is in the folder: what is dropped from the best is deleted."""
        path, folder = Path(name), self.folder.resolve()
        if path.suffix != ".pt" or ".." in path.parts or not (folder / path).parent.resolve().is_relative_to(folder):
            raise ValueError(f"the checkpoint counts {name!r} among the best files, which is none in {self.folder}")
        return name


def explain_resuming(callbacks: Sequence[Callback]) -> str:
    """Say with what an interrupted run goes on, or that nothing of it was saved."""
    saved = next((callback.last_path for callback in callbacks if isinstance(callback, ModelCheckpoint)), None)
    return "nothing was saved, for want of a ModelCheckpoint" if saved is None else f"go on with resume='{saved}'"


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
        return next((path for path in paths if path.exists()), None)
    path = Path(resume)
    path = path / "last.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"resume={str(resume)!r}: there is no checkpoint; 'auto' starts anew if there is none")
    return path


def _plain(value: Any, name: str) -> Any:
    """Return value with NumPy's scalars made Python's; name says where in the state it stands."""
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, name) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, Tensor) or type(value) in _PLAIN_TYPES:
        return value
    raise TypeError(f"{name} holds a {type(value).__name__}; a checkpoint takes tensors and plain Python types only")


def _require_checksum(content: bytes, path: Path) -> None:
    """Check the comment of :func:`write_checkpoint`; files of plain ``torch.save`` have none and pass."""
    length = len(_LABEL) + 64
    start = len(content) - length
    label = length.to_bytes(2, "little") + _LABEL
    if start < 22 or content[start - 22 : start - 18] != _END_RECORD or content[start - 2 : start + 7] != label:
        if content[-22:-18] == _END_RECORD and content[-2:] == b"\0\0":
            return
        raise ValueError(f"{path} is damaged or no checkpoint: its end is missing ({len(content)} bytes)")
    original = content[: start - 2] + b"\0\0"
    if hashlib.sha256(original).hexdigest().encode() != content[start + 7 :]:
        raise ValueError(f"{path} is damaged: its SHA-256 does not match its content")


def _network_of_run(
    state: dict[str, Any], model: nn.Module, path: str | Path, average: str | None
) -> dict[str, Tensor]:
    """Find the weights of one network in a run's checkpoint: the child of the task with the same keys."""
    tensors: dict[str, Tensor] = state["task"]
    if average is not None:
        found = [item["state"] for item in state["callbacks"] if item["state"].get("kind") == average]
        if not found or not found[0]["updates"]:
            missing = "no average of that name; use 'ema' or 'swa'"
            there = "an average that no update has entered yet" if found else missing
            raise ValueError(f"average={average!r}: {path} holds {there}")
        tensors = found[0]["averaged"]
    names = {key.split(".", 1)[0] for key in tensors}
    own = model.state_dict().keys()
    for name in sorted(names, key=lambda name: name != "model"):
        child = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(name + ".")}
        if child.keys() == own:
            return child
    raise ValueError(f"{path} holds the networks {sorted(names)}, none of which has the keys of {type(model).__name__}")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    library, content = _safetensors(), read_file(path)
    try:
        return dict(library.load(content))
    except Exception as error:  # the library's own errors do not name the file
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("reading and writing .safetensors needs: pip install cifarkit[safetensors]") from error
    return safetensors.torch
