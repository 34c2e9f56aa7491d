"""Sharing: the folder layout of the hub, and exported networks that agree with the original."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifarkit import sharing
from cifarkit.models import SpeedNet, VisionTransformer

CONFIG = {"num_classes": 4, "widths": [8, 8, 16]}
OLD = torch.__version__.startswith("2.6.")
SORTED = {"dim": 8, "depth": 1, "heads": 2, "num_classes": 4, "patch_size": 1}  # 1,024 nodes
GRAPH = pytest.param("graph", marks=pytest.mark.xfail(OLD, reason="torch 2.6 does not export the graph block"))


def small_net() -> SpeedNet:
    torch.manual_seed(0)
    network = SpeedNet(**CONFIG)
    network(torch.randn(16, 3, 32, 32))  # moves the BatchNorm statistics
    return network


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def same_output(one: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval()(images()), other.eval()(images()))


def test_a_folder_gives_the_network_back(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    network = small_net()
    folder = sharing.save_pretrained(network, tmp_path / "model", CONFIG | {"classes": ["a", "b", "c", "d"]})
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    loaded = sharing.load_pretrained(SpeedNet, folder)
    assert not loaded.training
    assert same_output(network, loaded)
    assert sharing.read_config(folder)["classes"] == ["a", "b", "c", "d"]


def test_the_hub_mixin_reads_the_folder(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")

    class Shared(SpeedNet, hub.PyTorchModelHubMixin):  # type: ignore[misc, name-defined]
        pass

    network = small_net()
    folder = sharing.save_pretrained(network, tmp_path, CONFIG | {"note": "no argument"})
    assert same_output(network, Shared.from_pretrained(str(folder)))


def test_what_the_hub_mixin_saves_can_be_loaded(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")

    class Shared(SpeedNet, hub.PyTorchModelHubMixin):  # type: ignore[misc, name-defined]
        pass

    network = Shared(num_classes=4, widths=(8, 8, 16))
    network.save_pretrained(tmp_path)
    assert same_output(network, sharing.load_pretrained(SpeedNet, tmp_path))


def test_arguments_can_be_changed_while_loading(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    folder = sharing.save_pretrained(small_net(), tmp_path, CONFIG)
    with pytest.raises(ValueError, match="does not fit SpeedNet"):
        sharing.load_pretrained(SpeedNet, folder, num_classes=5)


@pytest.mark.parametrize(("content", "words"), [("{", "is damaged"), ("[]", "holds a list")])
def test_a_damaged_config_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"config\.json {words}"):
        sharing.load_pretrained(SpeedNet, tmp_path)


def test_a_config_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"config\['act'\] is .*GELU.*JSON cannot hold"):
        sharing.save_pretrained(small_net(), tmp_path, {"act": nn.GELU()})
    with pytest.raises(TypeError, match="config is a list"):
        sharing.save_pretrained(small_net(), tmp_path, [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model is a str"):
        sharing.save_pretrained("net", tmp_path, {})  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]


def build(name: str) -> nn.Module:
    if name == "speednet":
        return small_net()
    return VisionTransformer(dim=16, depth=1, heads=2, num_classes=4, attention=name, patch_size=8)


@pytest.mark.parametrize("name", ["speednet", "self", GRAPH])
def test_the_exported_program_agrees(tmp_path: Path, name: str) -> None:
    network = build(name).train()
    path = sharing.export_model(network, images(), tmp_path / "net.pt2")
    program = torch.export.load(path).module()
    assert network.training
    for count in (1, 3, 7):
        torch.testing.assert_close(program(images(count)), network.eval()(images(count)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_network_of_another_precision_is_exported_in_fp32_and_stays_as_it_is(
    tmp_path: Path, dtype: torch.dtype, suffix: str
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    network = small_net().to(dtype)
    before = {name: (value, value.clone()) for name, value in network.state_dict(keep_vars=True).items()}
    found: list[torch.Tensor] = []
    sharing.export_model(network, images(), tmp_path / f"net{suffix}", check=lambda one, _: found.append(one))
    for name, value in network.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert all(part.training for part in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(found[0], network.float().eval()(images()), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning", "ignore:The tensor attribute")
@pytest.mark.parametrize("normalize", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_is_computed_from_others_is_no_obstacle(tmp_path: Path, normalize: Any) -> None:
    network = nn.Sequential(normalize(nn.Conv2d(3, 2, 3)), nn.Flatten()).bfloat16()
    network(images().bfloat16())
    program = torch.export.load(sharing.export_model(network, images(), tmp_path / "net.pt2")).module()
    torch.testing.assert_close(program(images()), network.float().eval()(images()), rtol=1e-2, atol=1e-2)


def test_a_network_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    network = small_net()
    network.lines = (line for line in "ab")
    with pytest.raises(ValueError, match="SpeedNet cannot be copied to export it: cannot pickle 'generator' object"):
        sharing.export_model(network, images(), tmp_path / "net.pt2")


def test_weights_in_fp32_are_not_copied_for_the_export() -> None:
    network = small_net()
    twin = sharing._copy_in_fp32(network)
    pairs = zip(network.state_dict().values(), twin.state_dict().values(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    assert not twin.training
    assert network.training


@pytest.mark.parametrize("name", ["speednet", GRAPH])
def test_the_onnx_model_agrees(tmp_path: Path, name: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    network = build(name)
    path = sharing.export_model(network, images(), tmp_path / "net.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["net.onnx"]  # the weights are inside
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 3, 7):
        (logits,) = session.run(["logits"], {"images": images(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network.eval()(images(count)), rtol=1e-3, atol=1e-4)


@pytest.mark.xfail(OLD, reason="torch 2.6 does not export the graph block")
def test_a_graph_of_every_pixel_is_exported_sorted_for_any_batch(tmp_path: Path) -> None:
    network = VisionTransformer(**SORTED)
    program = torch.export.load(sharing.export_model(network, images(2), tmp_path / "net.pt2"))
    assert "searchsorted" in str(program.graph)
    torch.testing.assert_close(program.module()(images(3)), network.eval()(images(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(OLD, reason="torch 2.6 does not export the graph block")
def test_onnx_without_sorting_is_told_what_helps(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    message = r"cannot be written as \.onnx: .*searchsorted.*; attention by sorting .* set method = 'dense'"
    with pytest.raises(ValueError, match=message):
        sharing.export_model(VisionTransformer(**SORTED), images(2), tmp_path / "net.onnx")
    assert not [*tmp_path.iterdir()]


def test_a_network_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    class Moody(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))

    with pytest.raises(ValueError, match="Moody cannot be exported: "):
        sharing.export_model(Moody(), images(), tmp_path / "net.pt2")


def test_a_program_that_differs_is_not_written(tmp_path: Path) -> None:
    def refuse(found: Any, expected: Any) -> None:
        raise RuntimeError("differs")

    network = small_net()
    with pytest.raises(RuntimeError, match="differs"):
        sharing.export_model(network, images(), tmp_path / "net.pt2", check=refuse)
    assert not [*tmp_path.iterdir()]
    assert network.training


@pytest.mark.parametrize(("suffix", "writer"), [(".pt2", "_to_bytes"), (".onnx", "_to_onnx")])
def test_the_bytes_themselves_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, writer: str
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    write, other = getattr(sharing, writer), small_net().eval()
    with torch.no_grad():
        other.head.weight.neg_()
    program = sharing._export(other, images())
    monkeypatch.setattr(sharing, writer, lambda _: write(program))
    with pytest.raises(RuntimeError, match="the exported network differs by"):
        sharing.export_model(small_net(), images(), tmp_path / f"net{suffix}")
    assert not [*tmp_path.iterdir()]


def test_onnx_is_run_without_its_runtime_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name))
    seen: list[int] = []
    sharing.export_model(small_net(), images(), tmp_path / "net.onnx", check=lambda found, _: seen.append(len(found)))
    assert seen == [3, 1, 4]


def test_a_difference_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"differs by 0\.5 of 1"):
        sharing._require_alike(torch.ones(2, 2) / 2, torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="differs by nan"):
        sharing._require_alike(torch.full((2, 2), torch.nan), torch.ones(2, 2))


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.pt2"):
        sharing.export_model(small_net(), images(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"B of at least 2; got shape \(1, 3, 32, 32\)"):
        sharing.export_model(small_net(), images(1), tmp_path / "net.pt2")
    with pytest.raises(TypeError, match=r"images must be a float tensor; got torch\.uint8"):
        sharing.export_model(small_net(), images().byte(), tmp_path / "net.pt2")
    with pytest.raises(TypeError, match="model is a str"):
        sharing.export_model("net", images(), tmp_path / "net.pt2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="check is 3"):
        sharing.export_model(small_net(), images(), tmp_path / "net.pt2", check=3)  # type: ignore[arg-type]


def test_onnx_asks_for_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install cifarkit\[onnx\]"):
        sharing.export_model(small_net(), images(), tmp_path / "net.onnx")


def test_the_config_is_sorted_json(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    folder = sharing.save_pretrained(small_net(), tmp_path, CONFIG)
    assert [*json.loads((folder / "config.json").read_text())] == ["num_classes", "widths"]


class WiderNet(SpeedNet):
    def __init__(self, extra: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.extra = extra


def test_arguments_handed_on_to_a_base_class_are_those_of_the_config(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    network = WiderNet(extra=2, **CONFIG)
    config = CONFIG | {"extra": 2, "classes": ["a", "b", "c", "d"]}
    folder = sharing.save_pretrained(network, tmp_path, config)
    loaded = sharing.load_pretrained(WiderNet, folder)
    assert loaded.extra == 2
    assert same_output(network, loaded)

    def build(width: int, **options: Any) -> SpeedNet:
        assert not options
        return SpeedNet(**CONFIG)

    folder = sharing.save_pretrained(network, tmp_path, config | {"width": 8})
    assert same_output(network, sharing.load_pretrained(build, folder))


def test_a_compiled_network_is_saved_by_its_own_names(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    network = small_net()
    folder = sharing.save_pretrained(torch.compile(network), tmp_path, CONFIG)  # type: ignore[arg-type]
    assert same_output(network, sharing.load_pretrained(SpeedNet, folder))


def test_a_network_that_returns_no_tensor_or_fails_is_not_exported(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, images: torch.Tensor) -> Any:
            return images, images

    with pytest.raises(TypeError, match="Pair returns a tuple; wrap it in a module whose forward returns one tensor"):
        sharing.export_model(Pair(), images(), tmp_path / "net.pt2")
    with pytest.raises(ValueError, match=r"Linear fails on images of shape \(3, 3, 32, 32\): mat1 and mat2"):
        sharing.export_model(nn.Linear(3, 2), images(), tmp_path / "net.pt2")
