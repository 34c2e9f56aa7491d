"""Seconds an image and step of sampling from DDPM's U-Net, against diffusers as it comes and at its best.

    python benchmarks/sampler.py
    python benchmarks/sampler.py --tiny     # seconds, to see that it runs

All sides draw images of 32 x 32 by ancestral sampling from random weights, 16 images at a time, with U-Nets of the same
size: 35.7 million parameters, widths 128, 256, 256, 256, attention at 16 x 16. A measurement is one whole call of the
sampler divided by its images and steps, so it includes what a call costs once, as the casts of the weights to bf16. In
"bf16, channels_last" diffusers runs under autocast with its network in that layout, which a user has to know of; "all
in bf16" casts its weights, and with them the state of the sampler, which rounds the images. Its network normalises 32
groups of 4 or 8 channels, as DDPM's does, ours groups of at least 16, which a CPU is faster with; what that is worth
shows the side "of 8 groups". That both sides take the same steps to the same images, given the same predictions, is
shown by tests/diffusion.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch import nn

from cifarkit.diffusion import NoiseSchedule, as_denoiser, draw_noise, sample_ddpm
from cifarkit.inference import cpu_has_bf16
from cifarkit.memory import keep_freed_memory
from cifarkit.models.unet import UNet

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # diffusers needs nothing from the net here

BATCH_SIZE, SIDE, MULTIPLIERS = 16, 32, (1, 2, 2, 2)
OURS, PLAIN, BEST = "cifarkit", "diffusers, as it comes", "diffusers, bf16, channels_last"
CAST, GROUPED = "diffusers, all in bf16, channels_last", "diffusers, bf16, channels_last, of 8 groups"
TARGETS = {PLAIN: 1 / 3, BEST: 0.8, CAST: 0.8}  # side -> share of its time that ours may take
Measure = Callable[[], float]


def ours(width: int, steps: int, precision: str) -> tuple[nn.Module, Measure]:
    model, schedule = UNet(base_channels=width, multipliers=MULTIPLIERS), NoiseSchedule.linear()

    def measure() -> float:
        start = time.perf_counter()
        noise = draw_noise((BATCH_SIZE, 3, SIDE, SIDE), torch.Generator().manual_seed(0))
        sample_ddpm(as_denoiser(model, precision=precision), noise, schedule, steps=steps)
        return (time.perf_counter() - start) / (BATCH_SIZE * steps)

    return model, measure


def theirs(
    width: int, steps: int, *, tuned: bool, groups: int = 32, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Measure]:
    """Build DDPM's network for CIFAR-10 as diffusers publishes it, in its own pipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    model = UNet2DModel(
        sample_size=SIDE,
        block_out_channels=[width * factor for factor in MULTIPLIERS],
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        norm_eps=1e-6,
        norm_num_groups=groups,
    ).eval()
    pipeline = DDPMPipeline(model, DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    if tuned:
        model.to(dtype=dtype, memory_format=torch.channels_last)

    def measure() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned and dtype == torch.float32):
            generator = torch.Generator().manual_seed(0)
            pipeline(BATCH_SIZE, generator=generator, num_inference_steps=steps, output_type="pt")
        return (time.perf_counter() - start) / (BATCH_SIZE * steps)

    return model, measure


def contenders(width: int, steps: int) -> dict[str, tuple[nn.Module, Measure]]:
    sides = {OURS: ours(width, steps, "auto"), "cifarkit, fp32": ours(width, steps, "fp32")}
    try:
        sides |= {PLAIN: theirs(width, steps, tuned=False), BEST: theirs(width, steps, tuned=True)}
        return sides | {
            CAST: theirs(width, steps, tuned=True, dtype=torch.bfloat16),
            GROUPED: theirs(width, steps, tuned=True, groups=8),
        }
    except ImportError:
        print("diffusers is not installed and left out")
        return sides


def main() -> None:
    options = arguments(__doc__, "sampler").parse_args()
    width, steps, rounds = (32, 2, 2) if options.tiny else (128, 5, 9)
    keep_freed_memory()  # for all sides alike, as anything that trained or loaded here before would have done
    sides = contenders(width, steps)
    for _, measure in sides.values():
        measure()  # the first call chooses kernels and maps memory
    seconds = take_turns({name: measure for name, (_, measure) in sides.items()}, rounds)
    sizes = {name: sum(weight.numel() for weight in model.parameters()) for name, (model, _) in sides.items()}
    settings = {"batch_size": BATCH_SIZE, "side": SIDE, "width": width, "steps": steps, "rounds": rounds}
    report = Report("sampler", settings | {"native_bf16": cpu_has_bf16()}, packages=("diffusers",))
    rows = [
        [name, f"{sizes[name] / 1e6:.1f}", Spread.of([1e3 * x for x in values]).text(1), _share(seconds, name)]
        for name, values in seconds.items()
    ]
    columns = ["sampler", "million parameters", "ms an image and step", "cifarkit's share of it"]
    report.tables.append(Table(f"ancestral sampling, batch {BATCH_SIZE}, {SIDE} × {SIDE}", columns, rows))
    report.figures |= {"seconds_per_image_and_step": seconds, "parameters": sizes}
    for name, most in TARGETS.items():
        if name in seconds:
            share = ratios(seconds[OURS], seconds[name])
            report.aim(f"at most {most:.2f} of {name}", share.text(2), share.median <= most)
    report.publish(destination(options, "sampler"))


def _share(seconds: dict[str, list[float]], name: str) -> str:
    return "" if name == OURS else ratios(seconds[OURS], seconds[name]).text(2)


if __name__ == "__main__":
    main()
