"""All figures of trust at once: those of the functions that compute them, and only what was asked for."""

import copy

import pytest
import torch
from torch import nn

from cifarkit.attribution import METHODS, attribute, completeness_error, deletion_curve, randomization_check
from cifarkit.attribution.robustness import sensitivity
from cifarkit.attribution.trust import ADD_UP, Trust, table, trust

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
IMAGES = torch.randn(2, 3, 8, 8)
SMALL = {"smooth_grad_squared": {"samples": 2, "steps": 2}, "gradient_shap": {"samples": 2}}


@pytest.mark.parametrize("method", METHODS)
def test_without_disturbed_copies_only_the_quick_figures(method: str) -> None:
    options = SMALL.get(method, {})
    found = trust(MODEL, IMAGES, 1, method, attribute(MODEL, IMAGES, 1, method, **options), **options)
    assert (found.completeness is not None) == (method in ADD_UP)
    assert found.infidelity is found.sensitivity is found.kept is found.verdict is None
    lines = [f"deletion {found.deletion:.2f}", f"insertion {found.insertion:.2f}"]
    assert found.note().splitlines()[-2:] == lines
    assert found.note().startswith("completeness") == (method in ADD_UP)


def test_figures_are_those_of_the_functions() -> None:
    maps = attribute(MODEL, IMAGES, 1, "deep_lift", baselines=0.3)
    found = trust(MODEL, IMAGES, 1, "deep_lift", maps, disturbed=2, stages=2, baselines=0.3)
    check = randomization_check(MODEL, IMAGES, 1, "deep_lift", stages=2, baselines=0.3)
    assert found.completeness == completeness_error(MODEL, IMAGES, 1, maps, 0.3).mean().item()
    assert found.deletion == deletion_curve(MODEL, IMAGES, 1, maps).area
    assert found.sensitivity == pytest.approx(
        sensitivity(MODEL, IMAGES, 1, "deep_lift", disturbed=2, baselines=0.3).mean().item()
    )
    assert (found.kept, found.kept_absolute, found.verdict) == (check.kept, check.kept_absolute, check.verdict)
    assert 0 <= found.infidelity <= 1.5
    expected = f"sensitivity {found.sensitivity:.2f}\nkept {check.kept:.2f}\n{check.verdict.partition(':')[0]}"
    assert found.note().endswith(expected)
    assert f"infidelity {found.infidelity:.2f}" in found.note()


@pytest.mark.parametrize("method", SMALL)
def test_methods_with_samples_of_their_own_are_asked_again_with_them(method: str) -> None:
    maps = attribute(MODEL, IMAGES, 1, method, **SMALL[method])
    found = trust(MODEL, IMAGES, 1, method, maps, disturbed=1, stages=1, curve_steps=2, **SMALL[method])
    assert found.sensitivity > 0
    assert found.verdict is not None


def test_a_pool_of_baselines_counts_with_the_mean_of_its_logits() -> None:
    pool = 2 * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = MODEL(IMAGES)[:, 1] - MODEL(pool)[:, 1].mean()
    maps = (change / 192)[:, None, None, None].expand_as(IMAGES)
    options = {"samples": 4, "baselines": pool}
    found = trust(MODEL, IMAGES, 1, "gradient_shap", maps, curve_steps=2, disturbed=1, stages=1, **options)
    assert found.completeness < 1e-5
    assert completeness_error(MODEL, IMAGES, 1, maps, pool.mean(0)).mean() > 0.1
    assert found.infidelity <= 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_figures_of_weights_of_another_dtype_are_alike(dtype: torch.dtype) -> None:
    maps, request = attribute(MODEL, IMAGES, 1, "input_x_gradient"), (IMAGES, 1, "input_x_gradient")
    expected, found = (
        trust(model, *request, maps, disturbed=2, stages=1, curve_steps=4).as_dict()
        for model in (MODEL, copy.deepcopy(MODEL).to(dtype))
    )
    for name in ("completeness", "deletion", "insertion", "infidelity", "sensitivity"):
        assert found[name] == pytest.approx(expected[name], rel=0.1)


def test_json_gets_no_infinity_and_no_nan() -> None:
    figures = Trust("saliency", float("inf"), 0.1, 0.2, float("nan"), verdict="passes").as_dict()
    assert figures["completeness"] is figures["infidelity"] is None
    assert (figures["deletion"], figures["verdict"]) == (0.1, "passes")


def test_a_table_has_a_row_for_each_method() -> None:
    found = [
        trust(MODEL, IMAGES, 0, name, attribute(MODEL, IMAGES, 0, name), curve_steps=4, disturbed=count)
        for name, count in (("saliency", 0), ("input_x_gradient", 1))
    ]
    content = table(found)
    assert [row[0] for row in content["rows"]] == ["saliency", "input_x_gradient"]
    assert all(len(row) == len(content["columns"]) for row in content["rows"])
    assert content["rows"][0][4:] == ["", "", "", "", ""]
    assert content["rows"][1][-1] in ("passes", "passes by its signs", "FAILS")


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(ValueError, match="disturbed=-1 must be at least 0"):
        trust(MODEL, IMAGES, 0, "saliency", IMAGES, disturbed=-1)
