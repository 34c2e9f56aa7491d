"""The trained network made ready to sample."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cifarkit.checks import check_integer, check_number
from cifarkit.diffusion.schedule import NoiseSchedule
from cifarkit.inference import device_of, dtype_of, evaluation_mode, inference_autocast
from cifarkit.labels import check_labels
from cifarkit.layout import EitherLayout, lay_out

TARGETS = ("noise", "velocity")


def as_denoiser(
    model: nn.Module,
    labels: Tensor | None = None,
    *,
    guidance: float = 0.0,
    target: str = "noise",
    schedule: NoiseSchedule | None = None,
    precision: str = "auto",
) -> NetworkDenoiser:
    """Make a network a denoiser: evaluation mode, fast layout and precision, guidance, velocity turned into noise.

    The network is used as it is, not copied; only the layout of its weights becomes channels_last, if it can. What it
    is asked about may be on another device or more exact: it is brought to the network's, and the answer comes back.

    Args:
        model: (x, t), or (x, t, labels) if conditional; then its attribute ``num_classes`` is K, and label K "none".
            It may return an object with the tensor as ``sample``, as the networks of diffusers do.
        labels: (B,) int64, the class of each image to come; None asks a conditional model for any class.
        guidance: w in noise = with + w (with - without label); above 0 needs labels and doubles the batch.
        target: what the network was trained to predict, "noise" or "velocity".
        schedule: of the training, needed for "velocity".
        precision: "fp32", "bf16", or "auto": bf16 where the processor computes it natively.
    Raises:
        TypeError, ValueError: if an argument is of the wrong kind, out of range, or lacks another it needs.
    Source: Ho and Salimans 2022, "Classifier-free diffusion guidance", equation 6.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module that maps x and t to {target}")
    guidance = check_number("guidance", guidance, 0)
    check_target(target)
    if not isinstance(schedule, NoiseSchedule) and (target == "velocity" or schedule is not None):
        raise ValueError(f"target={target!r} needs the NoiseSchedule of the training; got schedule={schedule!r}")
    num_classes = count_classes(model)
    if labels is not None:
        count = labels.numel() if isinstance(labels, Tensor) else len(labels) if isinstance(labels, Sized) else 1
        check_labels(labels, count, num_classes, null=True)
    if guidance and labels is None:
        raise ValueError(f"guidance={guidance} needs labels: it moves images towards the class they are to show")
    if guidance and num_classes is None:
        raise ValueError(f"guidance={guidance} needs a model with num_classes, whose label num_classes means none")
    inference_autocast(precision, device_of(model))  # names a wrong precision now rather than in the first call
    lay_out(model, torch.channels_last)
    return NetworkDenoiser(model, labels, num_classes, guidance, schedule if target == "velocity" else None, precision)


class NetworkDenoiser:
    """(x (B, C, H, W), t (B,) int64) -> the noise in x, like x; made by :func:`as_denoiser`."""

    def __init__(
        self,
        model: nn.Module,
        labels: Tensor | None,
        num_classes: int | None,
        guidance: float,
        velocity_schedule: NoiseSchedule | None,
        precision: str,
    ) -> None:
        self.model, self.labels, self.num_classes, self.guidance = model, labels, num_classes, guidance
        self.velocity_schedule, self.precision, self._ready = velocity_schedule, precision, False
        self._network = EitherLayout(model)

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.labels is not None and len(self.labels) != len(x):
            raise ValueError(f"labels are of {len(self.labels)} images, but x holds {len(x)}")
        home = device_of(self.model, x.device)
        images, at = x.to(home, dtype_of(self.model, x.dtype)), t.to(home)
        with nullcontext() if self._ready else self._mode():
            predicted = self._guided(images, at) if self.guidance else self._predict(images, at, self._asked(at))
        predicted = predicted.to(x.device, x.dtype)
        if self.velocity_schedule is not None:
            predicted = self.velocity_schedule.noise_from_velocity(predicted, x, t)
        return predicted.to(x.dtype)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keep what many calls share, weights cast and prepared, while no weight changes between them."""
        inner = _unwrapped(self.model, "accelerated")
        prepared = getattr(inner, "accelerated", nullcontext)  # too dear for a single call
        with self._mode(), prepared():
            yield

    @contextmanager
    def _mode(self) -> Iterator[None]:
        with evaluation_mode(self.model), inference_autocast(self.precision, device_of(self.model)):
            before, self._ready = self._ready, True
            try:
                yield
            finally:
                self._ready = before

    def _asked(self, t: Tensor) -> Tensor | None:
        """Return the labels, those of "none" if a conditional model is asked for any class."""
        if self.labels is None and self.num_classes is not None:
            return torch.full_like(t, self.num_classes)
        return self.labels

    def _predict(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return sample_of(self._network(x, t) if labels is None else self._network(x, t, labels.to(x.device)))

    def _guided(self, x: Tensor, t: Tensor) -> Tensor:
        assert self.labels is not None
        assert self.num_classes is not None
        labels = torch.cat([self.labels, torch.full_like(self.labels, self.num_classes)])
        both = self._predict(torch.cat([x, x]), torch.cat([t, t]), labels)
        with_label, without = both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2)
        return with_label + self.guidance * (with_label - without)


def sample_of(answer: Any) -> Tensor:
    """Return the tensor that a network answers with, bare or as ``sample``, as the networks of diffusers do.

    Raises:
        TypeError: if there is none.
    """
    predicted = answer if isinstance(answer, Tensor) else getattr(answer, "sample", None)
    if not isinstance(predicted, Tensor):
        kind = type(answer).__name__
        raise TypeError(f"model returns a {kind}; it must return a tensor like x, or an object with one as sample")
    return predicted


def count_classes(model: nn.Module) -> int | None:
    """Return K of a class-conditional network, read off its attribute ``num_classes``; None if it is unconditional."""
    num_classes = getattr(_unwrapped(model, "num_classes"), "num_classes", None)
    return None if num_classes is None else check_integer("num_classes", num_classes, 1)


def _unwrapped(model: nn.Module, name: str) -> nn.Module:
    """Return the network that has an attribute, which DistributedDataParallel and AveragedModel wrap, once or twice."""
    while not hasattr(model, name) and isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def check_target(target: str) -> str:
    """Return the target if it is known.

    Raises:
        ValueError: if it is not.
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is unknown; use 'noise' or 'velocity'")
    return target
