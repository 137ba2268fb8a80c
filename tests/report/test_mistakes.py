"""What a page tells of mistakes and of the preset's reference: that of the score and the run it shows."""

import csv
import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from reading import CLASSES, Page
from sklearn.metrics import confusion_matrix

from byol.cli import main
from byol.report import reference
from byol.report.record import read_record
from byol.settings import parse, preset_flags
from byol.train.config import TrainConfig
from byol.train.plan import ImageFacts, Plan, plan_run
from byol.world import World


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    return tmp_path / "run"


def reported(run: Path) -> Page:
    assert main(["report", str(run)]) == 0
    return Page((run / "report.html").read_text(encoding="utf-8"))


def rows_of(page: Page, caption: str) -> list[list[str]]:
    """The rows of a table by its caption."""
    rows, inside = [], False
    for tag, _, text in page.elements:
        if tag == "table":
            inside = False
        inside |= tag == "caption" and "".join(text) == caption
        if inside and tag == "tr":
            rows.append([])
        elif inside and tag in ("th", "td"):
            rows[-1].append("".join(text))
    return rows[1:]


def test_mistakes_are_those_of_the_classifier_that_was_scored(run, hostile, tmp_path):
    with hostile.open(encoding="utf-8", newline="") as file:
        rows = [(str(hostile.parent / row["path"]), row["label"]) for row in csv.DictReader(file)]
    for name, some in (("train", rows[:30]), ("test", rows[30:])):
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *some])
    kept, told = tmp_path / "classifier.safetensors", tmp_path / "labels.csv"
    words = ["--train", str(tmp_path / "train.csv"), "--test", str(tmp_path / "test.csv"), "--no-baselines"]
    assert main(["evaluate", str(run), *words, "--protocols", "linear", "--save-classifier", str(kept)]) == 0
    page = reported(run)
    assert "Mistakes" in page.texts("h2")
    # Someone else's answer: of what the kept classifier says.
    assert main(["predict", str(kept), "--data", str(tmp_path / "test.csv"), "--out", str(told)]) == 0
    with told.open(encoding="utf-8", newline="") as file:
        said = [row["class"] for row in csv.DictReader(file)]
    whole = confusion_matrix([label for _, label in rows[30:]], said, labels=sorted(CLASSES))
    assert 0 < np.trace(whole) < whole.sum()  # so the table tells something
    assert [row[:3] for row in rows_of(page, "Every class")] == [
        [name, str(some.sum()), str(some[place])]
        for place, (name, some) in enumerate(zip(sorted(CLASSES), whole, strict=True))
    ]
    (figure,) = [e for e in page.elements if (e[1].get("aria-label") or "").startswith("Confusion, linear.")]
    assert figure[0] == "svg"
    cells = [text for _, a, text in page.all("text") if a.get("class") == "cell"]
    shares = 100 * whole / whole.sum(axis=1, keepdims=True)
    assert cells == [f"{share:.0f}" for share in shares.flatten() if share >= 0.5]
    assert len(page.all("script")) == 1


def test_mistakes_of_another_score_are_not_shown(run, hostile):
    words = ["--train", str(hostile), "--test", "0.5", "--protocols", "knn", "--no-baselines"]
    assert main(["evaluate", str(run), *words]) == 0
    assert "Mistakes" in reported(run).texts("h2")
    lines = (run / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    newer = json.loads(lines[-1]) | {"value": 0.123}
    (run / "scores.jsonl").write_text("\n".join([*lines, json.dumps(newer)]) + "\n", encoding="utf-8")
    assert "Mistakes" not in reported(run).texts("h2")


def test_of_very_many_classes_and_scores_a_page_shows_those_that_need_a_look(run, hostile):
    words = ["--train", str(hostile), "--test", "0.5", "--protocols", "knn", "--no-baselines"]
    assert main(["evaluate", str(run), *words]) == 0
    score = json.loads((run / "scores.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    one = json.loads((run / "confusions.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    one["names"] = [f"class {place}" for place in range(3000)]
    one["cells"] = [[place, place if place >= 900 else 2999, 1] for place in range(3000)]
    more = [score | {"data_set": f"set {number}"} for number in range(300)]
    (run / "scores.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [*more, score]))
    (run / "confusions.jsonl").write_text(json.dumps(one) + "\n")
    page = reported(run)
    rows = rows_of(page, "The 1,000 lowest of 3,000 classes")
    assert [row[0] for row in rows] == one["names"][:1000]
    assert [row[3] for row in rows] == ["0.0 %"] * 900 + ["100.0 %"] * 100
    (drawn,) = [e for e in page.elements if (e[1].get("aria-label") or "").startswith("Scores with their")]
    assert drawn[1]["aria-label"].count("; ") == 99
    assert len(rows_of(page, "Each interval is a bootstrap over the test images")) >= 301
    (run / "plan.json").write_text(" " * 2**20 + (run / "plan.json").read_text(encoding="utf-8"))
    assert main(["report", str(run)]) == 2


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of presets, in the place of the package's."""
    monkeypatch.setattr(reference, "PRESETS", tmp_path)
    reference.references.cache_clear()
    yield tmp_path
    reference.references.cache_clear()


def pale(page: Page) -> int:
    return sum("pale" in (a.get("class") or "") for _, a, _ in page.all("polyline"))


def test_a_run_of_the_same_plan_lies_behind_one_of_another_seed_and_of_no_other(runs, hostile, shipped):
    from byol.report.plots import CURVES

    one, longer = runs
    assert pale(reported(longer)) == 0
    metrics = tuple(metric for metric, *_ in CURVES)
    reference.write_reference(read_record(str(one)), "<b>mine", "made by hand", metrics)
    reference.references.cache_clear()
    assert pale(reported(longer)) == 0  # it has an epoch more
    again = one.parent / "again"
    config = str(one / "config.yaml")
    assert main(["train", str(hostile), "--preset", config, "--seed", "7", "--out", str(again)]) == 0
    page = reported(again)
    assert pale(page) == len(metrics)
    assert page.all("b") == []
    assert any("<b>mine: made by hand" in text for text in page.texts("p"))
    (plot,) = [
        json.loads(a["data-plot"])
        for _, a, _ in page.all("svg")
        if a["aria-label"].startswith("Views that find their partner")
    ]
    ours, theirs = plot["runs"]
    assert theirs["name"] == "reference of <b>mine"
    found = [(x["epoch"], x["representation_retrieval"]) for x in read_record(str(one)).lines if "views" in x]
    for (epoch, share), (x, y) in zip(found, theirs["points"], strict=True):
        assert (x, y) == (pytest.approx(epoch, rel=1e-3), pytest.approx(100 * share, rel=1e-3))
    assert ours["points"] != theirs["points"]


def test_a_shipped_reference_tells_every_number_of_a_plan():
    """Those of a plan that has a new one are made anew by benchmarks/reference.py, or get it by hand."""
    names = {field.name for field in fields(Plan)} - {*reference.FREE}
    for one in reference.references():
        assert one.plan.keys() == names, one.preset


@pytest.mark.parametrize("flags", [[], ["--seed", "5"]])
def test_the_demo_has_its_reference_as_long_as_its_numbers_stay(flags, tmp_path):
    words = ["--out", str(tmp_path), *preset_flags("demo"), *flags]
    config = parse(TrainConfig, words, prog="", description="")
    plan = plan_run(config, ImageFacts(4320, (32, 32), 3, False), World.join("cpu"))
    found = reference.reference_of(plan)
    assert found is not None
    assert found.preset == "demo"
    assert found.lines[-1]["step"] == plan.total_steps
