"""From noise to images: functions over a denoiser, the caller owns noise and seed.

To watch the way, wrap the denoiser: each of its calls sees the state of one step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from cifarkit.checks import check_callable, check_number
from cifarkit.diffusion.arguments import check_generators
from cifarkit.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, H, W), t (B,) int64) -> the noise in x, of the same shape; see :func:`as_denoiser`."""
Generators = torch.Generator | Sequence[torch.Generator] | None
_Move = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]  # (x, clean, estimate, t, next t) -> x at next t


@torch.no_grad()
def sample_ddpm(
    denoiser: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int | None = None,
    spacing: str = "trailing",
    variance: str = "small",
    clamp: bool = True,
    generator: Generators = None,
    progress: bool = False,
) -> Tensor:
    """Walk noise (B, C, H, W) back to images in [-1, 1] by drawing each step from the posterior of the one before.

    Args:
        denoiser, noise, schedule, spacing, clamp, generator, progress: as in :func:`sample_ddim`.
        steps: calls of the denoiser; None is all of the schedule's.
        variance: of the noise added at a step: "small" is the posterior's, "large" that of the forward step, better
            at 1,000 steps and useless at few (Song et al. 2020, table 1).
    Raises:
        TypeError, ValueError: as in :func:`sample_ddim`; and ValueError if variance is unknown.
    Source: Ho et al. 2020, algorithm 2.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance={variance!r} is unknown; use 'small' or 'large'")

    def move(x: Tensor, clean: Tensor, estimate: Tensor, t: int, after: int) -> Tensor:
        mean, spread = schedule.posterior(clean, x, t, after)
        if after < 0:
            return mean
        if variance == "large":
            spread = 1 - schedule.alpha_bar[t] / schedule.alpha_bar[after]
        return mean + math.sqrt(spread.item()) * _noise_like(x, generator)

    return _walk(denoiser, noise, schedule, _pairs(schedule, steps, spacing), clamp, progress, move, generator)


@torch.no_grad()
def sample_ddim(
    denoiser: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int = 50,
    spacing: str = "trailing",
    eta: float = 0.0,
    clamp: bool = True,
    generator: Generators = None,
    progress: bool = False,
) -> Tensor:
    """Walk noise (B, C, H, W) back to images in [-1, 1], deterministically if eta is 0.

    Args:
        denoiser: predicts the noise in x.
        noise: standard normal, see :func:`draw_noise`.
        schedule: of the training.
        steps: calls of the denoiser, at most the schedule's T.
        spacing: of the steps, "trailing" or "quadratic", see :meth:`NoiseSchedule.pairs`. With few steps quadratic
            ones keep more fine detail; trailing ones are what other libraries take.
        eta: share of a DDPM step's fresh noise, in [0, 1].
        clamp: keep every estimate of the image in [-1, 1], and take the noise to be what then remains of x.
        generator: of the fresh noise; one a sample makes an image independent of the batch it is made in.
        progress: show a bar if stdout is a terminal.
    Raises:
        TypeError, ValueError: if an argument is of the wrong kind, out of range, or does not fit the noise.
    Source: Song et al. 2020, "Denoising diffusion implicit models", equations 12 and 16.
    """
    eta = check_number("eta", eta, 0, 1)

    def move(x: Tensor, clean: Tensor, estimate: Tensor, t: int, after: int) -> Tensor:
        if after < 0:
            return clean
        left, before = schedule.alpha_bar[t].item(), schedule.alpha_bar[after].item()
        variance = eta**2 * (1 - before) / (1 - left) * (1 - left / before)
        x = math.sqrt(before) * clean + math.sqrt(max(1 - before - variance, 0)) * estimate
        return x + math.sqrt(variance) * _noise_like(x, generator) if eta else x

    return _walk(denoiser, noise, schedule, _pairs(schedule, steps, spacing), clamp, progress, move, generator)


@torch.no_grad()
def sample_dpm_solver(
    denoiser: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int = 20,
    spacing: str = "trailing",
    clamp: bool = True,
    progress: bool = False,
) -> Tensor:
    """Walk noise (B, C, H, W) back to images in [-1, 1] in few steps, by DPM-Solver++ (2M).

    Each step looks at the last two estimates of the image; the first has only one, and the last, where the logarithm
    of the signal-to-noise ratio is infinite, returns its own.

    Args:
        denoiser, noise, schedule, steps, spacing, clamp, progress: as in :func:`sample_ddim`.
    Raises:
        TypeError, ValueError: as in :func:`sample_ddim`.
    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """
    past: tuple[Tensor, float] | None = None  # the last estimate, and the stride that began there

    def move(x: Tensor, clean: Tensor, estimate: Tensor, t: int, after: int) -> Tensor:
        nonlocal past
        if after < 0:
            return clean
        left, before = schedule.alpha_bar[t].item(), schedule.alpha_bar[after].item()
        sigma, sigma_after = math.sqrt(1 - left), math.sqrt(1 - before)
        stride = math.log(sigma * math.sqrt(before) / (sigma_after * math.sqrt(left)))  # of log(signal / sigma)
        towards = clean if past is None else clean + stride / (2 * past[1]) * (clean - past[0])
        past = clean, stride
        return sigma_after / sigma * x - math.sqrt(before) * math.expm1(-stride) * towards

    return _walk(denoiser, noise, schedule, _pairs(schedule, steps, spacing), clamp, progress, move)


def draw_noise(
    shape: Sequence[int],
    generator: Generators = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal numbers of a shape (B, C, H, W), from one generator or from one a sample.

    The numbers are made where their generator lives, so a CPU generator gives the same on every device.

    Raises:
        TypeError: if generator is neither.
        ValueError: if there are not B generators.
    """
    check_generators(generator, shape[0])
    if not isinstance(generator, Sequence):  # asked first: a sequence of generators may be a generator as well
        home = device if generator is None else generator.device
        return torch.randn(*shape, generator=generator, dtype=dtype, device=home).to(device)
    samples = [torch.randn(*shape[1:], generator=item, dtype=dtype, device=item.device) for item in generator]
    return torch.stack(samples).to(device)


