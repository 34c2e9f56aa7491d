"""Pictures: what they show, the files they leave, and what they say about bad input."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image as png
from torch import Tensor

from cifarkit import plots
from cifarkit.plots import attention, curves

CLASSES = ("cat", "dog", "ship")


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def history(epochs: int = 4) -> list[dict]:
    return [
        {
            "epoch": e,
            "train_loss": 2.0 - e / 4,
            "train_acc": e / 10,
            "val_loss": 2.1,
            "val_acc": 0.2,
            "lr": 0.1 / (e + 1),
        }
        for e in range(epochs)
    ]


def test_curves_label_the_last_values() -> None:
    rows = history()
    rows[-1] |= {"val_acc_swa": 0.251, "val_loss_ema": None, "stopped_because": "x"}
    figure = plots.training_curves(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Accuracy (%)", "Learning rate"]
    assert texts(figure) == ["train 1.25", "val 2.1", "val 20.0 %", "val swa 25.1 %", "train 30.0 %", "0.025"]


def test_curves_leave_out_missing_points_and_panels() -> None:
    rows = [{"train_loss": 1.0}, {"train_loss": math.nan, "val_loss": None}, {"train_loss": 0.5, "val_loss": 0.7}]
    (axes,) = plots.training_curves(rows).axes
    train, val = axes.lines
    assert train.get_xydata().tolist() == [[1, 1.0], [3, 0.5]]
    assert val.get_xydata().tolist() == [[3, 0.7]]


def test_curve_labels_never_overlap() -> None:
    rows = [{"epoch": e, **{f"{name}_acc": 0.9 for name in ("train", "val", "first", "second")}} for e in range(3)]
    heights = sorted(text.get_position()[1] for text in plots.training_curves(rows).axes[0].texts)
    assert min(np.diff(heights)) > 0.08
    assert 0 <= heights[0] <= heights[-1] <= 1


def test_other_curves_take_the_colours_that_are_left() -> None:
    rows = [{"epoch": e, **{f"{name}_acc": 0.9 for name in ("train", "val", "first", "second")}} for e in range(3)]
    assert len({line.get_color() for line in plots.training_curves(rows).axes[0].lines}) == 4
    many = [{f"{name}_acc": 0.5 for name in ("val_swa", *"abcdef")}]
    colors = [line.get_color() for line in plots.training_curves(many).axes[0].lines]
    assert len({*colors[:5]}) == 5
    assert colors[0] not in colors[1:]


@pytest.mark.parametrize(("rows", "message"), [([], "history is empty"), ([{"epoch": 0}], r"columns are \['epoch'\]")])
def test_curves_refuse_nothing(rows: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.training_curves(rows)


def test_sweep_marks_the_suggestion_and_cuts_the_divergence() -> None:
    rates = np.geomspace(1e-5, 1, 60)
    losses = np.where(rates < 0.1, 2.0 - rates * 10, 500.0)
    losses[-1] = math.inf
    axes = plots.lr_sweep(torch.tensor(rates), losses.tolist(), 0.01).axes[0]
    assert [text.get_text() for text in axes.texts] == ["suggestion 0.01"]
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[1] < 3
    dots, line, *_ = axes.lines
    assert len(dots.get_xdata()) == len(line.get_xdata()) == 59
    assert not plots.lr_sweep(rates, losses).axes[0].texts


def test_a_sweep_leaves_out_a_step_from_losses_and_line_together() -> None:
    losses, smooth = [3.0, math.nan, 2.0, 1.0, 4.0], [3.0, 2.5, 2.0, math.inf, 3.5]
    dots, line, *_ = plots.lr_sweep([0.125, 0.25, 0.5, 1, 2], losses, smooth=smooth).axes[0].lines
    assert dots.get_xydata().tolist() == [[0.125, 3.0], [0.5, 2.0], [2, 4.0]]
    assert line.get_xydata().tolist() == [[0.125, 3.0], [0.5, 2.0], [2, 3.5]]
    with pytest.raises(ValueError, match=r"losses has 1 finite values where smooth is finite"):
        plots.lr_sweep([0.1, 0.2], [1.0, math.nan], smooth=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"learning_rates \(2,\) and smooth \(1,\) must be two lists of one length"):
        plots.lr_sweep([0.1, 0.2], [1.0, 1.0], smooth=[1.0])


def test_smoothing_keeps_constants_and_length() -> None:
    assert curves._smooth(np.full(30, 3.0)) == pytest.approx(np.full(30, 3.0))
    assert curves._smooth(np.array([0.0, 4.0, 0.0])) == pytest.approx([4 / 3, 2, 4 / 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 0.2], [1.0]), "learning_rates .* and losses .* one length"),
        (([0.0, 0.2], [1.0, 1.0]), "learning_rates must be positive"),
        (([0.1, 0.2], [1.0, math.nan]), "losses has 1 finite"),
        (([0.1, 0.2], [1.0, 2.0], -1.0), "suggestion=-1.0"),
    ],
)
def test_sweep_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.lr_sweep(*arguments)


def test_grid_shows_every_pixel_as_a_crisp_square(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    plots.image_grid(images, columns=2, path=tmp_path / "new" / "grid.png")
    page = (png.imread(tmp_path / "new" / "grid.png")[..., :3] * 255).round().astype(np.uint8)
    zoomed = images[2].permute(1, 2, 0).numpy().repeat(6, axis=0).repeat(6, axis=1)
    top = len(page) - 12 - 192  # under two rows, a gap of two image pixels
    assert np.array_equal(page[top : top + 192, 12:204], zoomed)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_grid_values_and_captions() -> None:
    assert plots.to_pixels(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1))[:, 0, 0, 0].tolist() == [0, 128, 255]
    generated = torch.tensor([-1.0, 0.0, 7.0]).view(3, 1, 1, 1)
    assert plots.to_pixels(generated, (-1, 1))[:, 0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    images = torch.zeros(2, 1, 8, 8)
    assert texts(plots.image_grid(images, torch.tensor([2, 0]), CLASSES))[:2] == ["ship", "cat"]
    assert texts(plots.image_grid(images, [2, 0]))[:2] == ["2", "0"]
    assert texts(plots.image_grid(images, ["first\nline", "x" * 99]))[:2] == ["first\nline", "x" * 24]


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        ("cat.png", {}, TypeError, "images must be a uint8 or float tensor, got str"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), {}, TypeError, "got torch.int64"),
        (torch.zeros(3, 4, 4), {}, ValueError, r"images has shape \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), {}, ValueError, "at least one image"),
        (torch.full((1, 3, 4, 4), -1.0), {}, ValueError, r"from -1 to -1, outside \[0, 1\]; pass value_range"),
        (torch.full((1, 3, 4, 4), math.nan), {}, ValueError, "must be finite"),
        (torch.zeros(1, 3, 4, 4), {"value_range": (1, 0)}, ValueError, r"value_range=\(1, 0\)"),
        (torch.zeros(2, 3, 4, 4), {"labels": [0]}, ValueError, "labels has 1 entries but images has 2"),
        (torch.zeros(1, 3, 4, 4), {"labels": [3], "classes": CLASSES}, ValueError, "labels holds 3 but classes has 3"),
        (torch.zeros(1, 3, 4, 4), {"columns": 0}, ValueError, "columns=0"),
        (torch.zeros(1, 3, 4, 4), {"path": "grid.pdf"}, ValueError, r"path='grid.pdf' must end in .png"),
    ],
)
def test_grid_refuses(images: Tensor, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        plots.image_grid(images, **options)


def test_confusion_rows_are_the_true_class_in_percent() -> None:
    predictions, labels = torch.tensor([0, 0, 0, 1, 1]), [0, 0, 0, 0, 1]
    axes = plots.confusion_matrix(predictions, labels, CLASSES).axes[0]
    share = axes.images[0].get_array().filled(-1)
    assert share.tolist() == [[75, 25, 0], [0, 100, 0], [-1, -1, -1]]  # no ship was shown: an empty row
    assert [text.get_text() for text in axes.texts] == ["75", "25", "100"]
    assert axes.get_title(loc="left") == "Accuracy 80.0 % of 5 images"
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)


@pytest.mark.parametrize(
    ("wrong", "written"), [(0, ["100"]), (1, ["99.9"]), (20, ["99.6", "0.4"]), (1000, ["80", "20"])]
)
def test_confusion_says_100_only_if_nothing_is_missing(wrong: int, written: list[str]) -> None:
    predictions = (np.arange(5000) < wrong).astype(int)
    axes = plots.confusion_matrix(predictions, np.zeros(5000, int), CLASSES).axes[0]
    assert [text.get_text() for text in axes.texts] == written


@pytest.mark.parametrize("share", [0, 1, 5, 10, 19, 21, 30, 50, 100])
def test_confusion_numbers_stand_out(share: int) -> None:
    labels = np.zeros(100, int)
    axes = plots.confusion_matrix((np.arange(100) >= share).astype(int), labels, CLASSES).axes[0]
    picture = axes.images[0]
    for text in axes.texts:
        column, row = text.get_position()
        linear = picture.to_rgba(picture.get_array())[row, column, :3] ** 2.2
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        ink = 1.0 if text.get_color() == "white" else 0.0
        contrast = (max(ink, luminance) + 0.05) / (min(ink, luminance) + 0.05)
        assert contrast > 4.3  # about what the web's accessibility rules ask of body text


def test_confusion_of_100_classes_has_no_numbers() -> None:
    axes = plots.confusion_matrix(np.arange(100), np.arange(100), [str(i) for i in range(100)]).axes[0]
    assert not axes.texts
    assert len(axes.get_xticks()) == 100


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        (torch.zeros(4, 3), [0] * 4, r"predictions is torch.float32 of shape \(4, 3\).*argmax"),
        ([0, 1], [0], "predictions has 2 entries but labels has 1"),
        ([0, 3], [0, 0], "predictions runs from 0 to 3, which is outside 0 to 2 for 3 classes"),
        ([0], [-1], "labels runs from -1"),
        ([], [], "predictions is"),
    ],
)
def test_confusion_refuses(predictions: object, labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.confusion_matrix(predictions, labels, CLASSES)


LOGITS = torch.tensor([[9.0, 0.0, 0.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
LABELS = torch.tensor([0, 2, 1, 0, 0])


def test_mistakes_come_with_the_surest_first() -> None:
    assert plots.most_confident_mistakes(LOGITS, LABELS).tolist() == [2, 3, 1, 4]
    assert plots.most_confident_mistakes(LOGITS, LABELS, 2).tolist() == [2, 3]
    assert plots.most_confident_mistakes(LOGITS, LOGITS.argmax(1)).tolist() == []


def test_mistakes_are_captioned() -> None:
    images = torch.rand(5, 3, 8, 8)
    figure = plots.confident_mistakes(images, LOGITS, LABELS, CLASSES, count=2)
    assert texts(figure)[:2] == ["cat 99 %\n(dog)", "ship 96 %\n(cat)"]
    assert "Most confident mistakes" in texts(figure)[2]
    none = plots.confident_mistakes(images, LOGITS, LOGITS.argmax(1), CLASSES)
    assert none.texts[0].get_text() == "No mistake among 5 images"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": LOGITS[0]}, r"logits has shape \(3,\)"),
        ({"logits": LOGITS * math.nan}, "logits .* finite"),
        ({"labels": LABELS[:4]}, "labels has 4 entries but logits has 5"),
        ({"labels": LABELS + 1}, "labels runs from 1 to 3"),
        ({"images": torch.zeros(4, 3, 8, 8)}, "images has 4 entries but logits has 5"),
        ({"classes": CLASSES[:2]}, "classes has 2 names but logits has 3"),
        ({"count": 0}, "count=0"),
    ],
)
def test_mistakes_refuse(change: dict, message: str) -> None:
    arguments = {"images": torch.zeros(5, 3, 8, 8), "logits": LOGITS, "labels": LABELS, "classes": CLASSES} | change
    with pytest.raises(ValueError, match=message):
        plots.confident_mistakes(**arguments)


PHOTOS = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def shares(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).softmax(-1)


def test_attention_is_the_mean_and_single_queries() -> None:
    weights = shares(2, 3, 16, 16)
    panels = attention._choose_panels(weights, [5, 15], "queries", (4, 4))
    averaged = weights.mean(1)
    expected = torch.stack([averaged.mean(1), averaged[:, 5], averaged[:, 15]], dim=1)
    assert panels.heat == pytest.approx(expected.unflatten(2, (4, 4)).numpy())
    assert panels.headings == ["mean of queries", "query 1", "query 2"]
    panels = attention._choose_panels(weights, [5], "heads", (4, 4))
    expected = torch.cat([weights.mean(2), weights[:, :, 5]], dim=1)
    assert panels.heat == pytest.approx(expected.unflatten(2, (4, 4)).numpy())
    assert panels.headings[2:4] == ["mean of queries\nhead 3", "query 1\nhead 1"]


def test_attention_states_its_scale() -> None:
    weights = torch.zeros(2, 2, 16, 16, dtype=torch.float64)
    weights[0, ..., 3], weights[1, ..., 3] = 0.5, 0.08
    written = texts(plots.attention_maps(PHOTOS, weights, title="Layer 1"))
    assert [text for text in written if "%" in text][:6] == ["0 %", "12 %", "50 %", "0 %", "2 %", "8 %"]
    assert written[-3:-1] == ["query 3", "Layer 1"]
    assert "mean of 2 heads, one scale a row; 6.2 % if" in written[-1].replace("\n", " ")
    single = texts(plots.attention_maps(PHOTOS, weights, columns="heads"))
    assert single[-4:-2] == ["mean of queries\nhead 1", "mean of queries\nhead 2"]
    assert "mean of 2 heads" not in single[-1]
    assert ("Outlined" in written[-1], "Outlined" in single[-1]) == (True, False)


def test_attention_writes_large_shares_without_an_exponent() -> None:
    weights = torch.zeros(2, 16, 16)
    weights[0, :, 3], weights[1, :, 3] = 1.0, 0.994
    written = texts(plots.attention_maps(PHOTOS, weights))
    assert [text for text in written if "%" in text][:6] == ["0 %", "25 %", "100 %", "0 %", "25 %", "99 %"]
    assert "100 % if all 1 cells" in texts(plots.attention_maps(PHOTOS, torch.ones(2, 1, 1)))[-1].replace("\n", " ")


def test_attention_is_brightest_where_it_is_largest() -> None:
    weights = torch.full((1, 64, 64), 0.001)
    weights[0, :, 8 * 2 + 5] = 1.0  # row 2, column 5 of 8 x 8 cells, 24 pixels each
    panels = attention._choose_panels(weights[:, None].double(), [], "queries", (8, 8))
    _, tile = attention._tiles(np.full((192, 192, 3), 99, np.uint8), panels, 0, 1.0)
    brightness = tile.astype(int).sum(2)
    rows, columns = (brightness == brightness.max()).nonzero()
    assert (set(rows), set(columns)) == (set(range(48, 72)), set(range(120, 144)))
    figure = plots.attention_maps(torch.full((1, 3, 32, 32), 99, dtype=torch.uint8), weights, [])
    page = np.asarray(figure.axes[0].images[0].get_array())
    assert np.array_equal(page[37 : 37 + 192, 212 : 212 + 192], tile)  # below a line of text, right of the image


def test_attention_outlines_its_query_inside_the_picture() -> None:
    black = np.zeros((192, 192, 3), np.uint8)
    for query, top, left in [(0, 0, 0), (63, 192 - 26, 192 - 26), (9, 22, 22)]:
        framed = attention._outlined(black, [query], (8, 8))
        rows, columns = framed[:, :, 0].nonzero()
        assert (rows.min() - 1, columns.min() - 1) == (top, left)
    assert not black.any()


@pytest.mark.parametrize(
    ("nodes", "size", "grid", "expected"),
    [
        (16, (32, 32), None, (4, 4)),
        (8, (32, 64), None, (2, 4)),
        (1, (32, 32), None, (1, 1)),
        (16, (30, 30), None, (4, 4)),  # a feature map's cells need not be whole pixels
        (12, (32, 32), (3, 4), (3, 4)),
    ],
)
def test_attention_finds_the_grid(nodes: int, size: tuple, grid: tuple | None, expected: tuple) -> None:
    assert attention._choose_grid(nodes, np.zeros((1, *size, 3), np.uint8), grid) == expected
    plots.attention_maps(torch.zeros(1, 1, *size), shares(1, nodes, nodes), grid=grid)


def test_attention_of_nothing_is_drawn() -> None:
    written = texts(plots.attention_maps(PHOTOS, torch.zeros(2, 4, 4), [3, 0]))
    assert written[:3] == ["0 %"] * 3
    assert written[3:5] == ["1", "2"]  # beside the queries in the image


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": [[1.0]]}, TypeError, "weights must be a float tensor, got list"),
        ({"weights": torch.ones(2, 4, 4).long()}, TypeError, r"got torch\.int64"),
        ({"weights": shares(2, 16, 4)}, ValueError, r"weights has shape \(2, 16, 4\); it must be \(B, N, N\)"),
        ({"weights": shares(6, 2, 3, 16, 16)}, ValueError, r"give one layer, such as weights\[-1\]"),
        ({"weights": shares(3, 16, 16)}, ValueError, "weights has 3 entries but images has 2"),
        ({"weights": -shares(2, 16, 16)}, ValueError, "weights hold values .* at least 0"),
        ({"weights": shares(2, 16, 16) * math.nan}, ValueError, "weights hold values .* finite"),
        ({"weights": shares(2, 12, 12)}, ValueError, r"12 nodes, which fill no grid .* 32 x 32 .*give grid="),
        ({"grid": (3, 5)}, ValueError, r"grid=\(3, 5\) has 15 cells but weights has 16 nodes"),
        ({"grid": (16,)}, ValueError, r"grid=\(16,\) must be two numbers"),
        ({"images": torch.zeros(2, 1, 8, 8), "grid": (16, 1)}, ValueError, r"grid=\(16, 1\) is finer than the 8 x 8"),
        ({"queries": [16]}, ValueError, "queries holds 16, but the nodes are numbered from 0 to 15"),
        ({"queries": [0.5]}, TypeError, r"queries\[0\]=0\.5 is a float"),
        ({"queries": 5}, TypeError, r"queries=5 is a int; give a list of node numbers, as in \[5\]"),
        ({"queries": torch.tensor(5)}, TypeError, r"queries=tensor\(5\) is a Tensor; give a list of node numbers"),
        ({"grid": 4}, TypeError, r"grid=4 is a int; give two numbers, \(rows, columns\)"),
        ({"columns": "layers"}, ValueError, "columns='layers' is unknown; give 'queries' or 'heads'"),
    ],
)
def test_attention_refuses(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        plots.attention_maps(**({"images": PHOTOS, "weights": shares(2, 16, 16)} | change))


def test_a_failed_save_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.training_curves(history(), path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("curves.png", b"old")]


def test_pictures_touch_no_global_state() -> None:
    program = """
import sys, torch
from cifarkit import plots
from cifarkit.plots import attention, curves
assert "matplotlib" not in sys.modules
plots.image_grid(torch.zeros(2, 3, 8, 8))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_names_with_dollars_are_names_and_no_formulas(tmp_path: Path) -> None:
    classes = ["$5_$10", r"$\\frac", "plain"]
    labels = torch.tensor([0, 1, 2])
    plots.confusion_matrix(labels, labels, classes, tmp_path / "confusion.png")
    plots.image_grid(torch.rand(3, 3, 8, 8), classes, path=tmp_path / "grid.png", title="$5_$10")
    assert len([*tmp_path.iterdir()]) == 2
