"""Noise schedules: tables by hand, the posterior by Bayes, velocity and back, and diffusers as the judge."""

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cifarkit.diffusion import NoiseSchedule
from cifarkit.diffusion.arguments import step_before

SCHEDULES = [NoiseSchedule.linear(), NoiseSchedule.cosine()]


def pictures(count: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and noise, in float64."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    return images, torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)


def test_linear_is_a_product_of_evenly_falling_shares() -> None:
    share, expected = 1.0, []
    for t in range(1000):
        share *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        expected.append(share)
    np.testing.assert_allclose(NoiseSchedule.linear().alpha_bar, expected, rtol=1e-12)


def test_cosine_is_the_formula_until_its_cap() -> None:
    table = NoiseSchedule.cosine(50).alpha_bar.numpy()
    time = (np.arange(51) / 50 + 0.008) / 1.008
    share = np.cos(time * np.pi / 2) ** 2
    np.testing.assert_allclose(table[:-1], share[1:-1] / share[0], rtol=1e-12)
    np.testing.assert_allclose(table[-1], table[-2] * 0.001, rtol=1e-9)  # beta is capped at 0.999


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_tables_are_float64_and_fall(schedule: NoiseSchedule) -> None:
    assert schedule.alpha_bar.dtype == torch.float64
    assert schedule.alpha_bar.shape == (schedule.timesteps,) == (1000,)
    assert (schedule.alpha_bar.diff() < 0).all()
    assert torch.equal(copy.deepcopy(schedule).alpha_bar, schedule.alpha_bar)
    assert torch.equal(pickle.loads(pickle.dumps(schedule)).alpha_bar, schedule.alpha_bar)


def test_a_schedule_says_what_it_is() -> None:
    assert repr(NoiseSchedule.linear()) == "NoiseSchedule.linear(1000)"
    assert repr(NoiseSchedule.linear(100, beta_end=0.2)) == "NoiseSchedule.linear(100, beta_start=0.0001, beta_end=0.2)"
    assert repr(NoiseSchedule.cosine(10, offset=0.1)) == "NoiseSchedule.cosine(10, offset=0.1)"


def test_noise_is_added_as_the_closed_form_says() -> None:
    images, noise = pictures()
    t, schedule = torch.tensor([0, 9, 500, 999]), NoiseSchedule.linear()
    noisy = schedule.add_noise(images, noise, t)
    for index, step in enumerate(t.tolist()):
        left = schedule.alpha_bar[step].item()
        expected = left**0.5 * images[index] + (1 - left) ** 0.5 * noise[index]
        torch.testing.assert_close(noisy[index], expected)
        torch.testing.assert_close(schedule.add_noise(images, noise, step)[index], expected)


def test_noise_is_added_in_fp32_or_better() -> None:
    images, noise = pictures()
    schedule, t = NoiseSchedule.cosine(), torch.arange(4)
    for dtype, found in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        for step in (t, torch.tensor(3), 3):
            noisy = schedule.add_noise(images.to(dtype), noise.to(dtype), step)
            assert noisy.dtype == found
            assert schedule.noise_from_velocity(noise.to(dtype), noisy.to(dtype), step).dtype == found
            assert schedule.posterior(images.to(dtype), noisy.to(dtype), step)[0].dtype == found
    channels_last = images.float().contiguous(memory_format=torch.channels_last)
    noisy = schedule.add_noise(channels_last, noise.float().contiguous(memory_format=torch.channels_last), t)
    assert noisy.is_contiguous(memory_format=torch.channels_last)


def test_a_step_before_is_looked_at_also_where_t_is_elsewhere() -> None:
    t, images = torch.zeros(2, dtype=torch.int64, device="meta"), torch.zeros(2, 3, 4, 4)
    assert step_before(-1, t, images) == -1
    with pytest.raises(ValueError, match="previous=-5 must be at least -1, the image without noise"):
        step_before(-5, t, images)


@given(t=st.integers(0, 999), back=st.integers(1, 1000), which=st.sampled_from(SCHEDULES))
def test_the_posterior_is_that_of_bayes(t: int, back: int, which: NoiseSchedule) -> None:
    """Multiply the two normal densities q(x_t | x_s) and q(x_s | image): precisions add, means are weighted by them."""
    clean, x = pictures(1)
    previous = max(t - back, -1)
    left, before = which.alpha_bar[t].item(), which.alpha_bar[previous].item() if previous >= 0 else 1.0
    kept = left / before
    mean, variance = which.posterior(clean, x, t, previous)
    if previous < 0:
        assert torch.equal(mean, clean)
        assert variance == 0
        return
    precision = kept / (1 - kept) + 1 / (1 - before)
    expected = (kept**0.5 / (1 - kept) * x + before**0.5 / (1 - before) * clean) / precision
    assert variance.item() == pytest.approx(1 / precision, rel=1e-9)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)


