"""The noise of a batch: a distribution of log SNR, and the steps of the schedule next to it."""

import pytest
import torch

from cifarkit.diffusion import NoiseSchedule
from cifarkit.diffusion.noise_levels import draw_steps, nearest_steps

CPU = torch.device("cpu")


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule.cosine(7)])
def test_the_nearest_step_is_that_of_a_search_through_all(schedule: NoiseSchedule) -> None:
    table = (schedule.alpha_bar / (1 - schedule.alpha_bar)).log()
    assert torch.equal(nearest_steps(schedule, table), torch.arange(schedule.timesteps))
    numbers = 6 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    far = (table[nearest_steps(schedule, numbers)] - numbers).abs()
    torch.testing.assert_close(far, (table - numbers[:, None]).abs().min(1).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("log_snr", [None, (2.4, 2.4), (-50.0, 1.0), (50.0, 1.0)])
@pytest.mark.parametrize("count", [1, 64])
def test_every_image_gets_a_step_that_exists(log_snr: tuple[float, float] | None, count: int) -> None:
    schedule = NoiseSchedule.cosine(20)
    steps = draw_steps(schedule, count, log_snr, CPU)
    assert steps.shape == (count,)
    assert steps.dtype == torch.int64
    assert steps.min() >= 0
    assert steps.max() < 20
