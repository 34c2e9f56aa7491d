"""as_denoiser: guidance by hand in one call, velocity into noise, modes and precision, bad input named."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel

from cifarkit.diffusion import Denoiser, NoiseSchedule, as_denoiser, sample_ddim
from cifarkit.diffusion.denoiser import NetworkDenoiser, count_classes
from cifarkit.inference import cpu_has_bf16
from cifarkit.models import UNet

T = torch.tensor([3, 500, 999])
LABELS = torch.tensor([0, 2, 1])


class TinyNet(nn.Module):
    """A network of one convolution and one number a class that notes what it is called with."""

    def __init__(self, num_classes: int | None = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = num_classes
        self.conv, self.dropout = nn.Conv2d(3, 3, 3, padding=1), nn.Dropout(0.5)
        self.shift = nn.Parameter(torch.randn(0 if num_classes is None else num_classes + 1))
        self.calls: list[dict[str, Any]] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        out = self.dropout(self.conv(x)) + t.reshape(-1, 1, 1, 1) / 1000
        layout = x.is_contiguous(memory_format=torch.channels_last)
        self.calls.append({"x": x, "training": self.training, "dtype": out.dtype, "labels": labels, "layout": layout})
        return out if labels is None else out + self.shift[labels].reshape(-1, 1, 1, 1)


def start(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def test_an_answer_that_holds_the_tensor_as_sample_is_that_tensor() -> None:
    class Wrapped(TinyNet):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Any:
            return SimpleNamespace(sample=super().forward(x, t, labels))

    for options in ({}, {"guidance": 2.0}):
        found, expected = (as_denoiser(net(), LABELS, **options)(start(), T) for net in (Wrapped, TinyNet))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("answer", "kind"), [((torch.zeros(1),), "tuple"), (SimpleNamespace(sample=3), "SimpleNames")])
def test_an_answer_without_a_tensor_is_named(answer: Any, kind: str) -> None:
    model = TinyNet(None)
    model.forward = lambda x, t: answer  # type: ignore[assignment, method-assign]
    with pytest.raises(
        TypeError, match=rf"model returns a {kind}.*; it must return a tensor like x, or an object with"
    ):
        as_denoiser(model)(start(), T)


def test_a_table_in_single_precision_makes_a_schedule() -> None:
    table = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)  # float32, as the alphas_cumprod of diffusers
    expected = NoiseSchedule.linear().alpha_bar
    torch.testing.assert_close(NoiseSchedule(table).alpha_bar, expected, atol=1e-6, rtol=1e-4)
    assert sample_ddim(as_denoiser(TinyNet(None)), start(), NoiseSchedule(table), steps=2).shape == (3, 3, 8, 8)


def test_without_extras_it_is_the_network_in_evaluation_mode() -> None:
    model = TinyNet()
    found = as_denoiser(model, LABELS, precision="fp32")(start(), T)
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(start(), T, LABELS))
    assert not found.requires_grad
    assert not model.calls[0]["training"]
    assert model.calls[0]["layout"]


def test_the_mode_comes_back_after_an_exception() -> None:
    model = TinyNet()
    with pytest.raises(RuntimeError):
        as_denoiser(model, LABELS)(start()[:, :1], T)
    assert model.training
    assert model.dropout.training


def test_an_unconditional_network_gets_no_labels() -> None:
    model = TinyNet(None)
    as_denoiser(model)(start(), T)
    assert model.calls[0]["labels"] is None


def test_a_conditional_network_asked_for_any_class_gets_the_label_none() -> None:
    model = TinyNet()
    with torch.no_grad():
        expected = model.eval()(start(), T, torch.full((3,), 4))
    torch.testing.assert_close(as_denoiser(model, precision="fp32")(start(), T), expected)


def test_classes_are_found_below_two_wrappers() -> None:
    class Wrapper(nn.Module):  # as DistributedDataParallel is
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            return self.module(*inputs)

    model = TinyNet()
    found = as_denoiser(AveragedModel(Wrapper(model)), LABELS, guidance=1.0, precision="fp32")(start(), T)
    torch.testing.assert_close(found, as_denoiser(model, LABELS, guidance=1.0, precision="fp32")(start(), T))


def test_a_part_called_module_is_no_wrapper_where_the_network_has_classes_itself() -> None:
    class Outer(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Identity()

    assert count_classes(Outer()) == 4
    assert count_classes(nn.Identity()) is None


@pytest.mark.parametrize("guidance", [0.3, 2.0])
def test_guidance_moves_away_from_no_label_in_one_doubled_batch(guidance: float) -> None:
    model = TinyNet()
    found = as_denoiser(model, LABELS, guidance=guidance, precision="fp32")(start(), T)
    assert [len(call["x"]) for call in model.calls] == [6]
    assert model.calls[0]["labels"].tolist() == [0, 2, 1, 4, 4, 4]
    with torch.no_grad():
        with_label, without = (model.eval()(start(), T, labels) for labels in (LABELS, torch.full((3,), 4)))
    torch.testing.assert_close(found, (1 + guidance) * with_label - guidance * without)


def test_no_guidance_means_one_plain_batch() -> None:
    model = TinyNet()
    as_denoiser(model, LABELS)(start(), T)
    assert [len(call["x"]) for call in model.calls] == [3]


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_velocity_becomes_noise(guidance: float) -> None:
    schedule, model = NoiseSchedule.cosine(), TinyNet()
    options: dict[str, Any] = {"guidance": guidance, "precision": "fp32"}
    found = as_denoiser(model, LABELS, target="velocity", schedule=schedule, **options)(start(), T)
    velocity = as_denoiser(model, LABELS, **options)(start(), T)
    left = schedule.alpha_bar[T].reshape(-1, 1, 1, 1).float()
    torch.testing.assert_close(found, left.sqrt() * velocity + (1 - left).sqrt() * start())


def test_a_perfect_velocity_samples_the_exact_image() -> None:
    schedule, images = NoiseSchedule.cosine(), start().tanh()

    class Oracle(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            signal, sigma = schedule.rates(t, x)
            return schedule.velocity(images, (x - signal * images) / sigma, t)

    denoiser = as_denoiser(Oracle(), target="velocity", schedule=schedule, precision="fp32")
    torch.testing.assert_close(sample_ddim(denoiser, start(), schedule, steps=9), images, atol=1e-5, rtol=0)


def test_precision_is_what_the_network_computes_in_and_fp32_comes_out() -> None:
    native = torch.bfloat16 if cpu_has_bf16() else torch.float32
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("auto", native)):
        model, dtypes = TinyNet(), set()
        model.conv.register_forward_hook(lambda module, inputs, output, dtypes=dtypes: dtypes.add(output.dtype))
        assert as_denoiser(model, LABELS, precision=precision, guidance=1.0)(start(), T).dtype == torch.float32
        assert dtypes == {dtype}


def test_a_sampler_casts_the_weights_once() -> None:
    denoiser, schedule = as_denoiser(TinyNet(), LABELS, precision="bf16"), NoiseSchedule.linear()

    def casts(denoiser: Denoiser) -> int:
        with torch.profiler.profile() as profile:
            sample_ddim(denoiser, start(), schedule, steps=4)
        return sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")

    # Behind a function the sampler cannot keep them: weight and bias are cast again in each step after the first.
    assert casts(lambda x, t: denoiser(x, t)) == casts(denoiser) + 3 * 2


def test_weights_changed_between_two_samplings_count() -> None:
    model, schedule = TinyNet(), NoiseSchedule.linear()
    denoiser = as_denoiser(model, LABELS, precision="bf16")
    before = sample_ddim(denoiser, start(), schedule, steps=2, clamp=False)
    with torch.no_grad():
        model.conv.weight.add_(1)
    assert not torch.equal(before, sample_ddim(denoiser, start(), schedule, steps=2, clamp=False))


def test_sampling_inside_an_autocast_leaves_training_its_gradients() -> None:
    model = TinyNet()
    with torch.autocast("cpu", torch.bfloat16):
        as_denoiser(model, LABELS, precision="bf16")(start(), T)
        model(start(), T, LABELS).sum().backward()
    assert model.conv.weight.grad is not None


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_network_on_a_gpu_is_asked_from_the_cpu(guidance: float) -> None:
    """No GPU is needed: fake tensors hold no numbers, but know where they are and refuse to meet others elsewhere."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = TinyNet()
        x, t, labels = torch.randn(3, 3, 8, 8), torch.arange(3), torch.arange(3)
        with pytest.raises(RuntimeError, match="device"):
            model(x, t, labels)
        for home in ("cpu", "cuda"):
            denoiser = NetworkDenoiser(model, labels, 4, guidance, None, "fp32")
            found = denoiser(x.to(home), t.to(home))
            assert (found.device.type, found.shape) == (home, x.shape)
    assert {call["x"].device.type for call in model.calls} == {"cuda"}
    assert model.calls[0]["labels"].device.type == "cuda"