def test_the_posterior_takes_a_step_for_each_image() -> None:
    clean, x = pictures(3)
    schedule, t = NoiseSchedule.linear(), torch.tensor([0, 1, 999])
    mean, variance = schedule.posterior(clean, x, t)
    assert variance.shape == (3, 1, 1, 1)
    for index, step in enumerate(t.tolist()):
        alone = schedule.posterior(clean[index : index + 1], x[index : index + 1], step)
        torch.testing.assert_close((mean[index : index + 1], variance[index].squeeze()), alone)


@pytest.mark.parametrize(
    ("t", "previous", "error", "message"),
    [
        (5, -3, ValueError, "previous=-3, t=5: previous must be at least -1 and below t"),
        (5, 5, ValueError, "previous=5, t=5: previous must be"),
        (torch.tensor([5, 7]), 6, ValueError, r"previous=6, t=\[5, 7\]: previous must be"),
        (torch.tensor([5, 7]), torch.tensor([4, 8]), ValueError, r"previous=\[4, 8\], t=\[5, 7\]: previous must be"),
        (5, torch.tensor([4]), ValueError, r"previous must be \(2,\), a step for each image; got shape \(1,\)"),
        (5, torch.tensor([4.0, 4.0]), TypeError, r"previous must be int64; got torch\.float32"),
        (5, 0.5, TypeError, r"previous=0\.5 is a float; give an integer"),
    ],
)
def test_the_step_before_must_be_before(t: Any, previous: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SCHEDULES[0].posterior(*pictures(2), t, previous)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_velocity_is_the_slope_along_the_circle_and_gives_the_noise_back(schedule: NoiseSchedule) -> None:
    images, noise = pictures()
    t = torch.tensor([0, 250, 750, 999])
    x, velocity = schedule.add_noise(images, noise, t), schedule.velocity(images, noise, t)
    torch.testing.assert_close(schedule.noise_from_velocity(velocity, x, t), noise)
    torch.testing.assert_close(x.square() + velocity.square(), images.square() + noise.square())  # a rotation


@given(timesteps=st.integers(1, 60), data=st.data())
def test_quadratic_steps_are_dense_where_little_noise_is_left(timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(2, timesteps)) if timesteps > 1 else 1
    pairs = NoiseSchedule.cosine(timesteps).pairs(steps, "quadratic")
    assert len(pairs) == steps
    assert pairs[0][0] == timesteps - 1
    assert pairs[-1] == (0, -1)
    assert all(t > after for t, after in pairs)
    if steps > 2:
        assert pairs[0][0] - pairs[0][1] >= pairs[-2][0] - pairs[-2][1]


@given(timesteps=st.integers(1, 60), data=st.data())
def test_steps_are_trailing(timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timesteps))
    pairs = NoiseSchedule.cosine(timesteps).pairs(steps)
    assert len(pairs) == steps
    assert pairs[0][0] == timesteps - 1
    assert pairs[-1][1] == -1
    assert [after for _, after in pairs[:-1]] == [t for t, _ in pairs[1:]]
    assert {t - after for t, after in pairs} <= {timesteps // steps, -(-timesteps // steps)} | {timesteps // steps + 2}
    assert all(t > after for t, after in pairs)


def test_steps_by_hand() -> None:
    assert NoiseSchedule.linear().pairs(4) == [(999, 749), (749, 499), (499, 249), (249, -1)]
    assert NoiseSchedule.linear().pairs(1000)[-2:] == [(1, 0), (0, -1)]
    assert NoiseSchedule.linear().pairs(4, "quadratic") == [(999, 444), (444, 111), (111, 0), (0, -1)]
    assert NoiseSchedule.linear().pairs(1000, "quadratic") == NoiseSchedule.linear().pairs(1000)
    assert NoiseSchedule.linear().pairs(1, "quadratic") == [(999, -1)]
    with pytest.raises(ValueError, match="spacing='even' is unknown; use 'trailing' or 'quadratic'"):
        NoiseSchedule.linear().pairs(4, "even")


def test_a_schedule_that_ends_too_early_warns() -> None:
    with pytest.warns(UserWarning, match=r"linear\(100\) still holds 36% of the image .* beta_end to about 0.2, or"):
        NoiseSchedule.linear(100)
    with pytest.warns(UserWarning, match=r"raise beta_end to about 0\.99, or"):
        NoiseSchedule.linear(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NoiseSchedule.linear(100, beta_end=0.2)
        NoiseSchedule.linear(5, beta_end=0.99)
        NoiseSchedule.cosine(4)


@pytest.mark.parametrize("table", [[], [[0.5]], [1.0, 0.5], [0.5, 0.0], [0.5, 0.6], [0.5, 0.5], [0.9, float("nan")]])
def test_what_is_no_table_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match=r"alpha_bar must (be \(T,\)|fall from below 1 to above 0)"):
        NoiseSchedule(torch.tensor(table))


@pytest.mark.parametrize("table", [None, "abc", [[0.5], [0.4, 0.3]]])
def test_a_table_of_another_kind_is_named(table: Any) -> None:
    with pytest.raises(TypeError, match=r"alpha_bar is a (NoneType|str|list); give a tensor \(T,\)"):
        NoiseSchedule(table)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (1000, ValueError, r"t=1000, but NoiseSchedule.linear\(1000\) has steps 0 to 999"),
        (torch.tensor([0, -1, 5, 6]), ValueError, "t runs from -1 to 6, but"),
        (torch.tensor([0, 1]), ValueError, r"t must be \(4,\), a step for each image; got shape \(2,\)"),
        (torch.rand(4), TypeError, r"t must be int64; got torch\.float32"),
        (0.5, TypeError, r"t=0\.5 is a float; give an integer"),
        ([1, 2, 3, 4], TypeError, r"t is a list; give an integer, or an int64 tensor \(B,\)"),
    ],
)
def test_steps_that_the_schedule_has_not_are_refused(t: Any, error: type[Exception], message: str) -> None:
    images, noise = pictures()
    for use in (SCHEDULES[0].add_noise, SCHEDULES[0].velocity, SCHEDULES[0].posterior):
        with pytest.raises(error, match=message):
            use(images, noise, t)


