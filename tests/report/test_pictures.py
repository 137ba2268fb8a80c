"""What a page shows of a run's images and its encoder: the right ones, a bounded number, or why none."""

import re
import shutil
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from reading import CLASSES, Page

import byol
from byol.cli import main
from byol.report.figures import Figure
from byol.report.pictures import images_of, looked_at, picture_sections, report_at_the_end, view_section
from byol.report.record import read_record
from byol.train.plan import ImageFacts, plan_run
from byol.world import ALONE


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def embedded(runs, hostile):
    """The features of all pictures, by their names, scaled to length 1."""
    features = byol.embed(byol.load_encoder(runs[0]), hostile)
    unit = features.x / np.linalg.norm(features.x, axis=1, keepdims=True)
    return dict(zip(features.names, unit, strict=True))


def page_of(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def name_in(alt: str) -> str:
    """The picture's name in its alternative text."""
    return re.search(r"<img src=x onerror=alert\(\d+\)>\.png", alt)[0]


def drawn_map(run) -> tuple[Figure, int]:
    record = read_record(str(run))
    _, (figure,) = picture_sections(record, images_of(record), byol.load_encoder(run))
    return figure, record.plan.images


def test_a_run_ends_with_its_report_and_shows_its_images(runs, hostile):
    page = page_of(runs[0])
    originals = [a for _, a, _ in page.all("img") if a["alt"].startswith("original of ")]
    assert len(originals) == 12
    for attributes in originals:
        name = name_in(attributes["alt"])
        shown = np.asarray(Image.open(BytesIO(b64decode(attributes["src"].split(",")[1])))).astype(int)
        there = np.asarray(Image.open(hostile.parent / name)).astype(int)
        assert shown.shape == there.shape
        assert np.abs(shown - there).mean() < 12  # of JPEG, on noise
    views = [a for _, a, _ in page.all("img") if a["alt"].startswith("view ")]
    assert len(views) == 24


def test_classes_and_files_named_like_markup_stay_text(runs):
    page = page_of(runs[0])
    assert len(page.all("script")) == 1
    alternatives = " ".join(a["alt"] for _, a, _ in page.all("img"))
    assert CLASSES[0] == "<script>alert(1)</script>"
    assert all(name in alternatives for name in CLASSES)
    assert all(a["src"].startswith("data:image/jpeg;base64,") for _, a, _ in page.all("img"))


def test_neighbours_are_the_most_similar_images(runs, embedded):
    page = page_of(runs[0])
    names = [name_in(a["alt"]) for _, a, _ in page.all("img") if a["alt"].startswith("<img")]
    for start in range(
        0, 8 * 11, 11
    ):  # an image, five neighbours after training, five by the untrained network
        query, *near = names[start : start + 6]
        cosines = {name: float(x @ embedded[query]) for name, x in embedded.items() if name != query}
        best = sorted(cosines.values(), reverse=True)[:5]
        assert [cosines[name] for name in near] == pytest.approx(best, abs=1e-4)


def test_the_map_is_a_pca_of_the_features(run, embedded):
    figure, _ = drawn_map(run)
    drawing = figure.file()
    spots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>(.*?)</title>', drawing)
    assert len(spots) > 20
    rows = [embedded[name_in(re.sub("&lt;", "<", name).replace("&gt;", ">"))] for *_, name in spots]
    x = np.stack(list(embedded.values())).astype(float)
    _, _, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    plane = (np.stack(rows) - x.mean(axis=0)) @ directions[:2].T
    for axis in (0, 1):
        drawn = np.array([float(spot[axis]) for spot in spots])
        assert abs(np.corrcoef(drawn, plane[:, axis])[0, 1]) > 0.97  # the farthest are drawn at the edge


@pytest.mark.parametrize("labelled", [True, False])
def test_of_many_images_only_a_sample_is_embedded(labelled, tmp_path, encoder_of):
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 16, 16), dtype=np.uint8)
    images = byol.open_images(pixels, labels=np.arange(1200) % 3 if labelled else None)
    seen = looked_at(images, encoder_of(channels=1), seed=0)
    assert 64 <= len(seen.x) <= 1000
    assert len({*seen.names}) == len(seen.x) == len(seen.pixels) == len(seen.before)
    assert (seen.labels is not None) == labelled


def test_images_that_are_gone_or_others_are_told(run, hostile, tmp_path, capsys):
    shutil.copytree(hostile.parent, tmp_path / "others")
    (tmp_path / "others" / "labels.csv").rename(tmp_path / "others" / "few.csv")
    table = (tmp_path / "others" / "few.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "others" / "few.csv").write_text("".join(table[:50]), encoding="utf-8")
    for given, part in ((tmp_path / "others" / "few.csv", "not hold the images"), (tmp_path / "no", "no")):
        assert main(["report", str(run), "--data", str(given)]) == 0
        page = page_of(run)
        assert page.all("img") == []
        assert any(part in text and "--data" in text for text in page.texts("p"))
    assert main(["report", str(run), "--data", str(hostile)]) == 0
    assert page_of(run).all("img") != []


def test_a_report_that_fails_is_a_warning_and_the_run_is_whole(run, hostile, capsys, caplog):
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    assert report_at_the_end(run) is None
    config = str(run / "config.yaml")
    assert main(["train", str(hostile), "--preset", config, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert len([message for message in caplog.messages if f"no report of {run}" in message]) == 2
    assert "encoder    " in said
    assert "report     " not in said


def test_a_network_of_ones_own_is_shown_when_it_is_named(hostile, tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten())\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = "--encoder mynet:build --image-size 16 --batch-size 16 --device cpu --epochs 1 --workers 0"
    run = tmp_path / "run"
    assert main(["train", str(hostile), "--out", str(run), *flags.split()]) == 0
    assert "Nearest neighbours" in page_of(run).texts("h2")
    assert main(["report", str(run)]) == 0
    assert "Nearest neighbours" not in page_of(run).texts("h2")
    assert main(["report", str(run), "--encoder", "mynet:build"]) == 0
    assert "Nearest neighbours" in page_of(run).texts("h2")


def test_a_run_that_collapses_leaves_a_report_too(tmp_path):
    np.savez(tmp_path / "blank.npz", images=np.zeros((64, 16, 16, 3), dtype=np.uint8))
    flags = "--encoder convnet --model.width 2 --image-size 16 --batch-size 16 --device cpu --epochs 1"
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "blank.npz"), "--out", str(run), *flags.split()]) == 5
    assert "Collapsed" in page_of(run).texts("strong")
    assert "blank" in page_of(run).text
    assert "Nearest neighbours" not in page_of(run).texts("h2")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("made_up", [{"image_size": (100_000, 100_000)}, {"local_views": 10**9}], ids=str)
def test_views_that_would_fill_the_memory_are_not_drawn(made_up):
    """As the plan of a run may say that somebody else has made."""
    images = byol.open_images(np.random.default_rng(0).integers(0, 255, (8, 20, 20, 3), dtype=np.uint8))
    plan = plan_run(byol.TrainConfig(out="x", image_size=16), ImageFacts(64, (20, 20), 3, False), ALONE)
    assert "<img" in view_section(images, plan)
    assert "too large" in view_section(images, replace(plan, **made_up))
