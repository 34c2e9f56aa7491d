"""Keep of a run's checkpoint what others need of it: one network in bf16, the configuration, and how long it took.

    python benchmarks/keep_weights.py runs/<run>/last.pt ddpm.pt --average ema

The file is a sixth of the checkpoint, or less, and ``cifarkit.load_weights`` reads it as it read that; a training
cannot go on from it. A network that runs in bf16 multiplies by weights in bf16 in any case.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from cifarkit import load_checkpoint
from cifarkit.training.archive import write_checkpoint


def keep(checkpoint: dict[str, Any], average: str | None) -> dict[str, Any]:
    """Return the smaller checkpoint, with the averaged weights of that name or else those of the last update.

    Raises:
        SystemExit: if there is no such average, or no network.
    """
    kept = {name: checkpoint[name] for name in ("format_version", "run", "config")}
    if average is None:
        return kept | {"task": shrink(checkpoint["task"]), "callbacks": []}
    averages = [item for item in checkpoint["callbacks"] if item["state"].get("kind") == average]
    if not averages:
        raise SystemExit(f"--average {average}: the checkpoint holds no such average")
    state = averages[0]["state"]
    return kept | {"task": {}, "callbacks": [averages[0] | {"state": state | {"averaged": shrink(state["averaged"])}}]}


def shrink(tensors: dict[str, Any]) -> dict[str, Any]:
    """Turn fp32 tensors of the network called "model", which a choosing task has beside its proxy, into bf16."""
    chosen = {name: item for name, item in tensors.items() if name.startswith("model.")}
    if not chosen:
        raise SystemExit("there is no network called model; if only its average was kept, say --average ema")
    return {name: item.bfloat16() if item.dtype == torch.float32 else item for name, item in chosen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--average", choices=["ema", "swa"], help="keep averaged weights")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(keep(load_checkpoint(args.checkpoint), args.average), args.out)
    print(f"{args.checkpoint.stat().st_size / 1e6:.1f} MB became {args.out.stat().st_size / 1e6:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