def _noise_like(x: Tensor, generator: Generators) -> Tensor:
    return draw_noise(x.shape, generator, device=x.device, dtype=x.dtype)


def _pairs(schedule: NoiseSchedule, steps: int | None, spacing: str) -> list[tuple[int, int]]:
    """Return the (t, next t) of a walk, of all the schedule's steps if steps is None."""
    if not isinstance(schedule, NoiseSchedule):
        kind = type(schedule).__name__
        raise TypeError(f"schedule is a {kind}; give the NoiseSchedule of the training, after denoiser and noise")
    return schedule.pairs(schedule.timesteps if steps is None else steps, spacing)


def _walk(
    denoiser: Denoiser,
    noise: Tensor,
    schedule: NoiseSchedule,
    pairs: list[tuple[int, int]],
    clamp: bool,
    progress: bool,
    move: _Move,
    generator: Generators = None,
) -> Tensor:
    """Estimate the image at each step and let ``move`` go on from there; the state is fp32 or better."""
    check_callable("denoiser", denoiser, "give as_denoiser(model), or a function of x and t that predicts the noise")
    if not isinstance(noise, Tensor) or not noise.is_floating_point() or not noise.dim():
        found = f"{noise.dtype} of shape {tuple(noise.shape)}" if isinstance(noise, Tensor) else type(noise).__name__
        raise TypeError(f"noise must be a float tensor (B, C, H, W); got {found}")
    check_generators(generator, len(noise))
    x = noise.to(torch.promote_types(noise.dtype, torch.float32))
    session = getattr(denoiser, "session", nullcontext)  # a network may keep what it needs from call to call
    with session():
        for t, after in _with_bar(pairs, progress):
            estimate = _estimate(denoiser, x, t)
            left = schedule.alpha_bar[t].item()
            signal, sigma = math.sqrt(left), math.sqrt(1 - left)
            clean = (x - sigma * estimate) / signal
            if clamp:
                clean = clean.clamp(-1, 1)
                estimate = (x - signal * clean) / sigma
            x = move(x, clean, estimate, t, after)
    return x


def _estimate(denoiser: Denoiser, x: Tensor, t: int) -> Tensor:
    estimate = denoiser(x, torch.full((len(x),), t, device=x.device))
    if not isinstance(estimate, Tensor) or estimate.shape != x.shape:
        found = f"shape {tuple(estimate.shape)}" if isinstance(estimate, Tensor) else f"a {type(estimate).__name__}"
        raise ValueError(f"denoiser must return the noise in x, shape {tuple(x.shape)}; it returned {found}")
    return estimate.to(x.dtype)


def _with_bar(pairs: list[tuple[int, int]], progress: bool) -> Iterable[tuple[int, int]]:
    if not (progress and sys.stdout.isatty()):
        return pairs
    from tqdm import tqdm

    bar: Iterable[tuple[int, int]] = tqdm(pairs, unit="step", dynamic_ncols=True, file=sys.stdout)
    return bar
