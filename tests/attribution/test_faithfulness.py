"""Completeness in closed form, deletion and insertion with known areas, and a model that stays as it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifarkit.attribution import scoring
from cifarkit.attribution.faithfulness import (
    FaithfulnessCurve,
    completeness_error,
    deletion_curve,
    insertion_curve,
    pool_completeness_error,
)

CURVES = [deletion_curve, insertion_curve]


class Linear(nn.Module):
    """Three classes, each a weighted sum of all values."""

    def __init__(self, channels: int = 3, side: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0)))
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        return torch.einsum("kchw,bchw->bk", self.weight, images) + 0.5


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(), nn.ReLU().eval())

    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no power")


def photos(count: int = 3, side: int = 4, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(count))


def staircase(side: int = 4) -> Linear:
    """One channel whose pixels are worth side * side, ..., 2, 1 to class 0, in reading order."""
    model = Linear(1, side)
    with torch.no_grad():
        model.weight.zero_()[0] = torch.arange(side * side, 0, -1.0).view(1, side, side)
    return model


@pytest.mark.parametrize("targets", [1, torch.tensor([2, 0, 1]), np.array([2, 0, 1]), None])
def test_weights_times_input_are_complete_on_a_linear_model(targets: Any) -> None:
    model, images = Linear(), photos()
    with torch.no_grad():
        classes = model(images).argmax(1) if targets is None else torch.as_tensor(targets).expand(3)
    maps = model.weight[classes] * images
    error = completeness_error(model, images, targets, maps)
    assert error.shape == (3,)
    assert error.dtype == torch.float32
    assert error.max() < 1e-5
    assert completeness_error(model, images, targets, maps, relative=False).max() < 1e-5


@pytest.mark.parametrize("baseline", ["mean", "blur", 0.7, torch.tensor([0.1, -0.2, 0.3]), photos(1), photos(3) + 1])
def test_completeness_counts_from_the_baseline(baseline: Any) -> None:
    model, images = Linear(), photos()
    start = scoring.baseline_images(baseline, images)
    assert completeness_error(model, images, 1, model.weight[1] * (images - start), baseline).max() < 1e-4


def test_completeness_error_is_a_share_of_the_change_or_in_logits() -> None:
    model, images = Linear(), photos()
    maps = model.weight[1] * images
    assert torch.allclose(completeness_error(model, images, 1, 0.75 * maps), torch.full((3,), 0.25))
    in_logits = completeness_error(model, images, 1, 0.75 * maps, relative=False, max_batch=2)
    assert torch.allclose(in_logits, 0.25 * maps.sum((1, 2, 3)).abs(), atol=1e-5)


def test_completeness_where_nothing_changes() -> None:
    model, images = Linear(), torch.zeros(2, 3, 4, 4)
    maps = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    assert completeness_error(model, images, 0, maps).tolist() == [0, torch.inf]


def test_a_pool_of_baselines_counts_with_the_mean_of_its_logits() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.ReLU())
    images, pool = photos(), 3 * photos(7)
    with torch.no_grad():
        change = model(images)[:, 1] - model(pool)[:, 1].mean()
    maps = (change / 48)[:, None, None, None].expand_as(images)
    assert pool_completeness_error(model, images, 1, maps, pool, max_batch=2).max() < 1e-5
    assert torch.allclose(pool_completeness_error(model, images, 1, 0.5 * maps, pool), torch.full((3,), 0.5))
    assert completeness_error(model, images, 1, maps, pool.mean(0)).min() > 0.01


def test_areas_of_a_linear_model_are_those_of_the_formula() -> None:
    model, images = staircase(), torch.ones(2, 1, 4, 4)
    maps = model.weight[0].expand(2, -1, -1, -1)
    deleted = deletion_curve(model, images, 0, maps, steps=16, baseline=0.0, output="logit")
    area = 17 * 18 / 6 - 17 / 4 + 0.5  # the mean of m (m + 1) / 2 by trapezoids, and the bias
    assert deleted.scores[0, [0, 1, 15, 16]].tolist() == [136.5, 120.5, 1.5, 0.5]
    assert deleted.areas.tolist() == pytest.approx([area, area])
    inserted = insertion_curve(model, images, 0, maps, steps=16, baseline=0.0, output="logit")
    assert inserted.area == pytest.approx(136 + 1 - area)


def test_the_best_order_has_the_smallest_deletion_and_the_largest_insertion_area() -> None:
    model, images = staircase(), torch.ones(1, 1, 4, 4)
    orders = [sign * model.weight[0][None] for sign in (1, -1)]
    deleted = [deletion_curve(model, images, 0, maps, steps=8).area for maps in orders]
    inserted = [insertion_curve(model, images, 0, maps, steps=8, baseline=0.0).area for maps in orders]
    assert deleted == pytest.approx([1, 1])  # the mean of a white image is white
    assert inserted[0] > inserted[1]


@pytest.mark.parametrize("curve", CURVES)
def test_a_pixel_counts_with_all_its_channels(curve: Callable[..., FaithfulnessCurve]) -> None:
    model, images, maps = Linear(), photos(), photos(3) - 0.3
    whole = curve(model, images, 1, maps, steps=5)
    for summed in (maps.sum(1), maps.sum(1, keepdim=True)):
        assert torch.equal(curve(model, images, 1, summed, steps=5).scores, whole.scores)


@pytest.mark.parametrize("curve", CURVES)
def test_max_batch_bounds_the_batches_and_changes_nothing(curve: Callable[..., FaithfulnessCurve]) -> None:
    model, images, maps = Linear(), photos(5), photos(5)
    whole = curve(model, images, None, maps, steps=6)
    model.batches.clear()
    cut = curve(model, images, None, maps, steps=6, max_batch=4)
    assert max(model.batches) == 4
    assert torch.allclose(cut.scores, whole.scores, atol=1e-6)
    alone = curve(model, images[3:4], None, maps[3:4], steps=6)
    assert torch.allclose(alone.scores, whole.scores[3:4], atol=1e-6)


def test_equal_pixels_go_in_a_fixed_order_that_is_not_reading_order() -> None:
    model, images = staircase(), torch.ones(2, 1, 4, 4)
    torch.manual_seed(0)
    first = deletion_curve(model, images, 0, torch.zeros(2, 4, 4), steps=16, baseline=0.0, output="logit")
    torch.manual_seed(1)
    again = deletion_curve(model, images, 0, torch.zeros(2, 4, 4), steps=16, baseline=0.0, output="logit")
    assert torch.equal(first.scores, again.scores)
    assert torch.equal(first.scores[0], first.scores[1])
    worth = -first.scores[0].diff()
    assert worth.sort().values.tolist() == [*range(1, 17)]
    assert not torch.equal(worth, worth.sort(descending=True).values)


def test_steps_need_not_divide_the_pixels() -> None:
    model = staircase()
    curve = deletion_curve(model, torch.ones(1, 1, 4, 4), 0, model.weight[:1], steps=3, baseline=0.0, output="logit")
    assert (16 * curve.shares).tolist() == [0, 5, 11, 16]
    assert curve.scores.shape == (1, 4)


def test_the_ends_are_the_image_and_the_baseline() -> None:
    model, images = Linear(), photos()
    with torch.no_grad():
        full, blurred = (model(shown).softmax(1)[:, 2] for shown in (images, scoring.baseline_images("blur", images)))
    deleted, inserted = (curve(model, images, 2, images, baseline="blur", steps=4) for curve in CURVES)
    assert torch.allclose(deleted.scores[:, [0, -1]], torch.stack([full, blurred], 1), atol=1e-6)
    assert torch.allclose(inserted.scores[:, [0, -1]], torch.stack([blurred, full], 1), atol=1e-6)


def test_a_blurred_image_keeps_its_colour_and_loses_its_detail() -> None:
    assert torch.allclose(scoring.baseline_images("blur", torch.full((1, 3, 8, 12), 0.3)), torch.tensor(0.3))
    noise = photos(4, side=16)
    assert scoring.baseline_images("blur", noise).std() < 0.3 * noise.std()


def test_the_frozen_copy_of_long_work_gives_the_same_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model(photos(20))  # gives BatchNorm statistics
    plain = deletion_curve(model, photos(), 0, photos(), steps=8)
    monkeypatch.setattr("cifarkit.inference._WORTH_FREEZING", 1)
    assert torch.allclose(deletion_curve(model, photos(), 0, photos(), steps=8).scores, plain.scores, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_are_brought_to_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    maps = photos() - 0.2
    for figure in (deletion_curve, insertion_curve):
        found, expected = (figure(model, photos(), 1, maps) for model in (Linear().to(dtype), Linear()))
        assert torch.allclose(found.scores, expected.scores, atol=0.03)
    found, expected = (
        completeness_error(model, photos(), None, maps, "blur", relative=False)
        for model in (Linear().to(dtype), Linear())
    )
    assert torch.allclose(found, expected, atol=0.1)


@pytest.mark.parametrize("curve", CURVES)
def test_the_model_stays_as_it_was(curve: Callable[..., FaithfulnessCurve]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(48).eval(), nn.Linear(48, 3)).train()
    model[2].eval()
    model[3].weight.grad = torch.ones(3, 48)
    before = [part.training for part in model.modules()], [buffer.clone() for buffer in model.buffers()]
    first, second = (curve(model, photos(), 1, photos(), steps=4).scores for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert [part.training for part in model.modules()] == before[0]
    assert all(torch.equal(old, new) for old, new in zip(before[1], model.buffers(), strict=True))
    assert torch.equal(model[3].weight.grad, torch.ones(3, 48))


class Shifting(Linear):
    """Takes the mean off its images in place."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5))


