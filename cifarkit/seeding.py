"""Random numbers that can be repeated: one seed for everything, states to save, draws keyed by sample."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarkit.checks import check_integer

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, the step of SplitMix64
_MASK = (1 << 64) - 1


def seed_everything(seed: int, deterministic: bool = False) -> int:
    """Seed Python, NumPy and PyTorch on every device, and return the seed.

    Args:
        seed: any integer from 0 to 2**32 - 1, the range NumPy accepts.
        deterministic: also ask PyTorch for deterministic kernels, which are slower on CUDA; an operation that
            has none raises when it runs.
    Raises:
        TypeError: if the seed is no integer.
        ValueError: if it is out of range.
    """
    seed = check_integer("seed", seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} is out of range; give an integer from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    return seed


@dataclass(frozen=True)
class RngState:
    """A snapshot of every global random state: Python, NumPy, PyTorch on the CPU and on each CUDA device."""

    python: Any
    numpy: Any
    torch_cpu: Tensor
    torch_cuda: list[Tensor]

    @classmethod
    def capture(cls) -> RngState:
        """Read the current states."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        for device, state in zip(range(torch.cuda.device_count()), self.torch_cuda, strict=False):  # there may be fewer
            torch.cuda.set_rng_state(state, device)

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors only, so that a checkpoint loads with ``weights_only=True``."""
        name, keys, position, has_gauss, gauss = self.numpy
        return {
            "python": self.python,
            "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
            "torch_cpu": self.torch_cpu,
            "torch_cuda": self.torch_cuda,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RngState:
        """Rebuild a snapshot from :meth:`state_dict`."""
        name, keys, position, has_gauss, gauss = state["numpy"]
        numpy_state = (name, keys.numpy().astype(np.uint32), position, has_gauss, gauss)
        version, internal, gauss_next = state["python"]
        return cls((version, tuple(internal), gauss_next), numpy_state, state["torch_cpu"], state["torch_cuda"])


class Draws:
    """Random numbers for the samples of one batch, keyed by (seed, epoch, sample).

    Every sample has a stream of its own, so what it draws does not depend on the batch it came in, on the batch
    size, on the shard or on where a run was resumed. Successive calls continue the streams. The numbers are made
    on the CPU, so they are the same for every device.

    Args:
        seed: any integer; negative ones are taken modulo 2**64.
        epoch: the epoch the draws belong to, from 0.
        samples: (B,) int64, the index of each sample in its dataset.
        device: where the drawn tensors are put.
        stage: the epoch by which ``ByEpoch`` chooses, if another: generated images go round in epochs of their own.
    Raises:
        TypeError: if seed is no integer.
    Source: SplitMix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """

    def __init__(
        self, seed: int, epoch: int, samples: Tensor, *, device: torch.device | str = "cpu", stage: int | None = None
    ) -> None:
        self.seed, self.epoch, self.stage = check_integer("seed", seed), epoch, stage
        self.samples, self.device = samples, torch.device(device)
        key = _mix(_mix(np.array([self.seed & _MASK], np.uint64)) + np.uint64(epoch))
        self._keys = _mix(key + samples.cpu().numpy().astype(np.uint64) * _GOLDEN)  # (B,)
        self._drawn = 0  # numbers taken from each stream so far

    @classmethod
    def random(cls, batch_size: int, *, device: torch.device | str = "cpu") -> Draws:
        """Make draws for a batch whose samples have no index, keyed by PyTorch's global random state."""
        seed = int(torch.randint(0, 2**62, ()).item())
        return cls(seed, 0, torch.arange(batch_size), device=device)

    def __len__(self) -> int:
        return len(self._keys)

    def at_epoch(self, epoch: int) -> Draws:
        """Return fresh draws for the same samples in another epoch: ``at_epoch(0)`` never changes over a run."""
        return Draws(self.seed, epoch, self.samples, device=self.device, stage=self.stage)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw float32 (B, *shape), uniform in [low, high)."""
        scaled = self._unit(shape) * np.float32(high - low) + np.float32(low)
        # Rounding may reach high, which is left out.
        return self._tensor(np.minimum(scaled, np.nextafter(np.float32(high), np.float32(low))))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw int64 (B, *shape), uniform in [low, high), a span of at most 2**32."""
        if high <= low:
            raise ValueError(f"integers(low={low}, high={high}) has nothing to draw from; high must exceed low")
        if high - low > 2**32:
            raise ValueError(f"integers(low={low}, high={high}) spans more than the 2**32 values a draw can tell apart")
        scaled = (self._bits(shape) >> np.uint64(32)) * np.uint64(high - low) >> np.uint64(32)
        return self._tensor(scaled.astype(np.int64) + low)

    def bernoulli(self, p: float, *shape: int) -> Tensor:
        """Draw bool (B, *shape), true with probability p."""
        return self.uniform(*shape) < p

    def normal(self, *shape: int) -> Tensor:
        """Draw float32 (B, *shape), standard normal (Box and Muller 1958)."""
        first, second = (torch.from_numpy(self._unit(shape)) for _ in range(2))
        return self._tensor((-2 * (1 - first).log()).sqrt() * (2 * torch.pi * second).cos())

    def _unit(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Take float32 (B, *shape), uniform in [0, 1)."""
        unit: NDArray[np.float32] = (self._bits(shape) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        return unit

    def _bits(self, shape: tuple[int, ...]) -> NDArray[np.uint64]:
        """Take the next prod(shape) numbers of every stream: uint64 (B, *shape)."""
        count = int(np.prod(shape, dtype=np.int64))
        steps = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        bits: NDArray[np.uint64] = _mix(self._keys[:, None] + steps * _GOLDEN)
        return bits.reshape(len(self), *shape)  # (B, count) -> (B, *shape)

    def _tensor(self, values: NDArray[Any] | Tensor) -> Tensor:
        waits = self.device.type != "cuda"  # which copies such memory at once
        return torch.as_tensor(values).to(self.device, non_blocking=not waits)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits; arrays of NumPy's unsigned integers wrap around without a warning."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
