"""The U-Net of denoising diffusion: what noise is in an image, given how much there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.checks import check_integer, check_number
from cifarkit.labels import check_labels
from cifarkit.models.dtypes import check_dtype
from cifarkit.models.sorted_attention import no_autocast
from cifarkit.models.unet_parts import (
    Convolution,
    Downsampling,
    ResidualBlock,
    Upsampling,
    convolution,
    group_norm,
    linear,
    zeroed,
)

_LONGEST_PERIOD = 10_000  # of the waves that encode the time, in diffusion steps over 2 pi


class UNet(nn.Module):
    """Predict the noise in images at given diffusion times, for given classes if built with them.

    Args:
        base_channels: a multiple of 4; 128 with multipliers=(1, 2, 2, 2) is DDPM's network of 35.7 M parameters.
        multipliers: channels of each level over base_channels; the side halves from level to level.
        num_classes: number of classes K; None takes no labels.
        blocks: residual blocks of a level on the way down; on the way up it has one more.
        attention_levels: levels with attention behind each block, from 0; the innermost block always has it. None is
            level 1, if there is one.
        heads: of each attention.
        dropout: share of the numbers dropped in each residual block, in [0, 1).
        patch: side of the squares of pixels that are folded into channels first and unfolded last; 2 saves time.
        channels: C of the images.
    Raises:
        TypeError, ValueError: if an argument is of another kind or out of range, also of ``forward``.
    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", appendix B.
    """

    def __init__(
        self,
        *,
        base_channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        num_classes: int | None = None,
        blocks: int = 2,
        attention_levels: Sequence[int] | None = None,
        heads: int = 1,
        dropout: float = 0.0,
        patch: int = 1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        base, factors = _check_base(base_channels), _check_integers("multipliers", multipliers, 1)
        if attention_levels is None:
            attention_levels = (1,) if len(factors) > 1 else ()
        attended = set(_check_integers("attention_levels", attention_levels, 0))
        if not factors or any(level >= len(factors) for level in attended):
            raise ValueError(
                f"multipliers={tuple(factors)} must hold one number for each level, and attention_levels="
                f"{tuple(sorted(attended))} only numbers below {len(factors)}"
            )
        self.num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 1)
        self.patch, self.channels = check_integer("patch", patch, 1), check_integer("channels", channels, 1)
        self.multiple = self.patch * 2 ** (len(factors) - 1)  # what the sides of an image must be a multiple of
        self.condition = _Condition(base, 4 * base, self.num_classes)
        rate, blocks = check_number("dropout", dropout, 0, 1, below=True), check_integer("blocks", blocks, 1)

        def block(before: int, after: int, attention: bool) -> ResidualBlock:
            return ResidualBlock(before, after, 4 * base, rate, heads if attention else None)

        self.first = convolution(self.channels * self.patch**2, base)
        self.down, self.middle, self.up = _build_ways(base, [base * item for item in factors], blocks, attended, block)
        self.norm = group_norm(base * factors[0])
        self.last = zeroed(convolution(base * factors[0], self.channels * self.patch**2))
        self._joined: tuple[Tensor, Tensor] | None = None  # weight and bias of all shifts, while accelerated

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise in images.

        Args:
            x: (B, C, H, W), noisy images of float.
            t: (B,) int64, how noisy they are.
            labels: (B,) int64, where num_classes means no label; None means no label for all.
        Returns:
            (B, C, H, W), in the dtype of x.
        """
        self._check(x, t)
        shifts = self._shifts(self.condition(t, labels))
        h = self.first(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        skips = [h]
        for step in self.down:
            h = step(h, next(shifts)) if isinstance(step, ResidualBlock) else step(h)
            skips.append(h)
        for step in self.middle:
            h = step(h, next(shifts))
        for step in self.up:
            h = step(torch.cat([h, skips.pop()], 1), next(shifts)) if isinstance(step, ResidualBlock) else step(h)
        h = self.last(F.silu(self.norm(h)))
        return (F.pixel_shuffle(h, self.patch) if self.patch > 1 else h).to(x.dtype)

    @contextmanager
    def accelerated(self) -> Iterator[None]:
        """Let a CPU predict faster for a while without gradients; weights must not change meanwhile.

        Convolutions are computed by :class:`FastConvolution`, and the times of all blocks by one matrix product; what
        both need is formed once. Results are equal but for rounding. Under autocast, open it inside.
        """
        weight = self.first.weight
        if weight.device.type != "cpu" or self._joined is not None:
            yield
            return
        lowered = torch.is_autocast_enabled("cpu") and weight.dtype != torch.float64  # which autocast leaves alone
        dtype = torch.get_autocast_dtype("cpu") if lowered else weight.dtype
        layers, shifts = [part for part in self.modules() if isinstance(part, Convolution)], self._blocks()
        try:
            with torch.no_grad():
                for layer in layers:
                    layer.accelerate(dtype)
                weights, biases = zip(*((block.shift.weight, block.shift.bias) for block in shifts), strict=True)
                self._joined = torch.cat(weights).to(dtype), torch.cat(biases).to(dtype)
            yield
        finally:
            self._joined = None
            for layer in layers:
                layer.fast = None

    def _blocks(self) -> list[ResidualBlock]:
        return [step for way in (self.down, self.middle, self.up) for step in way if isinstance(step, ResidualBlock)]

    def _shifts(self, condition: Tensor) -> Iterator[Tensor]:
        """Return what each block adds between its convolutions, (B, O) for the O channels of the block."""
        blocks = self._blocks()
        if self._joined is None or torch.is_grad_enabled():
            return (block.shift(condition) for block in blocks)
        weight, bias = self._joined
        joined = F.linear(condition.to(weight.dtype), weight, bias)  # (B, all O)
        return iter(torch.split(joined, [block.shift.out_features for block in blocks], 1))

    def _check(self, x: Tensor, t: Tensor) -> None:
        if not isinstance(x, Tensor) or not isinstance(t, Tensor):
            raise TypeError(f"x and t must be tensors; got a {type(x).__name__} and a {type(t).__name__}")
        if x.dim() != 4 or x.shape[1] != self.channels or x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(
                f"x must be (B, {self.channels}, H, W) with H and W multiples of {self.multiple}; "
                f"got shape {tuple(x.shape)}"
            )
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must be ({len(x)},), one time for each image; got shape {tuple(t.shape)}")
        if t.dtype == torch.bool or t.is_floating_point():
            raise TypeError(f"t must be int64, steps of the noise schedule; got {t.dtype}")
        check_dtype("x", x, self.first.weight)


def time_waves(t: Tensor, count: int) -> Tensor:
    """Encode times (B,) as sines and cosines of count / 2 periods, from 2 pi steps to 10,000 times as many.

    Shapes:
        t (B,) -> (B, count), float32.
    Source: Ho et al. 2020, after Vaswani et al. 2017, section 3.5.
    """
    half = count // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / max(half - 1, 1)
    angles = t[:, None].float() * torch.exp(-math.log(_LONGEST_PERIOD) * exponents)  # (B, count / 2)
    return torch.cat([angles.sin(), angles.cos()], 1)


class _Condition(nn.Module):
    """Turn times and labels into one vector (B, D) for all blocks, in fp32, for neighbouring times differ little."""

    def __init__(self, waves: int, dim: int, num_classes: int | None) -> None:
        super().__init__()
        self.waves, self.num_classes = waves, num_classes
        self.wide, self.deep = linear(waves, dim), linear(dim, dim)
        self.labels = None if num_classes is None else nn.Embedding(num_classes + 1, dim)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.3)  # about as strong as the time at first

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        check_labels(labels, len(t), self.num_classes, null=True)
        with no_autocast(t):
            h: Tensor = self.deep(F.silu(self.wide(time_waves(t, self.waves).to(self.wide.weight.dtype))))
            if self.labels is not None and self.num_classes is not None:
                if labels is None:
                    labels = torch.full_like(t, self.num_classes, dtype=torch.int64)
                h = h + self.labels(labels)
            return F.silu(h)


