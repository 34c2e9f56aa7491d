"""What a call of ``attribute`` finds out about model and images before it explains: ranges, logits, randomness."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.attribution import METHODS, attribute

FEW = {"smooth_grad_squared": {"samples": 2, "steps": 2}, "gradient_shap": {"samples": 3}}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
RAW = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(2)).float()


class Net(nn.Module):
    """A convolution with a head; ``around`` changes what goes in, ``at_end`` what comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.eval()

    def forward(self, images: Tensor) -> Any:
        return self.at_end(self.head(F.relu(self.first(self.around(images))).mean((2, 3))))

    def around(self, images: Tensor) -> Tensor:
        return images

    def at_end(self, logits: Tensor) -> Any:
        return logits


def test_pixels_normalised_without_division_are_refused() -> None:
    message = "images hold values from -1.* to 101.*, as pixels do that are normalised without being divided by 255"
    with pytest.raises(ValueError, match=message):
        attribute(Net(), (RAW - 0.45) / 0.25, 0, "saliency")


@pytest.mark.parametrize("images", [RAW - 128, (RAW - 110) / 7])
def test_unlikely_values_are_warned_about(images: Tensor) -> None:
    message = r"from -\d.* but normalised ones seldom exceed 10: .* divide pixels by 255 before they are normalised"
    with pytest.warns(UserWarning, match=message) as seen:
        attribute(Net(), images, 0, "saliency")
    assert [one.filename for one in seen] == [__file__]


@pytest.mark.filterwarnings("error::UserWarning")
def test_normalised_images_pass() -> None:
    for images in (IMAGES, RAW / 255, (RAW / 255 - 0.45) / 0.25, (RAW / 255 - 0.1) / 0.1):
        attribute(Net(), images, 0, "saliency")


class InTuple(Net):
    def at_end(self, logits: Tensor) -> Any:
        return logits, logits


class InDict(Net):
    def at_end(self, logits: Tensor) -> Any:
        return {"logits": logits}


class Binary(Net):
    def at_end(self, logits: Tensor) -> Any:
        return logits[:, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            InTuple(),
            r"it returned a tuple; wrap it in a module whose forward returns the logits alone, as outputs\[0\]",
        ),
        (InDict(), r"it returned a dict; wrap it .* as outputs\['logits'\]"),
        (Binary(), r"the model must map images \(B, C, H, W\) to logits \(B, K\); for one image it returned \(1,\)"),
    ],
)
def test_what_is_no_logits_is_named(method: str, model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attribute(model, IMAGES, 0, method)


class ThroughNumPy(Net):
    def around(self, images: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images.numpy()))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("occlusion", "grad_cam")])
def test_numpy_on_the_way_is_explained(method: str) -> None:
    with pytest.raises(ValueError, match=r"not differentiable.*use 'occlusion'.*It says: Can't call numpy\(\)"):
        attribute(ThroughNumPy(), IMAGES, 0, method)
    assert attribute(ThroughNumPy(), IMAGES, 0, "occlusion").abs().max() > 0


class Dropping(Net):
    def around(self, images: Tensor) -> Tensor:
        return F.dropout(images)  # without training=self.training


class Noisy(Net):
    def around(self, images: Tensor) -> Tensor:
        return images + torch.randn_like(images)


class NoisyByNumPy(Net):
    def around(self, images: Tensor) -> Tensor:
        return images * float(np.random.rand())


@pytest.mark.filterwarnings("ignore:the sum of")
@pytest.mark.parametrize("kind", [Dropping, Noisy, NoisyByNumPy])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "deep_lift"])
def test_a_model_that_is_random_is_warned_about_and_repeated_by_the_seed(method: str, kind: type[Net]) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    maps = []
    for seed in (1, 1, 2):
        with pytest.warns(UserWarning, match=r"random in evaluation mode: .* a logit changed by .*F.dropout") as seen:
            maps.append(attribute(kind(), IMAGES, 0, method, seed=seed, **FEW.get(method, {})))
        assert seen[0].filename == __file__
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_random_numbers_without_effect_are_not_warned_about() -> None:
    class Drawing(Net):
        def around(self, images: Tensor) -> Tensor:
            return images + 0 * torch.rand(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribute(Drawing(), IMAGES, 0, "saliency")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "deep_lift"])
def test_a_model_of_half_precision_is_explained_nearly_as_the_whole(method: str, dtype: torch.dtype) -> None:
    options = FEW.get(method, {})
    exact, rough = (attribute(model, IMAGES, 0, method, **options) for model in (Net(), Net().to(dtype)))
    assert rough.dtype == torch.float32  # as the images
    assert F.cosine_similarity(rough.flatten(), exact.flatten(), dim=0) > 0.95


def test_deep_lift_refuses_half_precision() -> None:
    with pytest.raises(ValueError, match=r"deep_lift cannot explain weights of torch.bfloat16.*\.float\(\)"):
        attribute(Net().bfloat16(), IMAGES, 0, "deep_lift")


class Rounding(Net):
    def around(self, images: Tensor) -> Tensor:
        return images.round()


class RoundingSome(Net):
    """Has no gradient where the mean of an image is above 0.5."""

    def around(self, images: Tensor) -> Tensor:
        chosen = images.mean((1, 2, 3), keepdim=True) > 0.5
        return torch.where(chosen, images.round(), images)


def test_integrated_gradients_do_not_advise_steps_where_no_number_of_them_helps() -> None:
    with pytest.warns(UserWarning, match="every attribution is 0") as seen:
        attribute(Rounding(), 3 * IMAGES, 0, "integrated_gradients")
    assert not any("max_steps" in str(one.message) for one in seen)
    images = torch.stack([IMAGES[0].abs() + 2, IMAGES[1] - IMAGES[1].mean()])
    starts = torch.stack([torch.full_like(images[0], 0.6), torch.zeros_like(images[1])])
    with pytest.warns(UserWarning, match=r"1 of 2 maps .* are 0 although the logit changes.*use 'occlusion'"):
        attribute(RoundingSome(), images, 0, "integrated_gradients", baselines=starts)
