"""The doctor: each trap is named where it is, and only there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarkit import Trainer, doctor
from cifarkit.models import SpeedNet, VisionTransformer, resnet18


def levels(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.topic: finding.level for finding in findings}


class Reusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.relu(self.convolution(images)) - 1).mean((2, 3))


def test_the_machine_is_described(tmp_path: Path) -> None:
    findings = doctor.examine_machine(tmp_path)
    assert {"versions", "devices", "bf16", "threads", "compiler", "folder"} <= levels(findings).keys()
    assert f"torch {torch.__version__}" in str(findings[0])
    assert str(findings[0]).startswith("ok       versions: cifarkit ")


def test_a_coarse_stem_is_warned_of_on_small_images_only() -> None:
    coarse = resnet18(stem="imagenet")
    assert levels(doctor.examine_model(coarse, 32))["stem"] == doctor.WARNING
    assert levels(doctor.examine_model(coarse, 63))["stem"] == doctor.WARNING
    assert "stem" not in levels(doctor.examine_model(coarse, 64))
    assert "7x7 convolution of stride 2 on images of 32" in str(doctor.examine_model(coarse, 32)[0])


@pytest.mark.parametrize("model", [SpeedNet(4, widths=(4, 4, 4)), VisionTransformer(dim=8, depth=1, heads=1)])
def test_networks_without_traps_are_fine(model: nn.Module) -> None:
    assert doctor.examine_model(model) == [doctor.Finding("network", doctor.OK, "no known trap")]


def test_a_reused_activation_is_named() -> None:
    model = Reusing()
    (finding,) = doctor.examine_model(model)
    assert (finding.topic, finding.level) == ("activations", doctor.WARNING)
    assert finding.text.startswith("relu is called more than once")
    assert model.training
    assert not model.relu._forward_hooks


def test_resnets_reuse_their_relu() -> None:
    assert [finding.topic for finding in doctor.examine_model(resnet18())] == ["activations"]


def test_speed_is_measured_on_images_with_the_channels_of_the_network() -> None:
    grey = nn.Sequential(nn.Conv2d(1, 2, 3, 4), nn.Flatten(), nn.LazyLinear(3))
    grey(torch.zeros(1, 1, 8, 8))
    assert "by 1 updates of Sequential" in doctor.measure_speed(1, model=grey, image_size=8).text


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = [item for item in doctor.examine_machine(tmp_path / "file") if item.topic == "folder"]
    assert finding.level == doctor.PROBLEM
    assert "cannot be written" in finding.text


def test_a_full_disk_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LEAST_FREE", 1e18)
    assert levels(doctor.examine_machine(tmp_path))["folder"] == doctor.WARNING


@pytest.mark.parametrize(("cores", "level"), [(1, doctor.WARNING), (64, doctor.OK)])
def test_too_many_threads_are_warned_of(monkeypatch: pytest.MonkeyPatch, cores: int, level: str) -> None:
    monkeypatch.setattr(doctor, "available_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert levels([*doctor._threads()])["threads"] == level


def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0), raising=False)
    assert levels([*doctor._threads()])["load"] == doctor.WARNING


def test_a_missing_compiler_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._compiler().level == doctor.WARNING
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert doctor._compiler().level == doctor.OK


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("device", "name"), [("cpu", "this processor"), ("cuda", "this device \\(cuda\\)")])
def test_bf16_is_told_of_the_device_that_trains(
    monkeypatch: pytest.MonkeyPatch, device: str, name: str, native: bool
) -> None:
    monkeypatch.setattr(doctor, "choose_device", lambda _: torch.device(device))
    monkeypatch.setattr(doctor, "has_native_bf16", lambda given: native if given.type == device else not native)
    verdict = "multiplies bf16 natively; .* uses it" if native else "does not multiply .* 'auto' takes it"
    assert re.match(f"{name} {verdict}", doctor._bf16().text)


def test_doctor_and_trainer_agree_on_bf16() -> None:
    trains_in_bf16 = Trainer(max_steps=1, precision="auto").precision.name == "bf16-mixed"
    assert ("uses it" in doctor._bf16().text) == trains_in_bf16


def test_speed_is_measured_without_a_trace() -> None:
    model = SpeedNet(4, widths=(4, 4, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finding = doctor.measure_speed(2, model=model)
    assert "by 2 updates of SpeedNet on" in finding.text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="model is a str"):
        doctor.examine_model("net")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image_size=0 must be at least 1"):
        doctor.examine_model(nn.Identity(), 0)
    with pytest.raises(ValueError, match="image_size=2: the network fails on images of shape"):
        doctor.examine_model(SpeedNet(4, widths=(4, 4, 4)), 2)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        doctor.measure_speed(0)
    not_built: Any = nn.Linear
    with pytest.raises(TypeError, match=r"model is a type; give a torch\.nn\.Module"):
        doctor.measure_speed(1, model=not_built)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_another_dtype_are_examined(dtype: torch.dtype) -> None:
    model = SpeedNet(4, widths=(4, 4, 4)).to(dtype)
    assert levels(doctor.examine_model(model)) == {"network": doctor.OK}


def test_a_network_that_asserts_is_named() -> None:
    class Strict(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[2] == 224, "wrong side"
            return images

    with pytest.raises(ValueError, match=r"the network fails on images of shape \(1, 3, 32, 32\): wrong side"):
        doctor.examine_model(Strict())


def test_a_folder_that_is_yet_to_be_made_is_fine(tmp_path: Path) -> None:
    assert levels(doctor.examine_machine(tmp_path / "runs" / "new"))["folder"] == doctor.OK
