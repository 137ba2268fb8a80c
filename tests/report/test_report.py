"""The page and its figures: what they show, whatever a run has left, and that names stay names."""

import hashlib
import json
import math
import re
import shlex
import shutil
import sys
import xml.etree.ElementTree as ET
from base64 import b64encode
from itertools import pairwise

import numpy as np
import pytest
from browser import CHROMIUM, browser
from hypothesis import given, strategies as st
from PIL import Image
from reading import Page

from byol.cli import main
from byol.report.figures import DARK, LIGHT, Curve, Figure, Range, bar, chart, labels, marks, matrix, ranges
from byol.report.markup import element, joined
from byol.report.pictures import address
from byol.report.raster import write_png
from byol.train.run_folder import RunFolder

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(runs, tmp_path):
    """A copy of a finished run, to be changed."""
    shutil.copytree(runs[0], tmp_path / "run")
    return tmp_path / "run"


def reported(*words: object) -> Page:
    assert main(["report", *map(str, words)]) == 0
    out = words[words.index("--out") + 1] if "--out" in words else f"{words[0]}/report.html"
    with open(str(out), encoding="utf-8") as file:
        return Page(file.read())


def rewritten(folder, change) -> None:
    """Change every line of a run's metrics."""
    path = RunFolder(folder).metrics
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(change(line)) + "\n" for line in lines), encoding="utf-8")


def test_the_page_says_the_verdict_first_then_what_to_try(run):
    page = reported(run)
    stored = json.loads(RunFolder(run).verdict.read_text(encoding="utf-8"))
    assert page.texts("h2")[:3] == ["Verdict", "Curves", "Scores"]
    assert stored["evidence"][1:] in page.text
    assert stored["state"].capitalize() in page.text
    assert stored["remedy"].split()[0] in page.text


def test_the_page_needs_no_network_and_runs_no_script_but_its_own(run):
    page = reported(run)
    (script,) = page.texts("script")
    (policy,) = [a["content"] for _, a, _ in page.all("meta") if a.get("http-equiv")]
    checksum = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{checksum}'" in policy
    assert page.all("link", "iframe", "object", "form", "a") == []
    assert [a for _, a, _ in page.elements if any(name.startswith("on") for name in a)] == []
    sources = [a[name] for _, a, _ in page.elements for name in ("src", "href") if name in a]
    assert [source[:40] for source in sources if not source.startswith("data:image/")] == []
    assert "url(" not in "".join(page.texts("style"))


def test_names_of_strangers_stay_text(runs, tmp_path):
    line = json.loads((runs[0] / "scores.jsonl").read_text(encoding="utf-8").splitlines()[0])
    copied = tmp_path / "</title><script>alert(2)<" / "script>"
    shutil.copytree(runs[0], copied)
    hostile = line | {
        "encoder_name": "<svg onload=alert(3)>",
        "data_set": "'\"><b>",
        "settings": {"<i>": "<u>"},
    }
    with (copied / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(hostile) + "\n")
    for words in ((copied,), (copied, runs[0], "--out", tmp_path / "both.html")):
        page = reported(*words)
        assert len(page.all("script")) == 1
        assert page.all("b", "i", "u") == []
        assert str(copied) in page.text
        assert "<svg onload=alert(3)>" in page.text


def test_nothing_that_is_not_a_number_reaches_the_page(run):
    rewritten(run, lambda line: line | {"loss": math.nan, "projection_std": math.inf})
    path = RunFolder(run).metrics
    broken = '{"step": 1, "ep\n[]\n3\n{"step": null, "epoch": 1}\n{"step": 2, "epoch": NaN, "tau": "<b>"}\n'
    broken += f'{{"step": 2, "epoch": 1, "loss": {10**400}}}\n'
    path.write_text(path.read_text(encoding="utf-8") + broken, encoding="utf-8")
    page = reported(run)
    attributes = " ".join(str(value) for _, attrs, _ in page.elements for value in attrs.values())
    assert "Learning rate" in page.text  # what is a number is drawn
    assert re.findall(r"\b(nan|inf|infinity)\b", f"{page.text} {attributes}", re.IGNORECASE) == []


