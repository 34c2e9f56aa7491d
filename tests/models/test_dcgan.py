"""Generator and Discriminator: shapes, size, first weights, classes, and what does not fit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.models.dcgan import Discriminator, Generator


def make(kind: type[nn.Module], **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(**({"base_channels": 4, "image_size": 16} | options))


def latents(count: int = 3) -> Tensor:
    return torch.randn(count, 128, generator=torch.Generator().manual_seed(count))


def photos(count: int = 3, channels: int = 3, size: int = 16) -> Tensor:
    return latents(count)[:, :1, None, None].tanh() * torch.linspace(-1, 1, size).expand(count, channels, size, size)


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


LABELS = torch.tensor([0, 4, 2])


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (16, 1), (32, 3)])
def test_any_power_of_two_and_number_of_channels(size: int, channels: int, classes: Any) -> None:
    shape, labels = (
        {"image_size": size, "channels": channels, "num_classes": classes},
        () if classes is None else (LABELS,),
    )
    images = make(Generator, **shape)(latents(), *labels)
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    for spectral_norm in (False, True):
        assert make(Discriminator, spectral_norm=spectral_norm, **shape)(images, *labels).shape == (3,)


def test_sizes_are_those_of_the_layout() -> None:
    assert [layer.out_channels for layer in Generator().growing] == [128, 64, 3]
    assert [layer.out_channels for layer in Discriminator().shrinking] == [64, 128, 256]
    published = Generator(latent_dim=100, base_channels=128, image_size=64)
    assert [layer.in_channels for layer in published.growing] == [1024, 512, 256, 128]
    assert size_of(Generator(num_classes=10)) == 1_191_683
    assert size_of(Discriminator(num_classes=10)) == 665_921
    assert size_of(Discriminator(num_classes=10, spectral_norm=True)) == 665_537


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_every_parameter_gets_a_gradient(spectral_norm: bool) -> None:
    generator, judge = make(Generator, num_classes=5), make(Discriminator, num_classes=5, spectral_norm=spectral_norm)
    labels = torch.arange(10) % 5
    judge(generator(latents(10), labels), labels).square().sum().backward()
    for network in (generator, judge):
        assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_first_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    generator, judge = Generator(num_classes=10), Discriminator(num_classes=10)
    kernels = [
        p for net in (generator, judge) for name, p in net.named_parameters() if p.dim() > 1 and "norms" not in name
    ]
    assert len(kernels) == 1 + 3 + 3 + 1 + 1
    for kernel in kernels:
        assert kernel.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(kernel.mean().item()) < 2e-3
    scales = torch.cat([norm.scale.weight.flatten() for norm in generator.norms] + [judge.norms[2].weight])
    assert scales.mean().item() == pytest.approx(1, abs=0.002)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)
    shifts = [norm.shift.weight for norm in generator.norms] + [generator.bias, judge.norms[1].bias, judge.head.bias]
    assert not any(shift.any() for shift in shifts)


def test_spectral_norm_bounds_every_layer_and_replaces_batchnorm() -> None:
    judge = make(Discriminator, num_classes=5, spectral_norm=True)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in judge.modules())
    layers = [layer for layer in judge.modules() if isinstance(layer, nn.Conv2d | nn.Embedding)]
    assert len(layers) == 4
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)  # type: ignore[operator]
        assert largest.item() == pytest.approx(1, abs=0.05)


def test_the_class_matters_to_both() -> None:
    generator, judge = make(Generator, num_classes=5).eval(), make(Discriminator, num_classes=5).eval()
    assert not torch.allclose(generator(latents(), LABELS), generator(latents(), LABELS.roll(1)), atol=1e-6)
    assert not torch.allclose(judge(photos(), LABELS), judge(photos(), LABELS.roll(1)), atol=1e-6)


def test_the_logit_adds_the_class_to_the_head() -> None:
    judge = make(Discriminator, num_classes=5).eval()
    features: list[Tensor] = []
    judge.head.register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0]))
    logits = judge(photos(), LABELS)
    expected = judge.head(features[0]).flatten() + (judge.classes(LABELS) * features[0].sum((2, 3))).sum(1)
    torch.testing.assert_close(logits, expected)


def test_in_bf16_images_come_out_in_fp32() -> None:
    generator = make(Generator, num_classes=5).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(latents(), LABELS)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [Generator, Discriminator])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_size": 28}, ValueError, "image_size=28 is no power of two from 8 on; use 32, or 16 or 64"),
        ({"image_size": 4}, ValueError, "image_size=4 is no power of two"),
        ({"image_size": 0}, ValueError, "image_size=0 is no power of two"),
        ({"base_channels": 0}, ValueError, "base_channels=0 must be at least 1"),
        ({"num_classes": 0}, ValueError, "num_classes=0 must be at least 1"),
        ({"channels": "3"}, TypeError, "channels='3' is a str; give an integer"),
    ],
)
def test_wrong_arguments_are_named(
    kind: type[nn.Module], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(kind, **arguments)


def test_what_does_not_fit_is_named() -> None:
    generator, judge = make(Generator, num_classes=5), make(Discriminator, num_classes=5)
    with pytest.raises(ValueError, match=r"latents must be \(B, 128\); got shape \(3, 128, 1, 1\)"):
        generator(latents()[:, :, None, None], LABELS)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 16, 16\) in \[-1, 1\]; got shape \(3, 3, 32, 32\)"):
        judge(photos(size=32), LABELS)
    for network, first in ((generator, latents()), (judge, photos())):
        with pytest.raises(TypeError, match=r"(latents|images) is a ndarray; give a float tensor"):
            network(first.numpy(), LABELS)
        with pytest.raises(ValueError, match=r"labels run from 1 to 5; for num_classes=5 they must be 0 to 4$"):
            network(first, LABELS + 1)
        with pytest.raises(TypeError, match="labels=None, but the network has num_classes=5"):
            network(first)
        with pytest.raises(TypeError, match=r"(latents|images) must be of floating point; got torch\.int64"):
            network(first.long(), LABELS)
        with pytest.raises(TypeError, match=r"(latents|images) are torch\.float64 and the layer's weights"):
            network(first.double(), LABELS)
    with pytest.raises(ValueError, match="labels are given, but the network has num_classes=None"):
        make(Generator)(latents(), LABELS)