def test_what_has_no_weights_is_asked_where_the_images_are() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x

    x = torch.empty(3, 3, 8, 8, device="meta")
    assert as_denoiser(Same(), precision="fp32")(x, torch.empty(3, dtype=torch.int64, device="meta")).is_meta


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_noise_of_float64_and_weights_of_bf16_fit_each_other(guidance: float, precision: str) -> None:
    torch.manual_seed(0)
    network = UNet(base_channels=8, multipliers=(1,), num_classes=4)
    noise, choices = torch.randn(3, 3, 8, 8, dtype=torch.float64), {"guidance": guidance, "precision": precision}
    schedule = NoiseSchedule.cosine(10)
    with torch.no_grad():
        network.last.weight.normal_(std=0.1)
    expected = sample_ddim(as_denoiser(network, LABELS, **choices), noise.float(), schedule, steps=2)
    made = sample_ddim(as_denoiser(network, LABELS, **choices), noise, schedule, steps=2)
    assert made.dtype == torch.float64
    torch.testing.assert_close(made.float(), expected, atol=0.05, rtol=0.05)
    half = sample_ddim(as_denoiser(network.bfloat16(), LABELS, **choices), noise.float(), schedule, steps=2)
    assert half.dtype == torch.float32
    assert (half - expected).abs().mean() < 0.05


