"""At which noise the images of a batch are trained, and validated."""

from __future__ import annotations

import torch
from torch import Tensor

from cifarkit.checks import check_number
from cifarkit.diffusion.schedule import NoiseSchedule

_ODD = 6364136223846793005  # Knuth's multiplier, whose powers in 64 bits are as good as random
_EDGE = 1e-6  # of the unit interval, where the normal distribution runs to infinity


def draw_steps(
    schedule: NoiseSchedule, count: int, log_snr: tuple[float, float] | None, device: torch.device
) -> Tensor:
    """Draw a step of the schedule for each of count images, (count,) int64.

    Args:
        log_snr: mean and deviation of a normal distribution of the log of signal over noise. Each of count equally
            likely parts of it is drawn from once, so that batches differ less. None draws all steps alike.
    """
    if log_snr is None:
        return torch.randint(schedule.timesteps, (count,), device=device)
    places = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
    mean, deviation = log_snr
    return nearest_steps(schedule, mean + deviation * torch.special.ndtri(places.clamp(_EDGE, 1 - _EDGE)))


def nearest_steps(schedule: NoiseSchedule, log_snr: Tensor) -> Tensor:
    """Return the steps (B,) whose log(alpha_bar / (1 - alpha_bar)) is nearest to the numbers (B,)."""
    falling = (schedule.alpha_bar / (1 - schedule.alpha_bar)).log().to(log_snr.device, torch.float32)
    borders = (falling[1:] + falling[:-1]) / 2  # where one step ends and the next begins
    return torch.searchsorted(-borders, -log_snr.float())


def fixed_noise(images: Tensor, timesteps: int) -> tuple[Tensor, Tensor]:
    """Return noise like the images (B, C, H, W) and steps (B,), those of an image seeded by its pixels."""
    bits = images.float().flatten(1).contiguous().view(torch.int32).long()  # (B, C * H * W)
    powers = torch.full(bits.shape[1:], _ODD, device=bits.device).cumprod(0)  # wraps around, as does the sum
    seeds = (bits * powers).sum(1)
    seeds = seeds ^ (seeds >> 32)  # a generator heeds the lower half only
    noise, t, generator = torch.empty(images.shape), torch.empty(len(images), dtype=torch.int64), torch.Generator()
    for index, seed in enumerate(seeds.tolist()):
        generator.manual_seed(seed)
        t[index] = torch.randint(timesteps, (), generator=generator)
        noise[index] = torch.randn(images.shape[1:], generator=generator)
    return noise.to(images), t.to(images.device)


def check_log_snr(log_snr: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return mean and deviation as floats, or raise."""
    if log_snr is None:
        return None
    if not isinstance(log_snr, tuple | list) or len(log_snr) != 2:
        raise ValueError(f"log_snr={log_snr!r} must be (mean, deviation), such as (2.4, 2.4)")
    return check_number("log_snr[0]", log_snr[0]), check_number("log_snr[1]", log_snr[1], 0, above=True)