def _build_ways(
    width: int, widths: Sequence[int], blocks: int, attended: set[int], block: Callable[[int, int, bool], ResidualBlock]
) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
    """Return the steps down, between and up; each block on the way up also takes what a step down or the start made."""
    down, up, skipped = nn.ModuleList(), nn.ModuleList(), [width]  # skipped: channels of what the way up will meet
    for level, after in enumerate(widths):
        if level:
            down.append(Downsampling(width))
            skipped.append(width)
        for _ in range(blocks):
            down.append(block(width, after, level in attended))
            width = after
            skipped.append(width)
    middle = nn.ModuleList([block(width, width, True), block(width, width, False)])
    for level, after in reversed([*enumerate(widths)]):
        for _ in range(blocks + 1):
            up.append(block(width + skipped.pop(), after, level in attended))
            width = after
        if level:
            up.append(Upsampling(width))
    return down, middle, up


def _check_base(base_channels: int) -> int:
    base = check_integer("base_channels", base_channels, 4)
    if base % 4:
        raise ValueError(f"base_channels={base} must be a multiple of 4")
    return base


def _check_integers(name: str, values: Sequence[int], least: int) -> list[int]:
    if not isinstance(values, Sequence):
        raise TypeError(f"{name}={values!r} is a {type(values).__name__}; give a tuple, one number for each level")
    return [check_integer(f"{name}[{index}]", value, least) for index, value in enumerate(values)]
