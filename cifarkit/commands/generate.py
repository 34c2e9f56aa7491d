"""Fill a folder with generated images, the same number of each class; started again it goes on.

python -m cifarkit generate runs/<a run of train --recipe ddpm> --per-class 500 --folder generated
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from cifarkit.commands.diffusion import read_recipe
from cifarkit.commands.shared import last_checkpoint, read_settings
from cifarkit.files import shown


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    flag = parser.add_argument
    flag("run_folder", metavar="RUN", help="folder of a trained diffusion model")
    flag("--folder", help="where the images go (default: RUN/generated)")
    flag("--per-class", type=int, default=100)
    flag("--steps", type=int, default=20, help="of DPM-Solver++")
    flag("--guidance", type=float, default=0.0, help="above 0: clearer classes, less variety")
    flag("--batch-size", type=int, default=100)
    flag("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Sample from the averaged network of the run."""
    from cifarkit import diffusion, generation
    from cifarkit.training import distributed, load_weights, own_part
    from cifarkit.training.precision import choose_device

    settings = read_settings(args.run_folder, "diffusion model")
    device = choose_device(distributed.own_device("auto"))
    folder, shape = Path(args.run_folder), settings["image_shape"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(side) is int and side > 0 for side in shape)):
        raise ValueError(f"the settings of {shown(folder)} are damaged: image_shape={shape!r} is no [C, H, W]")
    recipe = read_recipe(folder, settings)
    network, schedule = recipe.network(len(settings["classes"]), shape), recipe.noise_schedule
    load_weights(network, last_checkpoint(folder), average="ema").to(device)

    def sample(labels: Tensor, generator: generation.SampleGenerators) -> Tensor:
        noise = generator.normal(*shape, device=device)
        denoiser = recipe.denoiser(network, labels, guidance=args.guidance)
        return diffusion.sample_dpm_solver(denoiser, noise, schedule, steps=args.steps, spacing="quadratic")

    about = {"sampler": "DPM-Solver++ 2M, quadratic", "steps": args.steps, "guidance": args.guidance}
    about |= {"schedule": repr(schedule), "weights": generation.weights_hash(network)}
    folder = Path(args.folder or folder / "generated")
    choices = {"per_class": args.per_class, "batch_size": args.batch_size, "seed": args.seed}
    choices |= own_part()  # of torchrun, and so of the images
    made = generation.generate_dataset(sample, classes=settings["classes"], folder=folder, about=about, **choices)
    rank, several = choices["rank"], choices["world_size"] > 1
    manifest = "the last rank writes manifest.jsonl" if several else "each described by a line of its manifest.jsonl"
    print(f"{len(made):,} images{f' of rank {rank}' if several else ''} in {folder}, {manifest}")
    return 0