def test_images_that_do_not_fit_are_refused() -> None:
    images, noise = pictures()
    with pytest.raises(ValueError, match=r"noise must have the shape of the images, \(4, 3, 4, 4\); got \(2,"):
        SCHEDULES[0].add_noise(images, noise[:2], 5)
    with pytest.raises(ValueError, match="velocity must have the shape of the images"):
        SCHEDULES[0].noise_from_velocity(noise[:2], images, 5)
    with pytest.raises(TypeError, match=r"images must be float, in \[-1, 1\]; got torch.uint8"):
        SCHEDULES[0].add_noise(images.byte(), noise, 5)
    with pytest.raises(TypeError, match=r"noise must be float; got torch\.int64"):
        SCHEDULES[0].add_noise(images, noise.long(), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps=0 must be at least 1"),
        ({"beta_start": 0.0}, r"beta_start=0\.0 must be above 0"),
        ({"beta_end": 0.999}, r"beta_end=0\.999 is too large for timesteps=1000: nothing is left .*; give about 0\.02"),
        ({"beta_end": 1.0}, r"beta_end=1\.0 must be at least 0\.0001 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.linear(**options)
    with pytest.raises(ValueError, match=r"steps=1001 must be at most 1000, the timesteps of NoiseSchedule\.cosine"):
        NoiseSchedule.cosine().pairs(1001)
    with pytest.raises(ValueError, match="offset=-1 must be above 0"):
        NoiseSchedule.cosine(offset=-1)
    with pytest.raises(ValueError, match=r"that of NoiseSchedule\.linear\(1000, beta_start=1e-17.* does not"):
        NoiseSchedule.linear(beta_start=1e-17)
    with pytest.raises(ValueError, match=r"that of NoiseSchedule\.cosine\(1000, offset=1e\+300\) does not"):
        NoiseSchedule.cosine(offset=1e300)


@pytest.mark.parametrize(("ours", "theirs"), [(SCHEDULES[0], "linear"), (SCHEDULES[1], "squaredcos_cap_v2")], ids=repr)
def test_tables_and_noise_are_those_of_diffusers(ours: NoiseSchedule, theirs: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDPMScheduler(beta_schedule=theirs)
    images, noise, t = *(part.float() for part in pictures(1000)), torch.arange(1000)
    torch.testing.assert_close(ours.alpha_bar, peer.alphas_cumprod.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.add_noise(images, noise, t), peer.add_noise(images, noise, t), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("ours", "theirs"), [(SCHEDULES[0], "linear"), (SCHEDULES[1], "squaredcos_cap_v2")], ids=repr)
def test_the_posterior_is_that_of_diffusers(ours: NoiseSchedule, theirs: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    for exact in (False, True):  # given our float64 table, the peer agrees also where its fp32 one has no digits left
        peer = diffusers.DDPMScheduler(beta_schedule=theirs, clip_sample=False, prediction_type="sample")
        if exact:
            peer.alphas_cumprod, peer.one = ours.alpha_bar, torch.ones((), dtype=torch.float64)
        for t in (0, 1, 10, 50, 500, 998, 999) if exact else (50, 500, 998, 999):
            (clean, noise), generator = pictures(2), torch.Generator().manual_seed(0)
            x = ours.add_noise(clean, noise, t)
            mean, variance = ours.posterior(clean, x, t)
            step = peer.step(clean, t, x, generator=generator).prev_sample
            spread = peer._get_variance(t) if t else torch.zeros(())
            drawn = torch.randn(x.shape, generator=generator.manual_seed(0), dtype=x.dtype) * spread.sqrt()
            torch.testing.assert_close(mean, step - drawn, atol=1e-9 if exact else 1e-5, rtol=0)
            assert variance.item() == pytest.approx(spread.item(), abs=1e-12 if exact else 1e-5)


def test_arrays_are_refused() -> None:
    images, noise = (part.float() for part in pictures(2))
    with pytest.raises(TypeError, match="images is a ndarray; give a float tensor"):
        SCHEDULES[0].add_noise(images.numpy(), noise, 3)
    with pytest.raises(TypeError, match="noise is a ndarray; give a float tensor"):
        SCHEDULES[0].add_noise(images, noise.numpy(), 3)