class Wrapped(nn.Module):
    """Returns its logits in something else."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        logits = images.flatten(1)
        return {"logits": logits} if self.kind is dict else (logits,)


@pytest.mark.parametrize("figure", [completeness_error, *CURVES])
def test_modes_come_back_after_an_exception(figure: Callable[..., Any]) -> None:
    model = Broken()
    before = [part.training for part in model.modules()]
    with pytest.raises(ValueError, match=r"the model fails on images.*no power"):
        figure(model, photos(), 0, photos())
    assert [part.training for part in model.modules()] == before


def test_a_curve_reads_as_one_line() -> None:
    model, images = staircase(), torch.ones(2, 1, 4, 4)
    curve = deletion_curve(model, images, 0, images, steps=16, baseline=0.0, output="logit")
    assert str(curve).startswith("deletion: area ")
    assert "2 images), score 136.500 -> 0.500; the smaller, the better" in str(curve)
    assert "1 image), score 0.500 -> 136.500; the larger" in str(
        insertion_curve(model, images[:1], 0, images[:1], baseline=0.0, output="logit", steps=2)
    )
    assert "\n" not in repr(curve)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": photos}, TypeError, "model is a function; give a torch.nn.Module"),
        ({"model": nn.Conv2d(3, 3, 1)}, ValueError, r"to logits \(B, K\); for one image it returned \(1, 3, 4, 4\)"),
        ({"model": Shifting()}, ValueError, "the model changes its images in place, so every pass would see others"),
        ({"model": Wrapped(dict)}, ValueError, r"it returned a dict; wrap it in a module .* as outputs\['logits'\]"),
        ({"model": Wrapped(tuple)}, ValueError, r"it returned a tuple; wrap it in a module .* as outputs\[0\]"),
        ({"images": [1]}, TypeError, "images must be a float tensor, transformed as in training; got list"),
        ({"images": photos().byte()}, TypeError, "images must be .* got torch.uint8"),
        ({"images": photos()[0]}, ValueError, r"images must be \(B, C, H, W\), at least one; got shape \(3, 4, 4\)"),
        ({"images": photos()[:0]}, ValueError, r"at least one; got shape \(0, 3, 4, 4\)"),
        ({"images": photos() / 0}, ValueError, "images hold NaN or infinite values"),
        ({"targets": 3}, ValueError, "targets hold class 3; the model has classes 0 to 2"),
        ({"targets": torch.tensor([0, -1, 7])}, ValueError, "targets hold class -1"),
        ({"targets": torch.tensor([0, 1])}, ValueError, r"one class for each of 3 images; got shape \(2,\)"),
        ({"targets": torch.ones(3)}, TypeError, "targets must be class numbers, int64 .* got torch.float32"),
        ({"targets": [0, 1, 2]}, TypeError, "targets is a list; give an integer, a tensor"),
        ({"targets": "cat"}, TypeError, "targets='cat' is a str; give an integer"),
        ({"attributions": [1]}, TypeError, "attributions must be a float tensor, as attribute"),
        ({"attributions": photos(2)}, ValueError, r"attributions are \(2, 3, 4, 4\) for images \(3, 3, 4, 4\)"),
        ({"attributions": photos() / 0}, ValueError, "attributions hold NaN or infinite values"),
        ({"max_batch": 0}, ValueError, "max_batch=0 must be at least 1"),
    ],
)
@pytest.mark.parametrize("figure", [completeness_error, *CURVES])
def test_refuses(figure: Callable[..., Any], changes: dict[str, Any], error: type, message: str) -> None:
    images = photos()
    good = {"model": Linear(), "images": images, "targets": 0, "attributions": photos()}
    with pytest.raises(error, match=message):
        figure(**good | changes)
    assert torch.equal(images, photos())


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"steps": 17}, ValueError, "steps=17 is more than the 16 pixels"),
        ({"steps": 0}, ValueError, "steps=0 must be at least 1"),
        ({"output": "loss"}, ValueError, "output='loss' is unknown; use 'probability' or 'logit'"),
        ({"baseline": "black"}, ValueError, "baseline='black' is unknown; use 'mean', 'blur', a number or a tensor"),
        ({"baseline": None}, TypeError, "baseline=None is a NoneType; give a number"),
        ({"baseline": torch.ones(2)}, ValueError, r"baseline has shape \(2,\) for images \(3, 3, 4, 4\); give \(C,\)"),
        ({"precision": "fp8"}, ValueError, "precision='fp8' is unknown"),
    ],
)
@pytest.mark.parametrize("curve", CURVES)
def test_curves_refuse(curve: Callable[..., Any], option: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        curve(Linear(), photos(), 0, photos(), **{"steps": 4} | option)


def test_completeness_refuses_one_map_for_all_channels() -> None:
    with pytest.raises(ValueError, match=r"attributions are \(3, 1, 4, 4\) .* give them of the same shape"):
        completeness_error(Linear(), photos(), 0, photos(channels=1))
    with pytest.raises(ValueError, match="baselines='black' is unknown"):
        completeness_error(Linear(), photos(), 0, photos(), "black")


def test_one_logit_is_a_chance_by_the_sigmoid() -> None:
    class Binary(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3))[:, None]

    images = torch.full((1, 3, 4, 4), 2.0)
    curve = deletion_curve(Binary(), images, 0, torch.rand(1, 4, 4), baseline=0.0, steps=2)
    assert curve.scores[0, 0] == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert curve.scores[0, -1] == pytest.approx(0.5)


def test_a_model_that_takes_more_than_images_or_asserts_is_named() -> None:
    class Asking(nn.Module):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return images.mean((2, 3)) + labels

    class Strict(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[2] == 224, "wrong side"
            return images

    images, maps = torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4)
    with pytest.raises(ValueError, match=r"wrap a model that takes more than images .* missing 1 required positional"):
        deletion_curve(Asking(), images, 0, maps)
    with pytest.raises(ValueError, match=r"the model fails on images of shape \(C, H, W\) = \(3, 4, 4\).*wrong side"):
        deletion_curve(Strict(), images, 0, maps)
