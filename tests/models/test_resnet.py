"""ResNets for small images: shapes, the resampled stem, loading of weights and its messages."""

import copy
import logging
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from cifarkit.attribution.rewriting import separate_nonlinearities
from cifarkit.folding import fold_batchnorm
from cifarkit.models import resample_stem, resnet18, resnet34


@pytest.fixture(scope="module")
def imagenet_state() -> dict[str, Tensor]:
    """Random weights in the shape of torchvision's ImageNet ResNet-18."""
    torch.manual_seed(0)
    return dict(torchvision.models.resnet18(num_classes=1000).state_dict())


@pytest.fixture(scope="module")
def imagenet_file(imagenet_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "imagenet.pth"
    torch.save(imagenet_state, path)
    return path


@pytest.mark.parametrize("side", [28, 32, 64])
def test_small_images_give_one_row_of_logits_each(side: int) -> None:
    model = resnet18(num_classes=7).eval()
    assert model(torch.rand(2, 3, side, side)).shape == (2, 7)
    assert model.maxpool(torch.ones(1)).equal(torch.ones(1))


@pytest.mark.parametrize("build", [resnet18, resnet34])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_grey_images_have_a_stem_of_one_channel(build: type, stem: str) -> None:
    model = build(num_classes=7, stem=stem, channels=1).eval()
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 7)


def test_weights_of_as_many_channels_load_and_others_are_named(tmp_path: Path) -> None:
    torch.save(resnet18(channels=1).state_dict(), tmp_path / "grey.pt")
    grey = resnet18(channels=1, weights=tmp_path / "grey.pt")
    assert grey.conv1.weight.equal(torch.load(tmp_path / "grey.pt", weights_only=True)["conv1.weight"])
    with pytest.raises(ValueError, match=r"'conv1\.weight' has shape .*; build it with channels=1"):
        resnet18(weights=tmp_path / "grey.pt")
    with pytest.raises(ValueError, match=r"weights='DEFAULT' reads 3 channels, not channels=1; repeat grey images by"):
        resnet18(channels=1, weights="DEFAULT")
    with pytest.raises(ValueError, match="channels=0 must be at least 1"):
        resnet18(channels=0)


def test_cifar_stem_keeps_the_resolution_until_the_second_stage() -> None:
    model = resnet18().eval()
    images = torch.rand(1, 3, 32, 32)
    assert model.layer1(model.maxpool(model.conv1(images))).shape == (1, 64, 32, 32)
    assert model.conv1.bias is None


@pytest.mark.parametrize(("build", "millions"), [(resnet18, 11.17), (resnet34, 21.28)])
def test_every_parameter_gets_a_gradient(build: type, millions: float) -> None:
    model = build()
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_resampled_kernel_answers_as_the_large_one_on_the_enlarged_image() -> None:
    images, kernel = torch.rand(2, 3, 9, 9, dtype=torch.float64), torch.randn(4, 3, 7, 7, dtype=torch.float64)
    enlarged = F.interpolate(images, size=3 * (9 - 1) + 1, mode="bilinear", align_corners=True)  # 25: factor 3 exactly
    expected = F.conv2d(enlarged, kernel, stride=3)  # (2, 4, 7, 7)
    torch.testing.assert_close(F.conv2d(images, resample_stem(kernel)), expected)


def test_resampled_kernel_keeps_constants_and_scales_gradients() -> None:
    kernel = torch.randn(5, 3, 7, 7)
    small = resample_stem(kernel)
    large_ramp, small_ramp = torch.arange(-3.0, 4.0), torch.arange(-1.0, 2.0)
    assert small.shape == (5, 3, 3, 3)
    torch.testing.assert_close(small.sum((-2, -1)), kernel.sum((-2, -1)))
    torch.testing.assert_close((small * small_ramp).sum((-2, -1)), (kernel * large_ramp).sum((-2, -1)) / 3)


def test_imagenet_file_loads_into_both_stems(imagenet_file: Path, imagenet_state: dict[str, Tensor]) -> None:
    small, large = resnet18(weights=imagenet_file), resnet18(1000, stem="imagenet", weights=str(imagenet_file))
    assert small.conv1.weight.equal(resample_stem(imagenet_state["conv1.weight"]))
    assert small.layer4[1].conv2.weight.equal(imagenet_state["layer4.1.conv2.weight"])
    assert small.fc.weight.shape == (10, 512)
    assert all(value.equal(imagenet_state[key]) for key, value in large.state_dict().items())


def test_default_goes_through_torchvision_and_says_that_the_head_is_left_out(
    imagenet_state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def get_state_dict(self: object, *, progress: bool, check_hash: bool) -> dict[str, Tensor]:
        assert check_hash
        return imagenet_state

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", get_state_dict)
    with caplog.at_level(logging.INFO, logger="cifarkit"):
        model = resnet18(weights="DEFAULT")
    assert model.bn1.weight.equal(imagenet_state["bn1.weight"])
    assert "left out the head of 1000 classes" in caplog.text


def test_failed_download_says_which_file_to_fetch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_state_dict(self: object, **options: bool) -> dict[str, Tensor]:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet34_Weights, "get_state_dict", get_state_dict)
    with pytest.raises(OSError, match=r"https://\S+resnet34\S+\.pth \(no route to host\); download that file by hand"):
        resnet34(weights="DEFAULT")


