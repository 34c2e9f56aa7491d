"""Is there a faster way than oneDNN's to the 3 x 3 convolutions of a ResNet-18 on this processor?

    python benchmarks/convolutions.py            # two minutes on two quiet cores
    python benchmarks/convolutions.py --tiny     # seconds, to see that it runs

A step of training spends most of its time in these. Contenders are the convolution as PyTorch calls it, in bf16 and
channels_last; the same as one product of matrices, of pixels' neighbourhoods with the weights; and Winograd's method,
which does the work of 36 products by 16, forward only (its backward pass would be two more of the kind). Rates count
the operations of the plain convolution without those on the zeros around the images, whatever a contender does, and
stand beside that of a product of two square matrices.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from report import Report, Spread, Table, arguments, destination, ratios, take_turns
from torch import Tensor
from torch.nn import functional as F

from cifarkit.models.winograd import FastConvolution

LAYERS = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels, in and out, and side of the images in a ResNet-18
BATCH = 128
BACK = "and back"


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the seconds of a call, after one that is not counted."""
    function()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def as_product(images: Tensor, weight: Tensor) -> Tensor:
    """Convolve by one product of matrices: (B, C, H, W) and (O, C, 3, 3) -> (B, O, H, W), in channels_last."""
    batch, channels, height, width = images.shape
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, H + 2, W + 2, C)
    neighbours = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # (B, H, W, C, 3, 3)
    patches = neighbours.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * channels)
    product = patches @ weight.permute(2, 3, 1, 0).reshape(9 * channels, -1)
    return product.view(batch, height, width, -1).permute(0, 3, 1, 2)


def plain(images: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(images, weight, padding=1)


def contenders(channels: int, side: int, batch: int, repeats: int) -> dict[str, Callable[[], float]]:
    """Return what is timed for one layer, by name."""
    images = torch.randn(batch, channels, side, side).bfloat16().to(memory_format=torch.channels_last)
    weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).bfloat16()
    weight = weight.to(memory_format=torch.channels_last)
    gradient = torch.randn_like(images)
    leaves = images.clone().requires_grad_(), weight.clone().requires_grad_()
    fast = FastConvolution(weight.float(), torch.zeros(channels), torch.bfloat16)
    ways = {"convolution": plain, "as a product": as_product}
    expected = plain(images.float(), weight.float())
    for way in (*(lambda x, f=function: f(x, weight) for function in ways.values()), fast):
        torch.testing.assert_close(way(images).float(), expected, atol=0.1, rtol=0.1)  # type: ignore[operator]

    def backward(way: Callable[[Tensor, Tensor], Tensor]) -> object:
        return torch.autograd.grad(way(*leaves), leaves, gradient)

    forward = {f"{name}, forward": (lambda f=function: f(images, weight)) for name, function in ways.items()}
    both = {f"{name}, {BACK}": (lambda f=function: backward(f)) for name, function in ways.items()}
    timed = forward | {"Winograd, forward": lambda: fast(images)} | both
    return {name: (lambda f=function: seconds(f, repeats)) for name, function in timed.items()}


def product_rate(side: int) -> float:
    """Return the operations a second of a product of square matrices, the best of ten."""
    matrix = torch.randn(side, side).bfloat16()
    return 2 * side**3 / min(seconds(lambda: matrix @ matrix, 1) for _ in range(10))


def main() -> None:
    options = arguments(__doc__, "convolutions").parse_args()
    batch, repeats, rounds, layers = (4, 1, 1, LAYERS[-1:]) if options.tiny else (BATCH, 5, 5, LAYERS)
    report = Report("convolutions", {"batch": batch, "repeats": repeats, "rounds": rounds})
    rows = []
    for channels, side in layers:
        operations = 2 * batch * channels**2 * (3 * side - 2) ** 2 / 1e9  # pixels at the edge have fewer neighbours
        found = take_turns(contenders(channels, side, batch, repeats), rounds)
        report.figures[f"{channels}, {side}"] = found
        for name, values in found.items():
            passes = name.partition(", ")[2]
            done = operations * (3 if passes == BACK else 1)  # the backward pass is twice the forward one
            rate = Spread.of([done / value for value in values]).text(0)
            times = ratios(found[f"convolution, {passes}"], values).text()
            rows.append([f"{channels}, {side} x {side}", name, rate, times])
    best = product_rate(64 if options.tiny else 2048) / 1e9
    report.settings = {**report.settings, "best_gflops": best}
    title = f"3 x 3 convolutions in bf16, {batch} images; a product of square matrices reaches {best:.0f} GFLOP/s"
    report.tables.append(Table(title, ["channels, side", "way", "GFLOP/s", "times as fast as the convolution"], rows))
    report.publish(destination(options, "convolutions"))


if __name__ == "__main__":
    main()
