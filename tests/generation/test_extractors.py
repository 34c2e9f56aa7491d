"""Features: what the last linear layer reads, and a model left as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit.generation import features, inception
from cifarkit.models import SpeedNet, VisionTransformer, resnet18

IMAGES = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class TinyNet(nn.Module):
    """Two linear layers; the head that runs last is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.unused = nn.Linear(4, 2), nn.Linear(3, 4), nn.Linear(9, 9)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.body(images.mean((2, 3)))))
        return logits


def test_features_are_what_the_last_linear_layer_reads() -> None:
    model = TinyNet()
    expected = model.body(IMAGES.float().div(255).mean((2, 3)))
    assert torch.allclose(features(model, IMAGES), expected, atol=1e-6)
    assert torch.allclose(features(model, IMAGES.float() / 255, batch_size=2), expected, atol=1e-6)


def test_images_go_through_the_transform() -> None:
    model = TinyNet()
    shifted = features(model, IMAGES, transform=lambda x: x - 1)
    assert torch.allclose(shifted, features(model, IMAGES.float() / 255 - 1), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "size"), [(SpeedNet(widths=(8, 8, 16)), 16), (VisionTransformer(dim=24, depth=1), 24), (resnet18(), 512)]
)
def test_cifarkits_classifiers_have_features(model: nn.Module, size: int) -> None:
    found = features(model, IMAGES)
    assert found.shape == (5, size)
    assert (found.dtype, found.requires_grad, found.device.type) == (torch.float32, False, "cpu")
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    assert torch.allclose(head(found), model.eval()(IMAGES.float() / 255), atol=1e-4)


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_pre_hooks) for part in model.modules())


def test_the_model_is_as_before_also_after_an_error() -> None:
    model = TinyNet().train()
    model.drop.eval()
    features(model, IMAGES)
    with pytest.raises(RuntimeError):
        features(model, IMAGES[:, :1])
    assert hooks(model) == 0
    assert (model.training, model.drop.training) == (True, False)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "images", "error", "message"),
    [
        (torch.relu, IMAGES, TypeError, "model is a builtin_function_or_method; give a torch.nn.Module"),
        (TinyNet(), [1], TypeError, "images must be a uint8 or float tensor, got list"),
        (TinyNet(), IMAGES.long(), TypeError, "got torch.int64"),
        (TinyNet(), IMAGES[0], ValueError, r"images has shape \(3, 32, 32\); it must be \(N, C, H, W\)"),
        (TinyNet(), IMAGES[:0], ValueError, "N at least 1"),
        (nn.Flatten(), IMAGES, ValueError, "model=Flatten: its last linear layer never runs"),
        (nn.Linear(32, 2), IMAGES, ValueError, r"model=Linear: its last linear layer reads \(5, 3, 32, 32\)"),
    ],
)
def test_refuses(model: Any, images: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        features(model, images)


def test_images_of_float64_are_brought_to_the_weights() -> None:
    model, images = TinyNet(), torch.rand(5, 3, 32, 32)
    assert torch.equal(features(model, images.double()), features(model, images))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        features(TinyNet(), IMAGES, batch_size=0)
    with pytest.raises(TypeError, match="transform is 3; give a callable of images"):
        features(TinyNet(), IMAGES, transform=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision='fp8' is unknown"):
        features(TinyNet(), IMAGES, precision="fp8")


def test_inception_says_where_its_weights_are_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    with pytest.raises(
        FileNotFoundError, match=rf"weights='{place}' is no file; fetch https.*inception_v3_google-0cc3"
    ):
        inception()


def test_inception_names_a_file_that_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for content in (b"", b"junk"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights='.*weights\.pth' are not those of torchvision's Inception v3"):
            inception(path)
    torch.save(TinyNet().state_dict(), path)
    with pytest.raises(ValueError, match="are not those of torchvision's Inception v3"):
        inception(str(path))


@pytest.mark.slow
def test_inception_gives_2048_features_of_images_of_any_size(tmp_path: Path) -> None:
    from torchvision.models import inception_v3

    plain = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    model = inception(tmp_path / "weights.pth")
    found = features(model, IMAGES[:2])
    assert found.shape == (2, 2048)
    large = torch.nn.functional.interpolate(IMAGES[:2] / 255, (299, 299), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = plain((large - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert torch.allclose(plain.fc(found), expected, atol=1e-4)