@pytest.mark.parametrize("nest", [None, "state_dict", "task"])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_own_checkpoints_load(nest: str | None, prefix: str, tmp_path: Path) -> None:
    trained = resnet18(num_classes=4)
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    torch.save(state if nest is None else {nest: state, "step": 7}, tmp_path / "last.pt")
    loaded = resnet18(num_classes=4, weights=tmp_path / "last.pt")
    assert all(value.equal(trained.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_safetensors_load(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    trained = resnet18()
    for prefix in ("", "model."):
        state = {prefix + key: value for key, value in trained.state_dict().items()}
        safetensors.save_file(state, tmp_path / "net.safetensors")
        assert resnet18(weights=tmp_path / "net.safetensors").fc.weight.equal(trained.fc.weight)


def test_a_missing_safetensors_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"net\.safetensors': reading it needs: pip install cifarkit\[safetensors\]"):
        resnet18(weights=tmp_path / "net.safetensors")


@pytest.mark.parametrize("share", [0.2, 0.8, 0.95, 0.999])  # for the last three of a small file PyTorch raises OSError
def test_a_file_cut_at_any_place_is_damaged(share: float, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(30, 30).state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "part.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"part\.pt' is no file of tensors"):
        resnet18(weights=tmp_path / "part.pt")


def test_files_without_batch_counters_load(imagenet_state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {key: value for key, value in imagenet_state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    assert resnet18(weights=tmp_path / "old.pth").bn1.num_batches_tracked == 0


def test_mismatching_weights_name_file_key_and_cure(imagenet_file: Path, tmp_path: Path) -> None:
    cases = {
        "hundred": (resnet18(100), r"hundred.pt does not fit .*'fc.weight' has shape \(100, 512\).*num_classes=100"),
        "small": (resnet18(), r"'conv1.weight' has shape \(64, 3, 3, 3\) .*stem='cifar'"),
        "deep": (resnet34(), r"'layer1.2.conv1.weight' is unexpected; give the weights of the same depth"),
        "other": (torch.nn.Linear(2, 2), "'conv1.weight' is missing"),
    }
    for name, (model, message) in cases.items():
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=message):
            resnet18(stem="imagenet" if name == "small" else "cifar", weights=tmp_path / f"{name}.pt")
    with pytest.raises(ValueError, match=r"imagenet.pth does not fit this ResNet: 'layer1.2.conv1.weight' is missing"):
        resnet34(weights=imagenet_file)


def test_files_that_hold_no_weights_are_named(imagenet_file: Path, tmp_path: Path) -> None:
    contents = {
        "empty.pt": b"",
        "text.pt": b"these are no weights\n",
        "page.pt": b"<!DOCTYPE html><html>404</html>",
        "cut.pt": imagenet_file.read_bytes()[:100_000],
        "short.pt": imagenet_file.read_bytes()[:-1000],
        "code.pt": pickle.dumps(Path("anything"), protocol=2),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}' is no file of tensors \(.*save model.state_dict\(\)"):
            resnet18(weights=tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match=r"cut\.safetensors' is damaged or no safetensors file"):
        resnet18(weights=tmp_path / "cut.safetensors")
    torch.save({"step": 3, "epoch": 1}, tmp_path / "counters.pt")
    with pytest.raises(ValueError, match=r"counters.pt' holds no state_dict, only \['epoch', 'step'\]"):
        resnet18(weights=tmp_path / "counters.pt")
    with pytest.raises(FileNotFoundError, match=r"weights='nowhere.pt' is no file; give None, 'DEFAULT'"):
        resnet18(weights="nowhere.pt")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_classes=0 must be at least 1"):
        resnet18(num_classes=0)
    with pytest.raises(TypeError, match=r"num_classes='ten' is a str; give an integer"):
        resnet18(num_classes="ten")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stem='small' is unknown; give 'cifar'"):
        resnet18(stem="small")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weights=True is a bool; give None, 'DEFAULT' or a path"):
        resnet34(weights=True)  # type: ignore[arg-type]


def test_large_stem_warns_once_about_small_images() -> None:
    model = resnet18(stem="imagenet").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.rand(1, 3, 64, 64))
        resnet18().eval()(torch.rand(1, 3, 32, 32))
    with pytest.warns(UserWarning, match=r"images of 32x32 pixels meet the 7x7 stem .*stem='cifar'"):
        model(torch.rand(1, 3, 32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.rand(1, 3, 32, 32))
        pickle.loads(pickle.dumps(copy.deepcopy(model)))(torch.rand(1, 3, 32, 32))


def test_kernels_of_another_size_are_named_and_those_elsewhere_stay_there() -> None:
    with pytest.raises(ValueError, match=r"kernel must be \(D, C, 7, 7\); got shape \(2, 3, 5, 5\)"):
        resample_stem(torch.zeros(2, 3, 5, 5))
    assert resample_stem(torch.zeros(2, 3, 7, 7, device="meta")).device.type == "meta"


def test_a_file_with_keys_that_are_no_names_is_refused(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt"):
        resnet18(weights=tmp_path / "w.pt")


def test_the_warning_stands_in_the_way_of_no_copy() -> None:
    model = resnet18(5, stem="imagenet").eval()
    assert separate_nonlinearities(model) is not None
    folded, images = fold_batchnorm(model), torch.rand(1, 3, 64, 64)
    assert folded is not None
    torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-3)
    model.register_forward_hook(lambda *_: None)
    assert fold_batchnorm(model) is None
