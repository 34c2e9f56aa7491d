"""The report: what stands in it, that hostile names stay text and damage is named, and how a browser sees it."""

import html.parser
import io
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cifarkit.reporting import charts, markup, page, pictures, report, summary
from cifarkit.reporting.reading import RunFiles, flatten, read_run

HOSTILE = "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
BROWSER = os.environ.get("CIFARKIT_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "img", "input", "link", "br", "hr"}


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, its text, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text()
        self.feed(self.source)
        found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', self.source, re.DOTALL)
        self.charts = json.loads(found[1]) if found else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_run(folder: Path, rows: int = 3, best: float = 0.9, lr: float = 0.1) -> Path:
    folder.mkdir(parents=True)
    lines = [f"{i},{10 * i + 10},{2 / (i + 1)},{best - 0.1 * (rows - 1 - i)},0.05,{i + 1}.5," for i in range(rows)]
    (folder / "metrics.csv").write_text("epoch,step,train_loss,val_acc,lr,seconds,stopped_because\n" + "\n".join(lines))
    (folder / "steps.csv").write_text("step,train_loss,lr\n10,2.0,0.1\n20,1.5,0.05\n")
    config = {"precision": "fp32", "networks": {"model": {"class": "Net", "parameters": 1234}}}
    config["optimizers"] = {"model": {"groups": [{"lr": lr}]}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def draw(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path)


def noise(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (width, height), os.urandom(3 * width * height)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "first")


def test_the_page_holds_results_and_settings(run: Path) -> None:
    path = report(run)
    made = Page(path)
    assert path == run / "report.html"
    assert not made.open
    for words in ("90.00 % (epoch 2)", "1,234", "optimizers.model.groups.0.lr", "0.6667", "Loss", "Accuracy"):
        assert words in made.text
    assert "lacks" not in made.text


def test_a_comparison_leaves_the_page_of_the_first_run_alone(run: Path, tmp_path: Path) -> None:
    alone = report(run).read_bytes()
    assert report(run, make_run(tmp_path / "second")) == run / "comparison.html"
    assert (run / "report.html").read_bytes() == alone


def test_curves_carry_their_numbers(run: Path) -> None:
    loss, accuracy, *_ = Page(report(run)).charts
    assert loss["lines"][0]["points"] == [[0.0, 2.0], [1.0, 1.0], [2.0, 0.666667]]
    assert [round(y, 2) for _, y in accuracy["lines"][0]["points"]] == [0.7, 0.8, 0.9]
    assert accuracy["percent"]
    assert all(0 <= x <= 440 and 0 <= y <= 260 for x, y in loss["lines"][0]["places"])


def test_nothing_is_fetched(run: Path) -> None:
    draw(run / "confusion.png")
    made = Page(report(run))
    policy = next(item["content"] for item in made.all("meta") if item.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert {"unsafe-inline", "unsafe-eval"}.isdisjoint(policy.split("'"))
    assert all(item["src"].startswith("data:image/png;base64,") for item in made.all("img"))
    assert not made.all("link")
    assert all(item["href"].startswith("#") for item in made.all("a"))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / HOSTILE.replace("/", "\u2215"))
    (run / "config.json").write_text(json.dumps({HOSTILE: HOSTILE, "classes": [HOSTILE, "\u202egnp\x00"]}))
    (run / "metrics.csv").write_text('epoch,"' + HOSTILE.replace('"', '""') + '_loss"\n0,1\n1,2\n')
    draw(run / f"{HOSTILE[9:20].replace('/', '')}.png")
    made = Page(report(run, title=HOSTILE))
    assert len(made.all("script")) == 2
    assert {item["src"][:10] for item in made.all("img")} == {"data:image"}
    assert not any(name.startswith("on") for _, attributes in made.elements for name in attributes)
    assert made.charts[0]["lines"][0]["name"] == HOSTILE + "_loss"
    assert HOSTILE in made.text
    assert "\u202e" not in made.source


def test_missing_files_are_named(tmp_path: Path) -> None:
    text = Page(report(tmp_path)).text
    assert all(f"{name} is missing" in text for name in ("metrics.csv", "steps.csv", "config.json"))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("metrics.csv", b"epoch,val_acc\n0,0.5\n1,0.6,7\n2,0.7\n", "left out line 3"),
        ("metrics.csv", b"\xff\xfe\x00\x01", "metrics.csv is damaged: it is no UTF-8"),
        ("steps.csv", b'step,lr\n"' + b"x" * 200_000 + b'",1\n', "steps.csv is damaged after line"),
        ("config.json", b'{"lr": ', "config.json is damaged"),
        ("config.json", b"[1]", "holds a list"),
        ("config.json", b"[" * 100_000, "config.json is damaged"),
        ("confusion.png", b"no picture", "confusion.png is damaged"),
        ("mistakes.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "mistakes.png is damaged"),
    ],
)
def test_damage_is_named(run: Path, file: str, content: bytes, words: str) -> None:
    (run / file).write_bytes(content)
    made = Page(report(run))
    assert words in made.text
    assert "Curves" in made.text


def test_values_that_are_no_numbers_are_left_out(run: Path) -> None:
    (run / "metrics.csv").write_text("epoch,val_loss,note\n0,nan,a\n1,0.5,b\n2,inf,c\n3,,d\n4,0.25,e\n")
    made = Page(report(run))
    (loss,) = [chart for chart in made.charts if chart["x"] == "epoch"]
    assert loss["lines"][0]["points"] == [[1.0, 0.5], [4.0, 0.25]]
    assert "metrics.csv holds NaN or infinite values (2 in val_loss), which are left out" in made.text
    assert "steps.csv" not in made.text


def test_numbers_that_axes_cannot_hold_are_not_drawn(run: Path) -> None:
    (run / "metrics.csv").write_text("epoch,val_loss\n0,2\n1,1e120\n2,1\n1e308,2\n-1e308,3\n")
    (loss,) = [chart for chart in Page(report(run)).charts if chart["x"] == "epoch"]
    assert loss["lines"][0]["points"] == [[0.0, 2.0], [2.0, 1.0]]


@pytest.mark.parametrize("name", ["val_acc", "val_acc_ema", "val_accuracy", "val_acc_top5", "val_acc1", "val_top5_acc"])
def test_every_accuracy_is_in_per_cent_and_best_where_it_is_largest(run: Path, name: str) -> None:
    (run / "metrics.csv").write_text(f"epoch,{name}\n0,0.5\n1,0.75\n2,0.25\n")
    made = Page(report(run))
    assert made.charts[0]["percent"]
    assert f"best {name}75.00 % (epoch 1)" in made.text


def test_a_loss_is_best_where_it_is_smallest(run: Path) -> None:
    (run / "metrics.csv").write_text("epoch,val_loss_ema,val_accumulated\n0,2,1\n1,0.5,1\n2,1,1\n")
    made = Page(report(run))
    assert "best val_loss_ema0.5 (epoch 1)" in made.text
    assert "best val_accumulated" not in made.text
    assert not any(chart["percent"] for chart in made.charts)


def test_runs_are_compared(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", best=0.95, lr=0.2)
    made = Page(report(one, two, path=tmp_path / "both.html"))
    assert "a/run" in made.text
    assert "95.00 % (epoch 2)" in made.text
    assert [line["name"] for line in made.charts[0]["lines"]] == ["a/run: train_loss", "b/run: train_loss"]
    assert made.text.index("optimizers.model.groups.0.lr") < made.text.index("Settings that are the same")
    assert made.text.index("networks.model.class") > made.text.index("Settings that are the same")


def test_averaged_weights_of_compared_runs_have_a_pattern_of_their_own(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        (run / "metrics.csv").write_text("epoch,train_acc,val_acc,val_acc_ema,val_acc_swa\n0,1,2,3,4\n1,1,2,3,4\n")
    (accuracy, *_) = charts.metric_charts([read_run(run) for run in runs], "epoch")
    looks = [line.look for line in accuracy.lines]
    assert looks[:4] == ["color-0 dashed", "color-0", "color-0 dotted", "color-0 mixed"]
    assert len({*looks}) == 8
    drawn, style = charts.draw_chart(accuracy, 0), Path(page.__file__).with_name("page.css").read_text()
    for dash in ("dashed", "dotted", "mixed"):
        assert drawn.count(f'{dash}"') == 4  # the line and its legend, of two runs
        assert f".{dash} {{ stroke-dasharray" in style
        assert f".swatch.{dash} {{" in style
    (alone, *_) = charts.metric_charts([read_run(runs[0])], "epoch")
    assert [line.look for line in alone.lines] == [f"color-{index}" for index in range(4)]


def test_pictures_find_their_section(run: Path) -> None:
    for name in ("learning_rate", "confusion", "mistakes", "augmented", "samples/epoch-001", "explanations/saliency"):
        draw(run / f"{name}.png")
    draw(run / "curves.png")
    sections = [(item.section, item.file) for item in pictures.find_pictures(read_run(run))]
    found = [section for section, _ in sections]
    assert found == ["sweep", "predictions", "predictions", "samples", "samples", "explanations"]
    assert "curves.png" not in [file for _, file in sections]
    alts = [item["alt"] for item in Page(report(run)).all("img")]
    assert "Most confident mistakes" in alts


def test_many_samples_are_thinned(run: Path) -> None:
    for epoch in range(30):
        draw(run / "samples" / f"epoch-{epoch:03d}.png", (4, 4))
    files = [item.file for item in pictures.find_pictures(read_run(run))]
    assert (files[0], files[-1], len(files)) == ("samples/epoch-000.png", "samples/epoch-029.png", 12)


def test_the_page_stays_below_its_size(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", 700_000)
    for number in range(4):
        (run / f"noise-{number}.png").write_bytes(noise(300, 150))
    rows = "\n".join(f"{step},{step % 7},0.1" for step in range(5_000))
    (run / "steps.csv").write_text(f"step,train_loss,lr\n{rows}\n")
    (run / "config.json").write_text(json.dumps({f"key-{index}": "x" * 3_000 for index in range(500)}))
    path = report(run)
    assert path.stat().st_size < page.LARGEST
    assert "is left out: the page would be too large" in Page(path).text


def test_heavy_pictures_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_HEAVY", 10_000)
    monkeypatch.setattr(pictures, "_WIDEST", 100)
    picture = pictures.Picture("others", "noise", "noise.png", 200, 40, noise(200, 40))
    ((_, fitted),) = pictures.fit_pictures([(RunFiles(Path(), "run"), picture)], 2_000_000)
    assert (fitted.width, fitted.height) == (100, 20)
    assert len(fitted.content) < len(picture.content)


def test_pictures_of_too_many_pixels_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_MOST_PIXELS", 100)
    draw(run / "confusion.png")
    assert "confusion.png is too large for a page: 40 x 30" in Page(report(run)).text


def test_the_newest_of_several_runs_is_taken(run: Path) -> None:
    (run / "metrics-2.csv").write_text("epoch,val_acc\n0,0.25\n")
    assert read_run(run).epochs == [{"epoch": 0.0, "val_acc": 0.25}]
    assert "the folder holds 2 runs" in Page(report(run)).text


def test_a_sweep_alone_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "learning_rate.csv").write_text("learning_rate,loss\n0.001,2\n0.01,1.5\n0.1,1\n1,9\n")
    made = Page(report(tmp_path))
    assert made.charts[0]["x"] == "learning rate"
    places = [x for x, _ in made.charts[0]["lines"][0]["places"]]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert "missing" not in made.text


def test_the_chart_of_a_sweep_marks_its_suggestion_and_cuts_the_divergence(tmp_path: Path) -> None:
    rows = [f"{rate},{loss},{loss},0.03" for rate, loss in ((0.001, 2), (0.01, 1.5), (0.1, 1), (1, 900))]
    (tmp_path / "learning_rate.csv").write_text("\n".join(["learning_rate,loss,smooth,suggestion", *rows]))
    chart = charts.sweep_chart(read_run(tmp_path))
    assert chart is not None
    assert (chart.mark, chart.top) == (0.03, 2.35)
    made = Page(report(tmp_path))
    assert "suggestion 0.03" in made.text
    (cut,) = made.all("clippath")
    assert {line["clip-path"] for line in made.all("polyline")} == {f"url(#{cut['id']})"}
    heights = [y for _, y in made.charts[0]["lines"][0]["places"]]
    assert 12 < heights[0] < heights[2] < 226
    assert heights[3] < 0


@pytest.mark.parametrize("suggestion", ["", "nan", "5"])
def test_a_sweep_without_a_suggestion_has_no_mark(tmp_path: Path, suggestion: str) -> None:
    rows = f"0.001,2,{suggestion}\n0.01,1.5,{suggestion}\n"
    (tmp_path / "learning_rate.csv").write_text(f"learning_rate,loss,suggestion\n{rows}")
    chart = charts.sweep_chart(read_run(tmp_path))
    assert chart is not None
    assert (chart.mark, chart.top) == (None, None)
    assert "suggestion" not in charts.draw_chart(chart, 0)


def test_where_a_run_lies_is_no_difference(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        config = {"callbacks": [{"class": "ModelCheckpoint", "folder": f"PosixPath('runs/{run.name}')"}]}
        (run / "config.json").write_text(json.dumps(config))
    text = Page(report(*runs)).text
    assert "No setting differs." in text
    assert "runs/one" not in text
    alone = Page(report(runs[0])).text
    assert "runs/one" in alone
    assert "PosixPath" not in alone


def test_the_reason_of_an_early_end_is_told(run: Path) -> None:
    (run / "metrics.csv").write_text("epoch,step,stopped_because\n0,3,SIGTERM was received\n")
    assert "SIGTERM was received" in Page(report(run)).text


def test_wrong_arguments_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run_folder='.*absent' is no folder"):
        report(tmp_path / "absent")
    with pytest.raises(ValueError, match="names a run twice"):
        report(run, run)
    with pytest.raises(ValueError, match=r"must end in \.html"):
        report(run, path=tmp_path / "page.txt")


@pytest.mark.parametrize(("low", "high"), [(0, 7), (0.0123, 0.0987), (-3, 2), (99.1, 99.9), (0, 1e-9), (5, 5e6)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    marks = charts.ticks(low, high, 5)
    assert 2 <= len(marks) <= 6
    assert all(low - 1e-9 * high <= mark <= high * (1 + 1e-9) for mark in marks)


@pytest.mark.parametrize(("low", "high"), [(2.30244, 2.30265), (93.121, 93.133), (1e-9, 3e-9), (0.0, 1.0), (-5.0, 7e5)])
def test_numbers_at_the_upright_axis_differ(low: float, high: float) -> None:
    chart = charts.Chart("loss", "epoch", [charts.Line("loss", [(0, low), (1, high)])])
    texts = re.findall(r'class="tick left(?: long)?">([^<]+)<', charts.draw_chart(chart, 0))
    assert len(texts) == len(set(texts)) >= 2


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (1e-6, 10.0, ["1e-06", "1e-04", "1e-02", "1e+00"]),
        (3e-4, 8e-3, ["5e-04", "1e-03", "2e-03", "5e-03"]),
        (1.2e-3, 9e-3, ["2e-03", "5e-03"]),
        (2.1e-3, 4.9e-3, ["2.1e-03", "4.9e-03"]),
    ],
)
def test_rates_within_a_decade_have_marks_too(low: float, high: float, texts: list[str]) -> None:
    assert list(charts.rates(math.log10(low), math.log10(high)).values()) == texts


def test_twelve_runs_have_a_colour_each(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / f"run-{number}")) for number in range(12)]
    (losses, *_) = charts.metric_charts(runs, "epoch")
    style = Path(page.__file__).with_name("page.css").read_text()
    looks = {line.look for line in losses.lines}
    assert len(looks) == len(losses.lines) == 12
    for number in range(12):
        assert f".color-{number} {{ color: var(--c{number}); }}" in style
        assert style.count(f"--c{number}: #") == 2  # by day and by night


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-12, 1e90])
def test_constant_curves_have_an_axis(value: float) -> None:
    chart = charts.Chart("flat", "epoch", [charts.Line("flat", [(0, value), (1, value)])])
    (x0, y0), (x1, y1) = charts.chart_data(chart)["lines"][0]["places"]
    assert y0 == y1
    assert 52 <= x0 < x1 <= 440
    assert "<svg" in charts.draw_chart(chart, 0)


