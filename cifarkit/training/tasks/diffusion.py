"""Denoising diffusion: learn to tell the noise in an image from the image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifarkit.checks import check_number, has_parameter
from cifarkit.diffusion.denoiser import NetworkDenoiser, as_denoiser, check_target, count_classes, sample_of
from cifarkit.diffusion.noise_levels import check_log_snr, draw_steps, fixed_noise
from cifarkit.diffusion.schedule import NoiseSchedule
from cifarkit.inference import dtype_of
from cifarkit.labels import check_labels
from cifarkit.training.task import Batch, Task, Update
from cifarkit.training.tasks.batches import check_image_batch, check_signed

_REMEDY = "give transform=Normalize(0.5, 0.5) to the Loader, behind what else it does"


class DiffusionTask(Task):
    """Train a network to predict the noise in images, or their velocity, at random steps: L_simple.

    Batches are (images in [-1, 1], labels); labels may be left out if the model is unconditional, and are not used.

    Args:
        model: (x, t) -> (B, C, H, W), or (x, t, labels) if its attribute ``num_classes`` is K; label K means none. It
            may return an object with the tensor as ``sample``.
        optimizer: of the model's parameters.
        schedule: a plain object, so that neither averages nor checkpoints hold its tables.
        target: "noise" or "velocity".
        label_dropout: share of the labels replaced by K, drawn for each image, in [0, 1]; for guidance.
        min_snr: bound on the weight of nearly clean images, 5 in the paper; None is L_simple.
        log_snr: mean and deviation of log(signal's variance / noise's) in training, spread evenly over a batch, (2.4,
            2.4) in the paper; None draws all steps alike, as evaluation always does.
    Raises:
        TypeError, ValueError: for a wrong argument, or a first batch that does not fit.
    Source: Ho et al. 2020, equation 14; min_snr: Hang et al. 2023, "Efficient diffusion training via Min-SNR"; log_snr:
        Karras et al. 2022, arXiv 2206.00364, section 5; evenly: Kingma et al. 2021, arXiv 2107.00630, appendix I.1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: NoiseSchedule,
        *,
        target: str = "noise",
        label_dropout: float = 0.1,
        min_snr: float | None = None,
        log_snr: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"give DiffusionTask a network and its optimizer, both built, in this order; got "
                f"{type(model).__name__} and {optimizer if isinstance(optimizer, type) else type(optimizer).__name__}"
            )
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"schedule is a {type(schedule).__name__}; give NoiseSchedule.linear() or .cosine()")
        self.model, self.schedule, self.target = model, schedule, check_target(target)
        self.optimizers = {"model": optimizer}
        self.label_dropout = check_number("label_dropout", label_dropout, 0, 1)
        self.min_snr = None if min_snr is None else check_number("min_snr", min_snr, 0, above=True)
        self.log_snr = check_log_snr(log_snr)
        self.num_classes = count_classes(model)
        if self.num_classes is None and has_parameter(model, "labels") and not hasattr(model, "num_classes"):
            warnings.warn(
                "the model takes labels but has no attribute num_classes, so it is trained without labels; "
                "set it to K if label K means none, or to None",
                stacklevel=2,
            )
        self._checked = False

    def updates(self, batch: Batch) -> Iterator[Update]:
        """Yield the mean loss of a batch, at steps and noise drawn for each image."""
        images, labels = self._checked_batch(batch)
        t, noise, labels = self._draw(images, labels)
        yield Update(self._losses(images, labels, noise, t).mean(), "model")

    def evaluate(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Return the summed loss, without label dropout; each image always meets the same noise at the same step.

        They are keyed by its pixels, so that batches, their order and the epoch change nothing.
        """
        images, labels = self._checked_batch(batch)
        noise, t = fixed_noise(images, self.schedule.timesteps)
        return {"loss": (self._losses(images, labels, noise, t).sum(), len(images))}

    def denoiser(self, labels: Tensor | None = None, *, guidance: float = 0.0) -> NetworkDenoiser:
        """Make the network ready to sample, as ``as_denoiser`` does, with the target and schedule of its training."""
        return as_denoiser(self.model, labels, guidance=guidance, target=self.target, schedule=self.schedule)

    def inputs_of(self, network: str, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the network is given for a batch, when an average of it measures its BatchNorm statistics."""
        images, labels = self._checked_batch(batch)
        t, noise, labels = self._draw(images, labels)
        x = self.schedule.add_noise(images, noise, t).to(dtype_of(self.model, images.dtype))
        return (x, t) if labels is None else (x, t, labels)

    def _draw(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw steps and noise for images, and which of them go without their label."""
        t = draw_steps(self.schedule, len(images), self.log_snr, images.device)
        noise = torch.randn_like(images)
        if labels is not None and self.num_classes is not None and self.label_dropout:
            dropped = torch.rand(len(labels), device=labels.device) < self.label_dropout
            labels = labels.masked_fill(dropped, self.num_classes)
        return t, noise, labels

    def _losses(self, images: Tensor, labels: Tensor | None, noise: Tensor, t: Tensor) -> Tensor:
        """Return each image's loss (B,), a mean over its pixels."""
        x = self.schedule.add_noise(images, noise, t).to(dtype_of(self.model, images.dtype))
        predicted = sample_of(self.model(x, t) if labels is None else self.model(x, t, labels))
        if predicted.shape != images.shape:
            shapes = f"{tuple(predicted.shape)} for images of {tuple(images.shape)}"
            raise ValueError(f"the model must return an image of the shape of its input; it returned {shapes}")
        wanted = noise if self.target == "noise" else self.schedule.velocity(images, noise, t)
        losses = (predicted.float() - wanted.float()).square().flatten(1).mean(1)  # (B, C, H, W) -> (B,)
        return losses if self.min_snr is None else losses * self._weights(images, t)

    def _weights(self, images: Tensor, t: Tensor) -> Tensor:
        """Return min(snr, bound) of each image (B,) over the weight that the target itself gives to its error."""
        assert self.min_snr is not None
        signal, sigma = self.schedule.rates(t, images)
        ratio = (signal / sigma).square().flatten()  # (B, 1, 1, 1) -> (B,)
        if self.target == "noise":
            return (self.min_snr / ratio).clamp(max=1)  # min(snr, bound) / snr, also where snr is 0 in fp32
        return ratio.clamp(max=self.min_snr) / (ratio + 1)

    # Only the first batch is looked at, which costs a synchronisation, for mistakes that would fail obscurely.

    def _checked_batch(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not self._checked:
            check_image_batch(batch, _REMEDY)
        if len(batch) not in ((1, 2) if self.num_classes is None else (2,)):
            raise ValueError(f"a batch must be (images, labels); got {len(batch)} tensors")
        images, labels = batch[0], None if self.num_classes is None else batch[1]
        if not self._checked:
            check_signed(images, _REMEDY)
            if labels is not None and self.num_classes is not None:
                check_labels(labels.cpu(), len(images), self.num_classes)
            self._checked = True
        return images, labels