def test_a_curve_lies_where_its_axes_say():
    points = [(0.0, 3.0), (2.5, 41.0), (10.0, 17.5)]
    figure = chart("a", "A title", [Curve("run", points)], unit="%", levels=[("a level", 30.0)])
    root = ET.fromstring(figure.file())
    ticks = {"middle": {}, "end": {}}  # places by their values
    for text in root.iter(f"{SVG}text"):
        side = text.get("class", "").removeprefix("tick ")
        if side in ticks and re.fullmatch(r"[\d.]+", text.text):
            ticks[side][float(text.text)] = float(text.get("x" if side == "middle" else "y"))
    (a, x_a), (b, x_b) = [*ticks["middle"].items()][:: len(ticks["middle"]) - 1]
    (c, y_c), (d, y_d) = [*ticks["end"].items()][:: len(ticks["end"]) - 1]
    (curve,) = root.iter(f"{SVG}polyline")
    drawn = [tuple(map(float, pair.split(","))) for pair in curve.get("points").split()]
    for (x, y), (left, top) in zip(points, drawn, strict=True):
        assert left == pytest.approx(x_a + (x - a) / (b - a) * (x_b - x_a), abs=0.2)
        assert top == pytest.approx(y_c + (y - c) / (d - c) * (y_d - y_c), abs=0.2)
    (level,) = [line for line in root.iter(f"{SVG}line") if line.get("class") == "level"]
    assert float(level.get("y1")) == pytest.approx(y_c + (30 - c) / (d - c) * (y_d - y_c), abs=0.2)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.sampled_from([2, 3, 4, 5]))
def test_marks_are_few_hold_the_values_and_tell_themselves_apart(low, span, count):
    found = marks(low, low + span, count)
    slack = 1e-6 * max(1, abs(low), span)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= count + 2
    assert len(set(labels(found))) == len(found)


@pytest.mark.parametrize("value", [0.00071897, 1.8882, 0.9911, 123_456.7])
def test_the_marks_of_a_single_value_fit_beside_their_axis(value):
    """As of a run that is looked at after its first line of metrics."""
    root = ET.fromstring(chart("a", "a", [Curve("run", [(6.5, value)])], epochs=6.5).file())
    ticks = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "tick end"]
    assert len(ticks) >= 3
    assert max(map(len, ticks)) <= 7  # letters of 7 pixels in a margin of 52


def test_a_long_run_is_drawn_with_few_points_that_keep_its_level():
    points = [(step / 100, 5.0 + (step % 2)) for step in range(20_000)]
    figure = chart("a", "a", [Curve("run", points)])
    (run,) = json.loads(figure.plot)["runs"]
    assert len(run["points"]) <= 240
    assert all(abs(y - 5.5) < 0.1 for _, y in run["points"])