def test_long_curves_are_thinned_to_their_ends() -> None:
    line = charts.Line("long", [(float(step), 0.0) for step in range(50_000)])
    charts.thinned([charts.Chart("long", "step", [line])])
    assert len(line.points) == 600
    assert (line.points[0][0], line.points[-1][0]) == (0, 49_999)


def test_settings_are_flattened() -> None:
    nested = {"a": {"b": [1, {"c": None}]}, "d": [], "e": "text"}
    assert flatten(nested) == {"a.b.0": "1", "a.b.1.c": "null", "d": "[]", "e": "text"}
    assert flatten({}) == {}


def test_markup_escapes() -> None:
    assert markup.clean("<a\x00\ud800>") == "&lt;a\ufffd\ufffd&gt;"
    assert markup.tag("b", "x", class_="c d", data_line='"') == '<b class="c d" data-line="&quot;">x</b>'
    assert "<" not in markup.data_block("x", HOSTILE)[42:-9]


def browse(path: Path, script: str, *flags: str) -> tuple[str, str]:
    """Open a copy of a page with a script added, and return the document at the end and what the console said."""
    assert BROWSER is not None
    source = path.read_text()
    source = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", source)
    copy = path.with_name("copy.html")
    copy.write_text(source.replace("</body>", f"<script>{script}</script></body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom", *flags]
    options.append(f"--user-data-dir={path.parent / 'profile'}")
    ended = subprocess.run([BROWSER, *options, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout, "\n".join(line for line in ended.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path or in CIFARKIT_BROWSER")
def test_a_browser_runs_it_by_keyboard(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", best=0.95)
    for epoch in range(3):
        draw(run / "samples" / f"epoch-{epoch}.png")
    script = """
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const svg = document.querySelector("#chart-0 svg"), said = [];
const readout = document.querySelector("#chart-0 output");
svg.focus(); key("ArrowRight"); said.push(readout.textContent); key("End"); said.push(readout.textContent);
document.querySelector("#chart-0 .legend button").click(); svg.focus(); key("Home"); said.push(readout.textContent);
const sort = document.querySelectorAll("#summary thead button")[1]; sort.click(); sort.click();
said.push(document.querySelector("#summary tbody th").textContent);
said.push(String([...document.querySelectorAll(".reel .picture")].filter((figure) => !figure.hidden).length));
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
said.push(wide ? "too wide" : "fits");
const unreachable = [...document.querySelectorAll("button, input, summary, svg")].filter((part) => part.tabIndex < 0);
said.push(String(unreachable.length));
document.title = said.join("|");
"""
    document, console = browse(report(run, other), script, "--window-size=390,800")
    found = re.search("<title>(.*?)</title>", document)
    assert found
    assert html.unescape(found[1]).split("|") == [
        "epoch 0: first: train_loss 2 · other: train_loss 2",
        "epoch 2: first: train_loss 0.6667 · other: train_loss 0.6667",
        "epoch 0: other: train_loss 2",
        "other",
        "1",
        "fits",
        "0",
    ]
    assert console == ""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path or in CIFARKIT_BROWSER")
def test_a_browser_sorts_names_as_words(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("2026-11-24-b", "2026-11-24-c", "2026-11-24-a")]
    script = """
document.querySelector("#summary thead button").click();
document.title = [...document.querySelectorAll("#summary tbody th")].map((cell) => cell.textContent.at(-1)).join("");
"""
    document, _ = browse(report(*runs), script)
    assert "<title>abc</title>" in document


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path or in CIFARKIT_BROWSER")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_keeps_the_names_of_runs_readable(tmp_path: Path, width: int) -> None:
    runs = [make_run(tmp_path / f"2026-11-24-cifar10-{name}") for name in ("4-minutes", "resnet18-label-smoothing")]
    draw(runs[0] / "samples" / "epoch-0.png")
    script = """
const box = document.querySelector("#summary .scroll"), names = [...box.querySelectorAll("tbody th")];
const left = () => Math.round(names[0].getBoundingClientRect().left - box.getBoundingClientRect().left);
box.style.maxWidth = "360px";
box.scrollLeft = 300;
const height = Math.max(...names.map((name) => name.offsetHeight));
const frame = document.querySelector(".frame"), image = frame.querySelector("img");
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.title = [Math.min(...names.map((name) => name.offsetWidth)), height, box.scrollLeft, left(),
  frame.clientWidth - image.clientWidth, wide].join("|");
"""
    document, console = browse(report(*runs, path=tmp_path / "both.html"), script, f"--window-size={width},800")
    found = re.search("<title>(.*?)</title>", document)
    assert found
    name, height, moved, left, slab, wide = found[1].split("|")
    assert int(name) >= 190  # of 12rem
    assert int(height) < 90  # three lines at the most
    assert (float(moved) > 100, left, slab, wide) == (True, "0", "0", "false")  # sticks while the rest is scrolled
    assert console == ""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path or in CIFARKIT_BROWSER")
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_a_browser_shows_the_mode_of_its_reader(run: Path, scheme: int, dark: bool) -> None:
    script = """
const style = getComputedStyle(document.body), link = getComputedStyle(document.querySelector("nav a"));
const light = (color) => color.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
document.title = [style.backgroundColor, style.color, link.color].map((color) => light(color).toFixed(3)).join("|");
"""
    document, console = browse(report(run), script, f"--blink-settings=preferredColorScheme={scheme}")
    found = re.search("<title>(.*?)</title>", document)
    assert found
    paper, ink, link = map(float, found[1].split("|"))
    assert paper < 0.15 < 0.5 < min(ink, link) if dark else max(ink, link) < 0.5 < 0.85 < paper
    assert console == ""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path or in CIFARKIT_BROWSER")
def test_a_browser_accepts_its_own_script_and_style(run: Path) -> None:
    path = report(run)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options.append(f"--user-data-dir={run / 'profile'}")
    ended = subprocess.run([BROWSER, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ended.stderr
    assert 'class="cursor"' in ended.stdout  # which the script has drawn


def test_a_run_that_was_stopped_in_its_first_epoch_has_done_none(run: Path) -> None:
    (run / "metrics.csv").write_text("epoch,step,stopped_because\n0,3,SIGTERM was received\n")
    facts = summary.summarize(read_run(run))
    assert not {"epochs", "updates", "seconds"} & facts.keys()
    (run / "config.json").write_text(json.dumps({"networks": {"model": {"parameters": "9" * 5000}}}))
    assert summary.summarize(read_run(run))["parameters"].startswith("999")


def test_samples_come_in_the_order_of_their_epochs(run: Path) -> None:
    for epoch in (199, 999, 1000, 1999):
        draw(run / "samples" / f"epoch-{epoch:03d}.png")
    files = [picture.file for picture in pictures.find_pictures(read_run(run))]
    assert files == [f"samples/epoch-{epoch}.png" for epoch in (199, 999, 1000, 1999)]