def test_labels_must_be_as_many_as_images() -> None:
    with pytest.raises(ValueError, match="labels are of 3 images, but x holds 2"):
        as_denoiser(TinyNet(), LABELS)(start(2), T[:2])


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (torch.tensor([0, 5]), {}, ValueError, "0 to 5; for num_classes=4 they must be 0 to 3, or 4 for none"),
        (torch.tensor([-1, 0]), {}, ValueError, "labels run from -1 to 0"),
        (LABELS.float(), {}, TypeError, r"labels must be an int64 tensor \(3,\); got torch.float32"),
        ([0, 1], {}, TypeError, r"labels must be an int64 tensor \(2,\); got a list"),
        (LABELS, {"guidance": -0.5}, ValueError, r"guidance=-0\.5 must be at least 0"),
        (None, {"guidance": 0.5}, ValueError, r"guidance=0\.5 needs labels: it moves images towards the class"),
        (LABELS, {"target": "image"}, ValueError, "target='image' is unknown; use 'noise' or 'velocity'"),
        (LABELS, {"target": "velocity"}, ValueError, "target='velocity' needs the NoiseSchedule .*; got schedule=None"),
        (
            LABELS,
            {"schedule": "x"},
            ValueError,
            "target='noise' needs the NoiseSchedule .*; got schedule='x'",
        ),
        ("cat", {}, TypeError, r"labels must be an int64 tensor \(3,\); got a str"),
        (LABELS, {"precision": "fp8"}, ValueError, "precision='fp8' is unknown"),
    ],
)
def test_mistakes_are_named(labels: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_denoiser(TinyNet(), labels, **options)


def test_a_network_without_classes_and_what_is_none_are_named() -> None:
    with pytest.raises(ValueError, match="labels are given, but the network has num_classes=None"):
        as_denoiser(TinyNet(None), LABELS)
    with pytest.raises(TypeError, match=r"model is a function; give a torch\.nn\.Module that maps x and t to noise"):
        as_denoiser(start)  # type: ignore[arg-type]