def test_what_is_shown_is_told_to_those_who_do_not_see_it(runs, tmp_path):
    for words in ((runs[1], "--out", tmp_path / "one.html"), (*runs, "--out", tmp_path / "two.html")):
        page = reported(*words)
        levels = [int(tag[1]) for tag, _, _ in page.all("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert all(a.get("aria-label") and a.get("role") == "img" for _, a, _ in page.all("svg"))
        assert all(a.get("alt") for _, a, _ in page.all("img"))
        assert all(a.get("scope") in ("row", "col") for _, a, _ in page.all("th"))
        assert len(page.all("caption")) == len(page.all("table")) > 0
        assert page.all("html")[0][1]["lang"] == "en"
        assert len(page.all("main")) == 1


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_curves_stand_out_from_what_is_behind_them(colours):
    """By the contrast of WCAG 2: 4.5 for text, 3 for drawings."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for behind in ("page", "card"):
        assert {name: contrast(name, behind) for name in ("ink", "soft", "good", "bad", "warn")
                if contrast(name, behind) < 4.5} == {}  # fmt: skip
    assert {name: contrast(name, "card") for name in colours
            if re.fullmatch(r"s\d", name) and contrast(name, "card") < 3} == {}  # fmt: skip
    assert contrast("ink", "heat") >= 4.5  # the numbers of a confusion table


def spent(page: Page) -> str:
    """What the page says of where the time went, to those who do not see it."""
    (said,) = [a["aria-label"] for _, a, _ in page.all("svg") if "images/s" in a["aria-label"]]
    return said


def test_the_time_of_a_run_is_told_by_its_parts_in_percent_and_minutes(run):
    parts = {"waiting": 60, "views": 120, "online": 300, "target": 60, "optimizer": 30, "looks": 24,
             "saving": 4.5, "rest": 1.5}  # fmt: skip
    rewritten(run, lambda line: line | {f"seconds_{part}": seconds for part, seconds in parts.items()})
    page = reported(run)
    shown = [text for text in page.texts("text") if re.fullmatch(r"[\d.]+ %|(\d+m )?[\d.]+s", text)]
    for percent, amount in zip(
        ("10.0 %", "20.0 %", "50.0 %", "10.0 %", "5.0 %", "4.0 %", "0.8 %", "0.2 %"),
        ("1m 00s", "2m 00s", "5m 00s", "1m 00s", "30s", "24s", "4.5s", "1.5s"),
        strict=True,
    ):
        assert (percent, amount) in [*pairwise(shown)]
    assert "About 10m 00s" in spent(page)
    assert "about 10m 00s" in page.texts("dd")
    words = "20.0 % Making views, 2m 00s"
    assert words in spent(page)
    reported(run, "--figures", run / "figures", "--out", run / "again.html")
    figure = ET.fromstring((run / "figures" / "time.svg").read_text(encoding="utf-8"))
    assert words in figure.find(f"{SVG}desc").text


def test_a_running_run_is_told_from_one_that_broke_off(run):
    folder = RunFolder(run)
    folder.encoder.unlink()
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with folder.held():
        page = reported(run)
        assert "Running" in page.texts("strong")
        assert "Make the report again when it has ended" in page.text
        assert "again to continue" not in page.text  # it goes on by itself
    page = reported(run)
    assert "Unfinished" in page.texts("strong")
    commands = [shlex.split(text) for text in page.texts("code") if text.startswith("byol train")]
    assert ["--out", str(run)] in [words[-2:] for words in commands]
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed <= {"report.html", ".lock"}


def test_the_command_that_repeats_a_run_does_so(run, hostile, tmp_path, capsys):
    page = reported(run)
    (command,) = [text for text in page.texts("code") if text.endswith("NEW_FOLDER")]
    words = shlex.split(command)
    assert words[:3] == ["byol", "train", str(hostile)]
    assert main([*words[1:-1], str(tmp_path / "again")]) == 0
    plans = [
        json.loads((folder / "plan.json").read_text(encoding="utf-8")) for folder in (run, tmp_path / "again")
    ]
    assert plans[0]["plan"] == plans[1]["plan"]
    assert plans[0]["data"] == plans[1]["data"]


def test_a_collapsed_run_is_told_with_its_remedy_though_it_has_no_encoder(run):
    RunFolder(run).encoder.unlink()
    names = ("representation_std", "projection_std", "batch_std", "target_std")
    rewritten(run, lambda line: line | {name: 0.001 for name in names if name in line and line["step"]})
    page = reported(run)
    assert "Collapsed" in page.texts("strong")
    assert "have a std of 0.001" in page.text
    assert "--optim.base-lr" in page.texts("code")


def test_two_runs_are_compared_by_what_differs(runs, tmp_path):
    out = tmp_path / "both.html"
    page = reported(*runs, "--out", out)
    for run in runs:
        assert str(run) in page.texts("h2")
    settings = page.texts("th")
    assert "seed" in settings
    assert "epochs" in settings
    assert "batch_size" not in settings
    for _, attributes, _ in page.all("svg"):
        if plot := attributes.get("data-plot"):
            assert [one["name"] for one in json.loads(plot)["runs"]] == [str(run) for run in runs]


def test_a_run_without_labels_has_a_report_too(hostile, tmp_path):
    flags = "--encoder convnet --model.width 2 --image-size 16 --batch-size 16 --device cpu --epochs 1"
    names = tmp_path / "list.txt"
    names.write_text("".join(f"{path}\n" for path in sorted(hostile.parent.glob("*.png"))), encoding="utf-8")
    assert main(["train", str(names), "--out", str(tmp_path / "run"), *flags.split()]) == 0
    page = reported(tmp_path / "run")
    assert "byol evaluate RUN" in " ".join(page.texts("pre"))


def test_every_figure_is_a_file_of_its_own(runs, tmp_path):
    folder = tmp_path / "figures"
    reported(runs[1], "--figures", folder, "--out", tmp_path / "a.html")
    names = {path.stem for path in folder.iterdir()}
    assert {"knn", "loss", "scores", "time", "tau", "map"} <= names
    assert {path.name for path in folder.iterdir()} == {
        f"{one}.{kind}" for one in names for kind in ("svg", "png")
    }
    for path in folder.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert root.find(f"{SVG}title").text
        assert "var(" not in text  # which only browsers know
        with Image.open(path.with_suffix(".png")) as image:
            assert image.size == pytest.approx(
                (3 * float(root.get("width")), 3 * float(root.get("height"))), abs=1
            )


def every_figure():
    """One of each kind, with all that they are drawn of."""
    points = [(float(x), 3 + x % 7 / 2) for x in range(12)]
    band = [(x, y - 0.5, y + 0.5) for x, y in points]
    behind = Curve("reference", [(x, y / 2 + 1) for x, y in points], pale=True)
    yield chart("a", "A title", [Curve("a run", points, band), Curve("other", points[::-2][::-1]), behind],
                unit="%", levels=[("collapsed", 0.5)])  # fmt: skip
    yield ranges(
        "b", "Scores $x^2$", [("knn", [Range("ours", 0.7, 0.6, 0.8, ours=True), Range("b", 0.2, 0.1, 0.3)])]
    )
    yield bar("c", "Time", [("computing", 0.7, "7m 00s"), ("waiting", 0.3, "3m 00s")])
    yield matrix("d", "Confusion", ["ant", "bee", "cat"], [[0.9, 0.1, 0], [0, 1, 0], [0.3, 0.3, 0.4]])
    pixels = np.zeros((20, 40, 3), np.uint8) + np.array([200, 40, 40], np.uint8)
    thumb = element(
        "image", href=address(Image.fromarray(pixels), 72), x="100.0", y="60.0", width=72, height=72
    )
    spots = element("circle", cx="300", cy="90", r=40, class_="dot s3"), thumb
    frame = element("rect", x="100", y="60", width=72, height=72, class_="frame s1")
    yield Figure("e", "A map", "of two", joined(*spots, frame))


page_needed = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@page_needed
def test_axe_finds_nothing_serious_and_the_page_asks_for_nothing_and_says_nothing(
    runs, run, hostile, tmp_path
):
    words = ["--train", str(hostile), "--test", "0.5", "--protocols", "knn", "--no-baselines"]
    assert main(["evaluate", str(run), *words]) == 0  # so that there are mistakes
    reported(run)
    reported(*runs, "--out", tmp_path / "two.html")
    (tmp_path / "bad.html").write_text(
        "<img src='data:,'><p style='color:#aaa;background:#fff'>some words", encoding="utf-8"
    )
    with browser() as page:
        page.ask("Page.navigate", url=(tmp_path / "bad.html").as_uri())
        page.until("document.readyState === 'complete'")
        assert {one.split(":")[0] for one in page.inaccessible()} >= {"image-alt", "color-contrast"}
        page.said.clear()
        page.requests.clear()
        for path in (run / "report.html", tmp_path / "two.html"):
            for width, dark in ((1280, False), (390, True)):
                page.dark(dark)
                page.size(width, 900)
                page.ask("Page.navigate", url=path.as_uri())
                page.until("document.readyState === 'complete' && document.querySelector('main') !== null")
                page.js("document.querySelectorAll('details').forEach((one) => { one.open = true })")
                assert page.inaccessible() == []
                assert page.js("document.documentElement.scrollWidth <= innerWidth")
        assert page.said == []
        assert [url for url in page.requests if not url.startswith((tmp_path.as_uri(), "data:"))] == []


@page_needed
def test_a_figure_looks_as_png_as_a_browser_draws_its_svg(tmp_path):
    """But for letters, which are as wide as their fonts make them: blurred, both are the same."""
    with browser() as page:
        page.size(800, 600)  # more than a telephone, which shows files small
        for figure in every_figure():
            (tmp_path / "a.svg").write_text(figure.file(), encoding="utf-8")
            page.ask("Page.navigate", url=(tmp_path / "a.svg").as_uri())
            page.until("document.readyState === 'complete'")
            page.picture(tmp_path / "theirs.png")
            write_png(figure, tmp_path / "ours.png")
            theirs = (
                Image.open(tmp_path / "theirs.png").convert("RGB").crop((0, 0, figure.width, figure.height))
            )
            ours, small = (
                Image.open(tmp_path / "ours.png").convert("RGB"),
                (figure.width // 6, figure.height // 6),
            )
            first, second = (
                np.asarray(one.resize(small, Image.Resampling.BOX)).astype(int) for one in (theirs, ours)
            )
            apart = np.abs(first - second)
            assert (255 - first).mean() > 4, figure.name  # the browser has drawn something
            assert apart.mean() < 0.25 * (255 - first).mean(), figure.name
            assert (apart.max(axis=2) > 60).mean() < 0.02, figure.name


def test_without_matplotlib_figures_are_a_sentence_before_any_work(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = [
        "report",
        str(runs[1]),
        "--figures",
        str(tmp_path / "figures"),
        "--out",
        str(tmp_path / "a.html"),
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'byol[figures]'" in said
    assert [*tmp_path.iterdir()] == []
    assert main([*words[:2], *words[4:]]) == 0  # which needs none


@pytest.mark.parametrize("what", ["nothing there", "a folder", "a file", "a damaged plan"])
def test_what_is_not_a_run_is_a_sentence(what, tmp_path, capsys):
    path = tmp_path / "x"
    if what in ("a folder", "a damaged plan"):
        path.mkdir()
    if what == "a file":
        path.write_text("", encoding="utf-8")
    if what == "a damaged plan":
        (path / "plan.json").write_text('{"format": 3, "plan": {}}', encoding="utf-8")
    assert main(["report", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(path) in said
    assert not (path / "report.html").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"images": 0}, {"look_every_steps": 0}, {"accumulation": 0}, {"total_steps": 0},
        {"init": {"info": {}}}, {"init": {"info": [], "weights": "a", "checksum": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_of_numbers_that_no_run_has_is_a_sentence(run, changed, capsys):
    path = RunFolder(run).plan
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, "plan": stored["plan"] | changed}), encoding="utf-8")
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "plan.json cannot be read" in said


def test_a_damaged_config_yaml_costs_a_report_nothing(runs, tmp_path):
    """It is for people; the plan holds the same with a checksum."""
    whole = reported(runs[0]).texts("td")
    copy = shutil.copytree(runs[0], tmp_path / "run")
    (copy / "config.yaml").write_bytes(b"\xb5")
    assert len(reported(copy).texts("td")) == len(whole)


def test_runs_and_files_that_cannot_be_are_sentences(runs, tmp_path, capsys):
    for words, part in (
        ([], "No run"),
        ([str(runs[0]), str(runs[0])], "twice"),
        ([str(runs[0]), "--out", str(tmp_path)], "is a folder"),
    ):
        assert main(["report", *words]) == 2
        assert part in capsys.readouterr().err
