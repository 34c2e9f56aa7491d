"""How images turn into noise, in closed form."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import torch
from torch import Tensor

from cifarkit.checks import check_integer, check_number
from cifarkit.diffusion.arguments import can_be_looked_at, check_same_shape, check_steps, step_before

_MOST_LEFT = 0.01  # share of the image's variance at the last step from which on samples are visibly off


class NoiseSchedule:
    """Say how much of an image is left, and how much noise there is, at each of T steps.

    x_t = sqrt(alpha_bar[t]) image + sqrt(1 - alpha_bar[t]) noise, t from 0 to T - 1; before step 0, at t = -1, there is
    the image itself. A schedule is no module: no average of weights, cast or checkpoint can touch its table. Wherever
    ``t`` is asked for, it is int64 (B,), or one int for all images.

    Args:
        alpha_bar: (T,) share of the image's variance that is left, falling, above 0 and below 1.
        name: how ``repr`` shows it.
    Attributes:
        alpha_bar: (T,) float64, on the CPU.
        timesteps: T.
    Raises:
        TypeError, ValueError: if alpha_bar is no such table.
    """

    def __init__(self, alpha_bar: Tensor, name: str = "NoiseSchedule(...)") -> None:
        try:
            table = torch.as_tensor(alpha_bar).detach().double().cpu()
        except (TypeError, ValueError, RuntimeError):  # text, None or rows of several lengths
            raise TypeError(f"alpha_bar is a {type(alpha_bar).__name__}; give a tensor (T,)") from None
        if table.dim() != 1 or not len(table):
            raise ValueError(f"alpha_bar must be (T,), T at least 1; got shape {tuple(table.shape)}")
        # At 0 the noise would say nothing about the image, and the first step of every sampler would divide by it.
        if not (table[-1] > 0 and table[0] < 1 and bool((table.diff() < 0).all())):
            raise ValueError(f"alpha_bar must fall from below 1 to above 0 at every step; that of {name} does not")
        self._table = torch.cat([table, table.new_ones(1)])  # (T + 1,): index -1 is the image without noise
        self._tables = {self._table.device: self._table}
        self.alpha_bar, self.timesteps, self.name = self._table[:-1], len(table), name

    @classmethod
    def linear(cls, timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Let the variance beta of the added noise grow evenly from beta_start to beta_end.

        Fewer than 1,000 steps need a larger beta_end, or the last step is not yet noise: about 20 / timesteps.

        Raises:
            TypeError, ValueError: if a number is out of range.
        Source: Ho et al. 2020, "Denoising diffusion probabilistic models", section 4.
        """
        timesteps = check_integer("timesteps", timesteps, 1)
        beta_start = check_number("beta_start", beta_start, 0, 1, above=True, below=True)
        beta_end = check_number("beta_end", beta_end, beta_start, 1, below=True)
        beta = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
        given = "" if (beta_start, beta_end) == (1e-4, 0.02) else f", beta_start={beta_start}, beta_end={beta_end}"
        alpha_bar = (1 - beta).cumprod(0)
        if not alpha_bar[-1]:
            raise ValueError(
                f"beta_end={beta_end} is too large for timesteps={timesteps}: nothing is left of the image, not even "
                f"in float64; give about {min(20 / timesteps, 0.99):.2g}"
            )
        schedule = cls(alpha_bar, f"NoiseSchedule.linear({timesteps}{given})")
        if (left := schedule.alpha_bar[-1].item()) > _MOST_LEFT:
            warnings.warn(
                f"{schedule!r} still holds {left:.0%} of the image at its last step, but samplers start from pure "
                f"noise; raise beta_end to about {min(20 / timesteps, 0.99):.2g}, or use NoiseSchedule.cosine",
                stacklevel=2,
            )
        return schedule

    @classmethod
    def cosine(cls, timesteps: int = 1000, *, offset: float = 0.008) -> NoiseSchedule:
        """Let the share of the image fall like a squared cosine, each step's beta at most 0.999.

        Raises:
            TypeError, ValueError: if a number is out of range.
        Source: Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", equation 17.
        """
        timesteps = check_integer("timesteps", timesteps, 1)
        offset = check_number("offset", offset, 0, above=True)
        time = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        share = ((time + offset) / (1 + offset) * (math.pi / 2)).cos().square()
        beta = (1 - share[1:] / share[:-1]).clamp(max=0.999)
        given = "" if offset == 0.008 else f", offset={offset}"
        return cls((1 - beta).cumprod(0), f"NoiseSchedule.cosine({timesteps}{given})")

    def __repr__(self) -> str:
        return self.name

    def pairs(self, steps: int, spacing: str = "trailing") -> list[tuple[int, int]]:
        """Return the (t, next t) of a sampler's steps, from T - 1 down to -1.

        Args:
            steps: how many, at most T.
            spacing: "trailing" is even and ends well above 0, "quadratic" the denser the less noise is left and ends
                at 0, so that fine detail is drawn also in few steps.
        Raises:
            ValueError: if steps is below 1 or above T, or spacing is unknown.
        Source: Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", table 2; quadratic:
            Song et al. 2020, "Denoising diffusion implicit models", appendix D.2.
        """
        if spacing not in ("trailing", "quadratic"):
            raise ValueError(f"spacing={spacing!r} is unknown; use 'trailing' or 'quadratic'")
        steps = check_integer("steps", steps, 1)
        if steps > self.timesteps:
            raise ValueError(f"steps={steps} must be at most {self.timesteps}, the timesteps of {self!r}")
        if spacing == "quadratic" and steps > 1:
            times = [-1]
            for index in range(steps):  # each step at least one on, where rounding would repeat one
                times.append(max(times[-1] + 1, round((self.timesteps - 1) * (index / (steps - 1)) ** 2)))
            return list(pairwise(times[::-1]))
        return list(pairwise(round(self.timesteps * left / steps) - 1 for left in range(steps, -1, -1)))

    def rates(self, t: int | Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the image and of the noise at t, in a shape that multiplies images (B, ...)."""
        left = self._left(self._checked(t, images), images)
        return _fit(left.sqrt(), images), _fit((1 - left).sqrt(), images)

    def add_noise(self, x: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """Return the images x (B, C, H, W) at step t, with noise of the same shape.

        Raises:
            TypeError: if x is not float, or t not int64.
            ValueError: if noise has another shape, or t another length or a step that the schedule has not.
        Source: Ho et al. 2020, equation 4.
        """
        signal, sigma = self.rates(t, check_same_shape(x, noise, "noise"))
        return signal * x + sigma * noise

    def posterior(
        self, clean: Tensor, x: Tensor, t: int | Tensor, previous: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the step before t, given its x and the clean image (B, C, H, W).

        Args:
            previous: an earlier step than t, from -1; None is t - 1.
        Raises:
            TypeError, ValueError: as in :func:`add_noise`, and if previous is no such step.
        Source: Ho et al. 2020, equations 6 and 7.
        """
        t = self._checked(t, check_same_shape(x, clean, "clean"))
        left, before = self._left(t, x), self._left(step_before(previous, t, x), x)
        kept = left / before  # of the variance, from the step before to t
        of_clean = before.sqrt() * (1 - kept) / (1 - left)
        of_x = kept.sqrt() * (1 - before) / (1 - left)
        variance = (1 - before) / (1 - left) * (1 - kept)
        return _fit(of_clean, x) * clean + _fit(of_x, x) * x, _fit(variance, x)

    def velocity(self, images: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """Return sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) images, the target "velocity".

        Source: Salimans and Ho 2022, "Progressive distillation for fast sampling", appendix D.
        """
        signal, sigma = self.rates(t, check_same_shape(images, noise, "noise"))
        return signal * noise - sigma * images

    def noise_from_velocity(self, velocity: Tensor, x: Tensor, t: int | Tensor) -> Tensor:
        """Return the noise in x (B, C, H, W) at step t that goes with a velocity."""
        signal, sigma = self.rates(t, check_same_shape(x, velocity, "velocity"))
        return signal * velocity + sigma * x

    def _left(self, t: int | Tensor, images: Tensor) -> Tensor:
        """Look up alpha_bar, 1 at -1, in float64: () for an int, (B, 1, 1, 1) for (B,)."""
        if isinstance(t, int):
            return self._table[t]
        if t.device not in self._tables:
            with torch.inference_mode(False):  # a table made in inference mode could not be used in training
                self._tables[t.device] = self._table.to(t.device)
        left = self._tables[t.device][t]
        return left.reshape(-1, *[1] * (images.dim() - 1)) if t.dim() else left  # (B,) -> (B, 1, 1, 1)

    def _checked(self, t: int | Tensor, images: Tensor) -> int | Tensor:
        if not images.is_floating_point():
            raise TypeError(f"images must be float, in [-1, 1]; got {images.dtype}")
        t = check_steps("t", t, images)
        if not can_be_looked_at(t):
            return t
        low, high = (int(edge) for edge in torch.as_tensor(t).aminmax())
        if low < 0 or high >= self.timesteps:
            found = f"t={low}" if low == high else f"t runs from {low} to {high}"
            raise ValueError(f"{found}, but {self!r} has steps 0 to {self.timesteps - 1}")
        return t


def _fit(factor: Tensor, images: Tensor) -> Tensor:
    """Cast a factor to the dtype that images are computed in, fp32 or better, and give it their dimensions."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    factor = factor.to(images.device, dtype)
    # A number without dimensions would not raise the precision of images in bf16.
    return factor.reshape([1] * images.dim()) if dtype != images.dtype and not factor.dim() else factor
