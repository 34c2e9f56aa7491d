"""UNet: shapes, published size, conditions, what starts at zero, layout and precision."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.models.unet import UNet, time_waves
from cifarkit.models.unet_parts import PixelAttention, Upsampling

T = torch.tensor([0, 500, 999])


def tiny(**options: Any) -> UNet:
    """A small network whose zeros are moved, as training does, so that everything matters."""
    torch.manual_seed(0)
    model = UNet(**({"base_channels": 8, "multipliers": (1, 2), "blocks": 1} | options))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def noisy(count: int = 3, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(count))


def count(**options: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(**options).parameters())


@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize(("patch", "channels", "height", "width"), [(1, 3, 8, 8), (2, 3, 8, 12), (4, 1, 16, 8)])
def test_the_prediction_has_the_shape_of_the_images(
    classes: Any, patch: int, channels: int, height: int, width: int
) -> None:
    model, images = tiny(num_classes=classes, patch=patch, channels=channels), noisy(3, channels, height, width)
    assert model(images, T).shape == images.shape


def test_the_published_network_has_its_35_7_million_parameters() -> None:
    assert count(base_channels=128, multipliers=(1, 2, 2, 2)) == 35_746_307
    assert count() == 6_472_195
    assert count(num_classes=10) == count() + 11 * 256
    assert count(base_channels=32) == 1_624_323


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny(num_classes=5, patch=2)
    model(noisy(), T, torch.tensor([0, 5, 3])).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_fresh_network_predicts_zero_and_its_blocks_add_nothing() -> None:
    torch.manual_seed(0)
    model = UNet(base_channels=8, multipliers=(1, 2), blocks=1)
    assert not model(noisy(), T).any()
    features = torch.randn(2, 16, 4, 4)
    assert torch.equal(model.middle[0](features, torch.randn(2, 16)), features)


def test_time_and_label_matter_and_label_k_is_no_label() -> None:
    model, images = tiny(num_classes=5), noisy()
    plain = model(images, T)
    assert not torch.allclose(model(images, T.flip(0))[0], plain[0], atol=1e-4)
    assert not torch.allclose(model(images, T, torch.zeros(3, dtype=torch.int64)), plain, atol=1e-4)
    assert torch.equal(model(images, T, torch.full((3,), 5)), plain)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model, images, labels = tiny(num_classes=5), noisy(), torch.tensor([1, 5, 2])
    alone = torch.cat([model(images[i : i + 1], T[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(images, T, labels), alone, rtol=1e-4, atol=1e-5)


def test_the_layout_of_the_images_is_kept_throughout() -> None:
    model, layouts = tiny(patch=2).to(memory_format=torch.channels_last), []
    for part in model.modules():
        part.register_forward_hook(lambda part, inputs, output: layouts.append(output) if output.dim() == 4 else None)
    expected = tiny(patch=2)(noisy(), T)
    with torch.no_grad():
        torch.testing.assert_close(model(noisy().to(memory_format=torch.channels_last), T), expected)
    assert len(layouts) > 20
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in layouts)


def test_under_autocast_the_condition_stays_in_fp32_and_so_does_the_result() -> None:
    model, images, seen = tiny(), noisy(), []
    model.condition.register_forward_hook(lambda part, inputs, output: seen.append(output))
    exact = model(images, T)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images, T)
    assert torch.equal(seen[0], seen[1])
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    assert model.bfloat16()(images.bfloat16(), T).dtype == torch.bfloat16


def test_dropout_works_in_training_alone() -> None:
    model, images = tiny(dropout=0.5), noisy()
    assert not torch.equal(model(images, T), model(images, T))
    model.eval()
    assert torch.equal(model(images, T), model(images, T))


def test_waves_run_from_one_step_to_ten_thousand() -> None:
    waves = time_waves(T, 16)
    assert waves.shape == (3, 16)
    assert waves.dtype == torch.float32
    torch.testing.assert_close(waves[:, 0], T.float().sin())
    torch.testing.assert_close(waves[:, 15], (T / 10_000).cos())


def test_it_learns_a_batch_by_heart() -> None:
    model, images, target = tiny(num_classes=3), noisy(), noisy().flip(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = nn.functional.mse_loss(model(images, T, torch.arange(3)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base_channels": 10}, ValueError, "base_channels=10 must be a multiple of 4"),
        ({"base_channels": 0}, ValueError, "base_channels=0 must be at least 4"),
        ({"multipliers": ()}, ValueError, r"multipliers=\(\) must hold one number for each level"),
        ({"multipliers": 2}, TypeError, "multipliers=2 is a int; give a tuple"),
        ({"multipliers": (1, 0)}, ValueError, r"multipliers\[1\]=0 must be at least 1"),
        ({"attention_levels": (2,)}, ValueError, r"attention_levels=\(2,\) only numbers below 2"),
        ({"blocks": 0}, ValueError, "blocks=0 must be at least 1"),
        ({"heads": 3}, ValueError, "heads=3 must divide dim=16"),
        ({"dropout": 1.0}, ValueError, "dropout=1.0 must be at least 0 and below 1"),
        ({"patch": 0}, ValueError, "patch=0 must be at least 1"),
        ({"num_classes": 0}, ValueError, "num_classes=0 must be at least 1"),
        ({"channels": 1.5}, TypeError, "channels=1.5 is a float; give an integer"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny(**arguments)


def test_a_network_of_one_level_needs_no_further_argument() -> None:
    model = UNet(base_channels=4, multipliers=(1,))
    assert model(noisy(), T).shape == noisy().shape


def test_what_does_not_fit_is_named() -> None:
    model = tiny(num_classes=5, patch=2)
    with pytest.raises(TypeError, match="x and t must be tensors; got a ndarray and a Tensor"):
        model(noisy().numpy(), T)
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\) with H and W multiples of 4; got .*\(3, 3, 8, 6\)"):
        model(noisy(width=6), T)
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\)"):
        model(noisy(channels=1), T)
    with pytest.raises(ValueError, match=r"t must be \(3,\), one time for each image; got shape \(\)"):
        model(noisy(), torch.tensor(5))
    with pytest.raises(ValueError, match="0 to 6; for num_classes=5 they must be 0 to 4, or 5 for none"):
        model(noisy(), T, torch.tensor([0, 6, 1]))
    with pytest.raises(ValueError, match="labels are given, but the network has num_classes=None"):
        tiny()(noisy(), T, torch.tensor([0, 1, 1]))
    with pytest.raises(TypeError, match=r"x must be of floating point; got torch\.uint8"):
        model(noisy().byte(), T)
    for t in (T > 1, T / 1000):
        with pytest.raises(TypeError, match=rf"t must be int64, steps of the noise schedule; got {t.dtype}"):
            model(noisy(), t)
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):  # which leaves float64 as it is
        with context, pytest.raises(TypeError, match=r"x are torch\.float64 and the layer's weights torch\.float32"):
            model(noisy().double(), T)


def test_shapes_are_known_without_numbers() -> None:
    with torch.device("meta"):
        model = UNet(base_channels=8, multipliers=(1, 2), attention_levels=(0,))
        images, t = torch.empty(2, 3, 8, 8), torch.empty(2, dtype=torch.int64)
        assert model(images, t).shape == images.shape


def wide() -> UNet:
    """Wide enough for fast convolutions, with attention over more pixels than the fused kernel is used for."""
    return tiny(base_channels=128, multipliers=(1, 1), attention_levels=(0,), num_classes=5)


def test_accelerated_it_predicts_the_same_and_is_left_as_it_was() -> None:
    model, images, labels = wide(), noisy(height=16, width=16), torch.tensor([1, 5, 2])
    with torch.no_grad():
        expected = model(images, T, labels)
        with model.accelerated():
            found = model(images, T, labels)
        assert torch.equal(model(images, T, labels), expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert not torch.equal(found, expected)  # another way to compute it, so rounded otherwise


def test_accelerated_in_double_precision_it_ignores_an_autocast() -> None:
    model, images = wide().double(), noisy(height=16, width=16).double()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(images, T)
        with model.accelerated():
            torch.testing.assert_close(model(images, T), expected)


@pytest.mark.parametrize("amx", [False, True])
def test_with_amx_bf16_is_convolved_directly_and_fp32_fast(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    monkeypatch.setattr("cifarkit.models.unet_parts.cpu_has_amx", lambda: amx)
    model = wide()

    def fast() -> bool:
        with model.accelerated():
            return any(getattr(part, "fast", None) is not None for part in model.modules())

    with torch.autocast("cpu", torch.bfloat16):
        assert fast() is not amx
    assert fast()


def test_every_parameter_gets_a_gradient_within_acceleration_too() -> None:
    model, images = wide(), noisy()
    with model.accelerated():
        model(images, T).square().mean().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters())


def test_enlarging_in_one_is_enlarging_and_convolving() -> None:
    layer, x = Upsampling(8), torch.randn(2, 8, 4, 6)
    weight, bias = layer.convolution.weight, layer.convolution.bias
    expected = nn.functional.conv2d(nn.functional.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(expected.square().sum(), weight)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), weight)[0], gradient, rtol=1e-4, atol=1e-4)


def test_plain_products_are_the_attention() -> None:
    part, x = PixelAttention(8, 1), torch.randn(2, 8, 10, 10)
    nn.init.normal_(part.attention.project.weight)
    expected = x + part.attention(part.norm(x).flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(part(x), expected, rtol=1e-5, atol=1e-5)
