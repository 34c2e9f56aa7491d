"""Sheets of explanations: what is written and drawn on them, as a picture and as a page."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from cifarkit.plots.explanations import explanations

IMAGES = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8) // 2
MAPS = {"saliency": torch.rand(2, 3, 8, 8), "grad_cam": 100 * torch.randn(2, 8, 8)}
CLASSES, LOGITS = ("cat", "dog", "ship"), torch.tensor([[3.0, 0, 0], [0, 2, 0]])


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_captions_tell_prediction_probability_question_and_truth() -> None:
    labels, targets = torch.tensor([0, 2]), torch.tensor([0, 2])
    settings = {"classes": CLASSES, "logits": LOGITS, "labels": labels, "targets": targets}
    written = texts(explanations(IMAGES, MAPS, **settings, notes={"saliency": "AUC 0.3"}, title="Why?"))
    assert {"cat 91 %\n(cat)", "dog 79 %\nwhy ship?\n(ship)", "saliency\nAUC 0.3", "grad cam", "Why?"} <= set(written)
    assert "class 0 91 %" in texts(explanations(IMAGES, MAPS, logits=LOGITS))


@pytest.mark.parametrize(
    ("name", "written"),
    [("plain triangle", "(plain triangle)"), ("deciduous triangle", "(deciduous tria)"), ("cat", "(cat)")],
)
def test_a_long_name_keeps_its_brackets(name: str, written: str) -> None:
    sheet = explanations(
        IMAGES, MAPS, classes=("cat", name, "dog"), logits=LOGITS[:, [0, 2, 1]], labels=torch.tensor([1, 1])
    )
    assert any(text.endswith(f"\n{written}") for text in texts(sheet))


def numbers(scale: Any) -> list[str]:
    return [
        text for text in texts(explanations(IMAGES, MAPS, scale=scale)) if re.fullmatch(r"[\d.e+]+", text)
    ]  # the ends and zeros


def test_a_row_all_rows_or_a_panel_have_a_scale() -> None:
    first, _, second, _ = (float(number) for number in numbers("row"))
    assert 1 < first < 4 < 100 < second
    whole = [float(number) for number in numbers("all")[::2]]
    assert whole[0] == whole[1] > 100
    assert numbers("panel") == []


def test_colours_are_red_for_blue_against_white_for_nothing() -> None:
    maps = torch.zeros(2, 8, 8)
    maps[0, :4], maps[0, 4:] = 1, -1
    canvas = np.asarray(explanations(IMAGES, {"map": maps}).axes[0].images[0].get_array())
    colours = {tuple(colour) for colour in np.unique(canvas.reshape(-1, 3), axis=0).tolist()}
    assert {(213, 94, 0), (0, 114, 178), (255, 255, 255)} <= colours
    over = np.asarray(explanations(IMAGES, {"map": maps * 0}, over_image=True).axes[0].images[0].get_array())
    assert len(np.unique(over.reshape(-1, 3), axis=0)) > 60


def sentence(maps: dict[str, torch.Tensor], **settings: Any) -> str:
    return texts(explanations(IMAGES, maps, **settings))[-1].replace("\n", " ")


def test_methods_without_sign_are_named() -> None:
    plain, signed = torch.rand(2, 8, 8), torch.randn(2, 8, 8)
    both = sentence({"smooth_grad_squared": plain, "occlusion": signed, "saliency": plain})
    assert "Saliency and smooth grad squared have no sign: red there says how much, not for or against." in both
    assert "Saliency has no sign" in sentence({"saliency": plain, "grad_cam": plain})
    assert "no sign" not in sentence({"saliency": signed, "grad_cam": plain})  # with absolute=False


def test_the_note_says_what_zero_looks_like() -> None:
    assert "white is zero;" in sentence(MAPS)
    over = sentence(MAPS, over_image=True)
    assert "white" not in over
    assert "Red speaks for the class, blue against it, where there is no colour it is zero;" in over


def test_attention_has_a_green_row_with_a_scale_of_its_own(tmp_path: Path) -> None:
    attention = torch.zeros(2, 8, 8)
    attention[:, :4] = 0.04
    maps = {"saliency": MAPS["saliency"], "grad_cam": MAPS["grad_cam"]}
    settings = {"attention": attention, "scale": "all", "notes": {"attention_rollout": "graph"}}
    figure = explanations(IMAGES, maps, tmp_path / "sheet.html", **settings)
    written = texts(figure)
    assert {"attention rollout\ngraph", "0.04", "0.02"} <= set(written)
    assert "Green: the share of attention that a cell gets, whatever the class." in sentence(maps, **settings)
    assert sentence(maps, **settings).endswith("One scale for all rows but the green one.")
    assert sentence(maps, attention=attention).endswith("so the images of a method can be compared.")
    assert "green" not in sentence(maps, scale="all").lower()
    colours = {tuple(colour) for colour in np.asarray(figure.axes[0].images[0].get_array()).reshape(-1, 3).tolist()}
    assert (0, 158, 115) in colours
    page = (tmp_path / "sheet.html").read_text()
    assert page.count('<i style="background: linear-gradient(#D55E00, #fff, #0072B2)"></i>&minus;') == 2
    assert page.count("<tr>") == 5  # the head, the images, two methods and attention
    assert 'alt="attention rollout"' in page
    assert "linear-gradient(#009E73, #fff)" in page


def test_a_page_of_panels_with_scales_of_their_own_has_no_bars(tmp_path: Path) -> None:
    explanations(IMAGES, MAPS, tmp_path / "sheet.html", attention=MAPS["saliency"][:, 0], scale="panel")
    assert "linear-gradient" not in (tmp_path / "sheet.html").read_text()


def test_the_normalisation_is_undone() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    shift, factor = (torch.tensor(values)[:, None, None] for values in (mean, std))
    plain = explanations(IMAGES, MAPS).axes[0].images[0].get_array()
    undone = explanations((IMAGES / 255 - shift) / factor, MAPS, mean=mean, std=std).axes[0].images[0].get_array()
    assert np.array_equal(plain, undone)


def test_a_zero_map_and_one_channel_draw() -> None:
    explanations(IMAGES[:, :1], {"occlusion": torch.zeros(2, 1, 8, 8)})


def test_writes_a_png(tmp_path: Path) -> None:
    explanations(IMAGES, MAPS, tmp_path / "sheet.png")
    assert imread(tmp_path / "sheet.png").ndim == 3


def test_writes_a_page_that_needs_no_other_file(tmp_path: Path) -> None:
    explanations(IMAGES, MAPS, tmp_path / "sheet.html", classes=("<cat>", "dog", "ship"), logits=LOGITS, title="A & B")
    page = (tmp_path / "sheet.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert '<meta name="viewport"' in page
    assert "&lt;cat&gt; 91 %" in page
    assert "<h1>A &amp; B</h1>" in page
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))))
    assert np.array_equal(picture, IMAGES[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"attributions": MAPS["saliency"]}, TypeError, "attributions is a Tensor; give a dict"),
        ({"attributions": {}}, ValueError, "attributions is empty"),
        ({"attributions": {"a": MAPS["grad_cam"].int()}}, TypeError, r"attributions\['a'\] must be a float tensor"),
        ({"attributions": {"a": MAPS["grad_cam"][:1]}}, ValueError, r"has shape \(1, 8, 8\); give \(2, C, 8, 8\)"),
        ({"attributions": {"a": MAPS["grad_cam"] / 0}}, ValueError, "holds NaN or infinite"),
        ({"scale": "column"}, ValueError, "scale='column' is unknown"),
        ({"notes": {"lime": "x"}}, ValueError, "notes names 'lime', which is not among the rows: saliency, grad_cam"),
        ({"notes": {"attention_rollout": "x"}}, ValueError, "notes names 'attention_rollout'"),
        ({"attention": MAPS["grad_cam"]}, ValueError, "attention holds negative values"),
        ({"attention": [0.1]}, TypeError, r"attributions\['attention_rollout'\] must be a float tensor"),
        ({"attention": torch.rand(2, 4, 4)}, ValueError, r"has shape \(2, 4, 4\); give \(2, C, 8, 8\)"),
        ({"logits": [1, 2]}, TypeError, r"logits is a list; give a tensor \(B, K\)"),
        ({"logits": LOGITS[:1]}, ValueError, r"logits has shape \(1, 3\); give \(2, K\)"),
        ({"logits": LOGITS, "classes": ("a", "b")}, ValueError, "classes has 2 names but logits has 3"),
        ({"labels": torch.tensor([0])}, ValueError, "labels has 1 entries; give one for each of 2"),
        ({"targets": torch.tensor([0, 3]), "classes": CLASSES}, ValueError, "targets runs from 0 to 3"),
        ({"mean": 0.5}, ValueError, "mean and std must both be given"),
        ({"mean": (0.5, 0.5), "std": 1}, ValueError, "mean has 2 values but images has 3"),
        ({"path": "sheet.svg"}, ValueError, r"must end in .png or .html"),
        ({"images": IMAGES.float()}, ValueError, r"outside \[0, 1\]"),
    ],
)
def test_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        explanations(**({"images": IMAGES, "attributions": MAPS} | change))


def test_bytes_are_not_normalised_and_notes_may_name_prices() -> None:
    images, maps = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {"saliency": torch.rand(1, 8, 8)}
    with pytest.raises(ValueError, match="images are uint8, so they are not normalised; leave out mean and std"):
        explanations(images, maps, mean=0.5, std=0.5)
    explanations(images, maps, notes={"saliency": "from $_$ to $10"}).canvas.draw()
