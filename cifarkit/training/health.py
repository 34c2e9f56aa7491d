"""How a GAN is doing, in words; and the way back when its weights are lost."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from cifarkit.checks import check_integer
from cifarkit.inference import evaluation_mode
from cifarkit.training.averaging import WeightAveraging
from cifarkit.training.callbacks import Callback
from cifarkit.training.distributed import on_every_rank, rank
from cifarkit.training.loading import iterating, undisturbed

if TYPE_CHECKING:
    from cifarkit.training.meters import NonFiniteLossError
    from cifarkit.training.run import Run

COLLAPSED, ALIKE = 0.25, 0.5  # diversity over that of real images, below which the line says so
SATURATED = 0.97  # share of both kinds of images on which the discriminator is right
_FEWEST = 8  # images of a class that say something about it
_SIDE = 8  # pixels of the images that are compared: what differs only in fine noise is alike


class GANHealth(Callback):
    """Say after each epoch in words how a :class:`GANTask` is doing, and undo updates that lost the weights.

    The line warns of collapse, when generated images are much nearer to each other than real ones are, and of a
    discriminator that is always right. Classes with 8 of the samples or more are looked at one by one, too.

    When weights, or buffers such as BatchNorm's, are no longer finite, networks, optimizers and averages go back to the
    end of the last epoch (or to where the run was resumed), and training goes on, with other random numbers. No other
    callback touches the weights, and this one only where they are lost anyway: a loss that is not finite and left them
    whole, as fp16 does now and then, is passed over. Looking for it waits for a GPU in each update. Gradients that
    overflow fp16 at every scale leave the weights as they are, and end the run.

    Args:
        samples: real and generated images to compare; 16 a class are plenty.
        returns: how often to go back; then the run ends as it would without this callback.
    Attributes:
        verdict: the newest line.
        diversity: the number behind it, also the metric ``sample_diversity``: the mean distance to the nearest other
            image, of generated images over real ones; NaN before the first epoch has ended.
        collapsed: the labels of classes whose generated images are nearly the same.
        returned: how often it went back.
        passed_over: how often a loss was not finite while the weights were.
    """

    order = -20  # before averages take in weights that are not finite
    collapsed: list[int]
    _averages: list[tuple[WeightAveraging, dict[str, Any]]] | None

    def __init__(self, samples: int = 512, *, returns: int = 3) -> None:
        self.samples, self.returns = check_integer("samples", samples, 2), check_integer("returns", returns, 0)
        self._begin()
        self._labels, self._real = torch.empty(0, dtype=torch.int64), torch.empty(0)  # labels, distances of real images

    def on_fit_start(self, run: Run) -> None:
        if not callable(getattr(run.task, "generate", None)):
            raise TypeError(f"GANHealth watches a GANTask; the task of this run is a {type(run.task).__name__}")
        self._begin()
        batches = [*_first(run, self.samples)]
        images, labels = (torch.cat(parts)[: self.samples] for parts in zip(*batches, strict=True))
        self._labels, self._real = labels.cpu(), nearest_distances(images, copies=False).cpu()
        if not self._real.isfinite().all():
            raise ValueError(f"the first {len(images)} real images are all the same, so nothing tells a collapse")
        self._keep(run)

    def on_step_end(self, run: Run) -> None:
        if self._averages is None:  # now, as they take in the end of an epoch, or a checkpoint, after this callback
            own = [item for item in run.callbacks if isinstance(item, WeightAveraging)]
            self._averages = [(item, copy.deepcopy(item.state_dict())) for item in own]
        if not _is_finite(run) and self._go_back(run):
            run.meters.forget(run.step - 1)

    def on_non_finite(self, run: Run, error: NonFiniteLossError) -> bool:
        """Go back if the weights are lost where a loss was not finite; tell whether the run may go on."""
        if not _is_finite(run):
            return self._go_back(run)
        self.passed_over += 1
        return True

    def on_epoch_end(self, run: Run) -> None:
        self._keep(run)
        made = self._measure(run)
        self.diversity = float(made.mean() / self._real.mean())
        run.record({"sample_diversity": self.diversity})
        on_real, on_fake = (run.metrics.get(f"train_discriminator_{kind}_acc", math.nan) for kind in ("real", "fake"))
        self.collapsed = collapsed_classes(made, self._real, self._labels)
        self.verdict = describe_health(self.diversity, on_real, on_fake, self.collapsed)
        if self.returned:
            self.verdict += f"; returned {self.returned} of {self.returns} times from weights that were not finite"
        if self.passed_over:
            times = "1 time" if self.passed_over == 1 else f"{self.passed_over} times"
            self.verdict += f"; {times} a loss was not finite while the weights were, which is passed over"
        if run.trainer.progress and rank() == 0:
            from tqdm import tqdm

            tqdm.write(f"epoch {run.history[-1]['epoch']}: {self.verdict}")  # above the bar, if there is one

    def will_record(self, metric: str) -> bool:
        return metric == "sample_diversity"

    def state_dict(self) -> dict[str, Any]:
        # A run that had ended before it is resumed makes no epoch more, and must still know its last line.
        said = {"verdict": self.verdict, "diversity": self.diversity, "collapsed": self.collapsed}
        said |= {"passed_over": self.passed_over}
        return {"returned": self.returned, "labels": self._labels, "real": self._real} | said

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returned, self._labels, self._real = state["returned"], state["labels"], state["real"]
        self.verdict, self.diversity, self.collapsed = state["verdict"], state["diversity"], [*state["collapsed"]]
        self.passed_over = state.get("passed_over", 0)  # which earlier checkpoints have not

    def _begin(self) -> None:
        self.verdict, self.diversity, self.returned, self.passed_over = "", math.nan, 0, 0
        self.collapsed = []
        self._good: dict[str, Any] = {}
        self._averages = None

    @torch.no_grad()
    def _measure(self, run: Run) -> Tensor:
        """Return the distance to the nearest (samples,) of images made from the same latents every time."""
        task: Any = run.task
        latents = torch.randn(len(self._labels), task.latent_dim, generator=torch.Generator().manual_seed(0))
        with evaluation_mode(task), run.trainer.precision.autocast():
            images = task.generate(latents.to(run.device), self._labels.to(run.device))
        return nearest_distances(images).cpu()

    def _keep(self, run: Run) -> None:
        if _is_finite(run):
            optimizers = {name: item.state_dict() for name, item in run.task.optimizers.items()}
            self._good = copy.deepcopy({"task": run.task.state_dict(), "optimizers": optimizers})
            self._averages = None

    def _go_back(self, run: Run) -> bool:
        if self.returned >= self.returns or not self._good:
            return False
        run.task.load_state_dict(self._good["task"])
        for name, optimizer in run.task.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(self._good["optimizers"][name]))  # which it would change in place
        for average, state in self._averages or ():
            average.load_state_dict(state)
        self.returned += 1
        return True


def describe_health(diversity: float, real_accuracy: float, fake_accuracy: float, collapsed: Sequence[int] = ()) -> str:
    """Say in words what the numbers of :class:`GANHealth` mean; shares in [0, 1], collapsed the labels of classes."""
    rights = f"the discriminator is right on {real_accuracy:.0%} of real and {fake_accuracy:.0%} of generated images"
    findings = []
    if not diversity >= COLLAPSED:  # also true for NaN
        findings.append(
            f"collapse: generated images are nearly the same, diversity {diversity:.2f} of real ones; "
            "in the first epochs this may pass, later it does not"
        )
    elif collapsed:
        findings.append(f"collapse in some classes: generated images of labels {[*collapsed]} are nearly the same")
    elif diversity < ALIKE:
        findings.append(f"generated images are much alike, diversity {diversity:.2f} of real ones")
    if min(real_accuracy, fake_accuracy) > SATURATED:
        findings.append(
            f"saturated: {rights}, so the generator learns little; spectral_norm, augment or a lower rate of the "
            "discriminator may help"
        )
    return "; ".join(findings) or f"healthy: diversity {diversity:.2f} of real images, {rights}"


def collapsed_classes(made: Tensor, real: Tensor, labels: Tensor) -> list[int]:
    """Return the labels of which there are some images (N,), those made being much nearer to others than real ones."""
    found = []
    for label in sorted({*labels.tolist()}):
        own = labels == label
        if own.sum() >= _FEWEST and not made[own].mean() >= COLLAPSED * real[own].mean():
            found.append(label)
    return found


def nearest_distances(images: Tensor, *, copies: bool = True) -> Tensor:
    """Return of each image (B, C, H, W) the distance (B,) to the nearest other one, both shrunk to 8 x 8 pixels.

    Without copies, images that are the same do not count as others: real ones may come twice.
    """
    small = F.adaptive_avg_pool2d(images.float(), _SIDE).flatten(1)  # (B, C * 64)
    distances = torch.cdist(small, small, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode loses zeros
    if not copies:
        distances = distances.masked_fill(distances == 0, torch.inf)
    return distances.fill_diagonal_(torch.inf).amin(1)


def _first(run: Run, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) of the first training batches that hold so many images; labels are 0 where none are."""
    seen = 0
    with undisturbed(run.train_loader) as loader, iterating(loader) as batches:
        for batch in batches:
            images, *rest = run.to_device(batch)
            yield images, rest[0] if rest else torch.zeros(len(images), dtype=torch.int64)
            seen += len(images)
            if seen >= count:
                return


def _is_finite(run: Run) -> bool:
    """Tell whether all weights and saved buffers are finite: BatchNorm's statistics may be lost before any weight.

    They may be lost on one rank alone, and all go back together.
    """
    state = [item for name, item in run.task.state_dict().items() if name not in run.unbounded]
    floats = [item for item in state if isinstance(item, Tensor) and item.is_floating_point() and item.numel()]
    # The largest entry, not the usual norm, as the square of a statistic that is only large may overflow.
    return on_every_rank(bool(get_total_norm(floats, torch.inf).isfinite()))
