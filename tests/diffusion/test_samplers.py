"""Samplers: exact with an oracle, one formula in three, batches that do not matter, and diffusers as the judge."""

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarkit.diffusion import (
    Denoiser,
    NoiseSchedule,
    draw_noise,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
)

LINEAR, COSINE = NoiseSchedule.linear(), NoiseSchedule.cosine()
SAMPLERS = [sample_ddpm, sample_ddim, sample_dpm_solver]
Sampler = Callable[..., Tensor]


def start(count: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return draw_noise((count, 3, 4, 4), torch.Generator().manual_seed(seed)).to(dtype)


def oracle(images: Tensor, schedule: NoiseSchedule) -> Denoiser:
    """Say exactly what is noise, given which images are meant."""

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        left = schedule.alpha_bar[t].reshape(-1, 1, 1, 1).to(x.dtype)
        return (x - left.sqrt() * images) / (1 - left).sqrt()

    return denoiser


def wavy(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser that depends on both in a curved way, image by image."""
    return 0.9 * x + 0.3 * torch.sin(2 * x.flip(3) + t.reshape(-1, 1, 1, 1).to(x.dtype) / 300)


@given(
    steps=st.integers(1, 100),
    schedule=st.sampled_from([NoiseSchedule.linear(100, beta_end=0.2), NoiseSchedule.cosine(100)]),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    clamp=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_ddim_with_an_oracle_returns_the_exact_image(
    steps: int, schedule: NoiseSchedule, eta: float, clamp: bool
) -> None:
    images = start(2, torch.float64, seed=1).tanh()
    noise = start(2, torch.float64)
    found = sample_ddim(oracle(images, schedule), noise, schedule, steps=steps, eta=eta, clamp=clamp)
    torch.testing.assert_close(found, images, atol=1e-9, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 333])
def test_every_sampler_with_an_oracle_returns_the_image_in_fp32(steps: int) -> None:
    images = start(2, seed=1).tanh()
    for sampler in SAMPLERS:
        found = sampler(oracle(images, LINEAR), start(), LINEAR, steps=steps)
        # At its last step the image is 1/157 of x: what fp32 rounds off in the noise comes back 157 times as large.
        torch.testing.assert_close(found, images, atol=2e-4 if steps == 1 else 1e-5, rtol=0)
        assert found.dtype == torch.float32


def test_ddim_at_eta_1_is_ddpm() -> None:
    for steps in (3, 20):
        ddim = sample_ddim(wavy, start(), COSINE, steps=steps, eta=1.0, generator=torch.Generator().manual_seed(3))
        ddpm = sample_ddpm(wavy, start(), COSINE, steps=steps, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(ddim, ddpm, atol=1e-5, rtol=0)


def test_ddpm_takes_every_step_unless_told() -> None:
    seen: list[int] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (2,)
        seen.append(int(t[0]))
        return wavy(x, t)

    sample_ddpm(watched, start(), NoiseSchedule.cosine(12))
    assert seen == list(range(11, -1, -1))


def test_the_variance_is_the_one_asked_for() -> None:
    """Of two steps, the first ends in noise of that variance alone if x starts at 0, and the last divides by 0.9."""
    schedule, found = NoiseSchedule(torch.tensor([0.9, 0.4])), []
    for variance in ("small", "large"):
        generator, noise = torch.Generator().manual_seed(0), torch.zeros(20_000, 1, 1, 1)
        options = {"variance": variance, "clamp": False, "generator": generator}
        found.append(sample_ddpm(lambda x, t: torch.zeros_like(x), noise, schedule, **options).var().item() * 0.9)
    beta = 1 - 0.4 / 0.9
    assert found == pytest.approx([beta * 0.1 / 0.6, beta], rel=0.03)


def test_one_step_is_the_first_estimate_of_the_image() -> None:
    noise, left = start(), LINEAR.alpha_bar[-1].item()
    clean = (noise - (1 - left) ** 0.5 * wavy(noise, torch.full((2,), 999))) / left**0.5
    for sampler in SAMPLERS:
        torch.testing.assert_close(sampler(wavy, noise, LINEAR, steps=1), clean.clamp(-1, 1))
        torch.testing.assert_close(sampler(wavy, noise, LINEAR, steps=1, clamp=False), clean)


def test_the_second_order_pays() -> None:
    """Of the way of many steps, DPM-Solver++ at 20 comes closer to the end than DDIM does."""
    exact = sample_ddim(wavy, start(), LINEAR, steps=500, clamp=False)
    first = sample_ddim(wavy, start(), LINEAR, steps=20, clamp=False)
    second = sample_dpm_solver(wavy, start(), LINEAR, steps=20, clamp=False)
    assert (second - exact).norm() < 0.5 * (first - exact).norm()


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=repr)
def test_quadratic_steps_keep_fine_detail(schedule: NoiseSchedule) -> None:
    """Of normal images of deviation 0.05 the best denoiser is known; its samples should deviate as much."""

    def exact(x: Tensor, t: Tensor) -> Tensor:
        left = schedule.alpha_bar[t].reshape(-1, 1, 1, 1).to(x.dtype)
        return x * (1 - left).sqrt() / (left * 0.05**2 + 1 - left)

    noise = start(200, torch.float64)
    kept = {
        spacing: (sample_dpm_solver(exact, noise, schedule, steps=20, spacing=spacing) / noise).mean().item() / 0.05
        for spacing in ("trailing", "quadratic")
    }
    assert kept["quadratic"] == pytest.approx(1, abs=0.05)
    assert kept["trailing"] < 0.6


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=repr)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_stay_within_bounds_unless_told(sampler: Sampler, schedule: NoiseSchedule) -> None:
    def bad(x: Tensor, t: Tensor) -> Tensor:
        return -3 * x

    assert sampler(bad, start(), schedule, steps=10).abs().max() == 1
    assert sampler(bad, start(), schedule, steps=10, clamp=False).abs().max() > 1


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
def test_an_image_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    options = {"steps": 12} if sampler is sample_ddpm else {"steps": 12, "eta": 0.7}

    def made(seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sampler(wavy, draw_noise((len(seeds), 3, 4, 4), generators), LINEAR, generator=generators, **options)

    together, alone = made([3, 1, 4, 5]), torch.cat([made([3, 1]), made([4]), made([5])])
    assert torch.equal(together, alone)
    assert torch.equal(together.flip(0), made([5, 4, 1, 3]))


def test_a_generator_makes_it_repeatable_and_none_uses_the_global_state() -> None:
    def made(generator: torch.Generator | None) -> Tensor:
        return sample_ddpm(wavy, start(), LINEAR, steps=5, generator=generator)

    assert torch.equal(made(torch.Generator().manual_seed(1)), made(torch.Generator().manual_seed(1)))
    assert not torch.equal(made(torch.Generator().manual_seed(1)), made(torch.Generator().manual_seed(2)))
    torch.manual_seed(7)
    first = made(None)
    torch.manual_seed(7)
    assert torch.equal(first, made(None))


def test_the_state_is_fp32_or_better_and_has_no_graph() -> None:
    seen: list[torch.dtype] = []
    weight = torch.ones((), requires_grad=True)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.dtype)
        return (weight * x).bfloat16()

    for noise, dtype in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        for sampler in SAMPLERS:
            images = sampler(denoiser, start().to(noise), LINEAR, steps=2)
            assert images.dtype == dtype
            assert not images.requires_grad
            assert set(seen) == {dtype}
        seen.clear()


def test_noise_is_left_alone() -> None:
    noise = start()
    before = noise.clone()
    for sampler in SAMPLERS:
        sampler(wavy, noise, LINEAR, steps=3)
        assert torch.equal(noise, before)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_shows_on_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    sample_ddim(wavy, start(), LINEAR, steps=3, progress=True)
    assert ("3/3" in stream.getvalue()) == terminal
    sample_dpm_solver(wavy, start(), LINEAR, steps=4)
    assert "4/4" not in stream.getvalue()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps=0 must be at least 1"),
        ({"steps": 1001}, ValueError, "steps=1001 must be at most 1000, the timesteps of NoiseSchedule"),
        ({"schedule": 1000}, TypeError, "schedule is a int; give the NoiseSchedule of the training"),
        ({"noise": [1.0]}, TypeError, r"noise must be a float tensor \(B, C, H, W\); got list"),
        ({"noise": start().long()}, TypeError, r"noise must be .*; got torch.int64 of shape \(2, 3, 4, 4\)"),
        ({"denoiser": None}, TypeError, r"denoiser is None; give as_denoiser\(model\)"),
        (
            {"denoiser": lambda x, t: x[:1]},
            ValueError,
            r"denoiser must return .*; it returned shape \(1, 3, 4, 4\)",
        ),
        ({"denoiser": lambda x, t: None}, ValueError, "it returned a NoneType"),
    ],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_mistakes_are_named(sampler: Sampler, options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"denoiser": wavy, "noise": start(), "schedule": LINEAR, "steps": 2} | options
    with pytest.raises(error, match=message):
        sampler(**arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eta": 1.5}, ValueError, r"eta=1\.5 must be at least 0 and at most 1"),
        (
            {"eta": 1.0, "generator": 3},
            TypeError,
            "generator=3 is neither a torch.Generator nor a list of one",
        ),
        ({"generator": "bad"}, TypeError, "generator='bad' is neither"),
        ({"generator": []}, ValueError, "generator holds 0 for 2 samples"),
        ({"eta": 1.0, "generator": [torch.Generator()]}, ValueError, "generator holds 1 for 2 samples; give one, or"),
    ],
)
def test_mistakes_about_noise_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample_ddim(wavy, start(), LINEAR, steps=2, **options)
    with pytest.raises(ValueError, match="variance='big' is unknown; use 'small' or 'large'"):
        sample_ddpm(wavy, start(), LINEAR, variance="big")


def peer_walk(scheduler: Any, steps: int, noise: Tensor, **options: Any) -> Tensor:
    """Sample as the peer does it, with the same denoiser; return all states (S + 1, B, C, H, W)."""
    scheduler.set_timesteps(steps)
    states = [noise]
    for t in scheduler.timesteps:
        x = states[-1]
        states.append(scheduler.step(wavy(x, t.repeat(len(x))), t, x, **options).prev_sample)
    return torch.stack(states)


def own_walk(sampler: Sampler, noise: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Sample and return all states (S + 1, B, C, H, W)."""
    states: list[Tensor] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return wavy(x, t)

    last = sampler(watched, noise, *arguments, **options)
    return torch.stack([*states, last])


def give_table(scheduler: Any, schedule: NoiseSchedule) -> None:
    """Put our float64 table in place of the peer's fp32 one, whose rounding shows after hundreds of steps."""
    one = torch.ones((), dtype=torch.float64)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod, scheduler.one = schedule.alpha_bar, one, one


TABLES = {"linear": LINEAR, "squaredcos_cap_v2": COSINE}


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_that_of_diffusers(steps: int, eta: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler(timestep_spacing="trailing")
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    theirs = peer_walk(peer, steps, start(), eta=eta, use_clipped_model_output=True, generator=generators[0])
    ours = own_walk(sample_ddim, start(), LINEAR, steps=steps, eta=eta, generator=generators[1])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("steps", [10, 50, 250])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_that_of_diffusers_to_the_last_digits(table: str, steps: int, clamp: bool, eta: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler(clip_sample=clamp, timestep_spacing="trailing")
    give_table(peer, TABLES[table])
    noise, generators = start(2, torch.float64), [torch.Generator().manual_seed(0) for _ in range(2)]
    theirs = peer_walk(peer, steps, noise, eta=eta, use_clipped_model_output=True, generator=generators[0])
    schedule, options = TABLES[table], {"steps": steps, "eta": eta, "clamp": clamp}
    ours = own_walk(sample_ddim, noise, schedule, generator=generators[1], **options)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(("table", "clamp"), [("linear", True), ("linear", False), ("squaredcos_cap_v2", True)])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_dpm_solver_is_that_of_diffusers(table: str, steps: int, clamp: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DPMSolverMultistepScheduler(
        beta_schedule=table, timestep_spacing="trailing", thresholding=clamp, dynamic_thresholding_ratio=0.0
    )  # that share of the pixels, none, is let out of [-1, 1]: a plain clamp
    ours = own_walk(sample_dpm_solver, start(), TABLES[table], steps=steps, clamp=clamp)
    theirs = peer_walk(peer, steps, start())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_that_of_diffusers(variance: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = NoiseSchedule.linear(100, beta_end=0.2)
    peer = diffusers.DDPMScheduler(100, variance_type=f"fixed_{variance}")
    give_table(peer, schedule)
    noise, generators = start(2, torch.float64), [torch.Generator().manual_seed(0) for _ in range(2)]
    theirs = peer_walk(peer, 100, noise, generator=generators[0])
    ours = own_walk(sample_ddpm, noise, schedule, variance=variance, generator=generators[1])
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
