"""Number formats and devices: what runs in 16 bits, and what is refused."""

import contextlib
import warnings

import pytest
import torch
from torch import nn

import cifarkit.training.precision as module
from cifarkit.training.precision import Precision, choose_device, step_scaled

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def quiet(name: str) -> Precision:
    """Without the warning that 16 bits are slow here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Precision(name, CPU)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16-mixed", torch.bfloat16), ("fp16-mixed", torch.float16)]
)
def test_activations_are_narrow_and_weights_are_not(name: str, dtype: torch.dtype) -> None:
    precision, layer = quiet(name), nn.Linear(3, 2)
    with precision.autocast():
        output = layer(torch.ones(1, 3))
    assert output.dtype is dtype
    output.float().sum().backward()
    assert layer.weight.dtype is torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype is torch.float32
    assert precision.scaler().is_enabled() == (name == "fp16-mixed")
    assert isinstance(precision.autocast(), contextlib.nullcontext) == (name == "fp32")


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([weight], lr=0.5), quiet("fp16-mixed").scaler()
    scaler.scale(weight.sum() * 1e38).backward()  # type: ignore[no-untyped-call]
    assert not step_scaled(scaler, optimizer)
    assert (weight.item(), scaler.get_scale()) == (1.0, 2.0**15)
    optimizer.zero_grad()
    scaler.scale(weight.sum()).backward()  # type: ignore[no-untyped-call]
    assert step_scaled(scaler, optimizer)
    assert (weight.item(), scaler.get_scale()) == (0.5, 2.0**15)


def test_without_fp16_the_scaler_does_nothing() -> None:
    weight = nn.Parameter(torch.ones(1))
    weight.sum().backward()  # type: ignore[no-untyped-call]
    assert step_scaled(quiet("bf16-mixed").scaler(), torch.optim.SGD([weight], lr=0.5))
    assert weight.item() == 0.5


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"precision='16' is unknown; choose one of 'auto', 'fp32', 'bf16-mixed', 'fp16-mixed'"
    ):
        Precision("16", CPU)


@pytest.mark.parametrize("name", ["bf16-mixed", "fp16-mixed"])
def test_a_device_without_autocast_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    with pytest.raises(ValueError, match=rf"precision='{name}' is not supported on device 'cpu'; use 'fp32'"):
        Precision(name, CPU)
    Precision("fp32", CPU)


def test_a_gpu_without_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ValueError, match=r"precision='bf16-mixed' is not supported by this GPU; use 'fp16-mixed'"):
        Precision("bf16-mixed", CUDA)
    Precision("fp16-mixed", CUDA)


def test_slow_formats_on_a_processor_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)
    with pytest.warns(UserWarning, match="bf16-mixed will be slower than fp32"):
        Precision("bf16-mixed", CPU)
    with pytest.warns(UserWarning, match="fp16-mixed is meant for GPUs"):
        Precision("fp16-mixed", CPU)


def test_auto_takes_cuda_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda size, device: None)  # any device can be used
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto").type == kind
    assert choose_device(CPU) == CPU


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "mps"])
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here; 'auto' and 'cpu' can"):
        choose_device(device)


@pytest.mark.parametrize(("native", "name"), [(True, "bf16-mixed"), (False, "fp32")])
def test_auto_is_what_the_processor_does_fast_and_says_so(
    native: bool, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cifarkit.inference.cpu_has_bf16", lambda: native)
    precision = Precision("auto", torch.device("cpu"))
    assert precision.name == name
    assert str(precision.reason).startswith(f"precision {name}: this processor computes bf16 ")
    assert Precision("fp32", torch.device("cpu")).reason is None
