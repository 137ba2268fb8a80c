"""The model card, read as a Markdown parser and the Hub's own library read it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import byol
from byol.errors import CheckpointError
from byol.evaluation.score import Score, write_scores
from byol.exports.card import plain

HOSTILE = "<script>alert(1)</script> [click](http://x.y) | **bold** `code` ![i](j) \\| &amp; www.x.y\n# title"
SCORE = Score(
    protocol="knn",
    metric="top1",
    value=0.931,
    low=0.92,
    high=0.94,
    std=None,
    top1=0.931,
    top5=0.99,
    settings={"k": 20, "temperature": 0.07},
    train_images=50000,
    test_images=10000,
    classes=10,
    seeds=(),
    seconds=1.0,
    encoder_name="/home/secret/runs/a",
)
PLAN = {
    "encoder": HOSTILE,
    "encoder_options": {"stem": "small"},
    "images": 49000,
    "image_size": [32, 32],
    "epochs": 200.0,
    "total_steps": 38281,
    "batch_size": 256,
    "optimizer": "lars",
    "lr": 0.2,
    "weight_decay": 1e-6,
    "base_tau": 0.99,
    "precision": "bf16",
    "seed": 3,
}


@pytest.fixture
def finished(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.json").write_text(
        json.dumps({"plan": PLAN, "images": "49,000 images in /home/secret/photos"})
    )
    for score in (SCORE, SCORE, replace(SCORE, protocol=HOSTILE)):
        write_scores({"": score}, folder / "scores.jsonl")
    return folder


def rendered(text: str) -> str:
    """HTML of the card's Markdown, without its header."""
    return MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])


def test_a_card_tells_black_and_white_of_samples_of_more_than_8_bits(encoder_of, tmp_path):
    encoder = encoder_of("convnet", width=4)
    words = "samples of more than 8 bits"
    for levels, told in (((-1024, 3071), f"{words} | -1024 is 0, 3071 is 1"), (None, "")):
        encoder.info = replace(encoder.info, levels=levels)
        byol.export(encoder, tmp_path / str(levels))
        text = (tmp_path / str(levels) / "README.md").read_text(encoding="utf-8")
        assert told in text
        assert (words in text) == bool(told)


def test_the_card_of_an_encoder_that_started_from_other_weights_says_so(encoder_of, tmp_path, finished):
    """A supervised network's, for instance: then it is not true that nobody used labels."""
    init = {"weights": "/home/secret/w.pth", "checksum": "c0ffee", "info": {"architecture": "timm:test_vit"}}
    (finished / "plan.json").write_text(json.dumps({"plan": {**PLAN, "init": init}}))
    byol.export(encoder_of("convnet"), tmp_path / "e", run=finished)
    html = rendered((tmp_path / "e" / "README.md").read_text())
    assert "trained from other weights without labels" in html
    assert "weights of a timm:test_vit, checksum c0ffee" in html
    assert "secret" not in html


def test_the_card_tells_how_the_encoder_was_trained_and_how_good_it_is(encoder_of, tmp_path, finished):
    byol.export(encoder_of("convnet"), tmp_path / "e", run=finished)
    html = rendered((tmp_path / "e" / "README.md").read_text())
    for words in (
        "49,000, without labels",
        "200 (38,281 steps of 256 images)",
        "lars",
        "1e-06",
        "0.99",
        "stem=small",
    ):
        assert f"{words}</td>" in html
    row = ("knn", "top-1", "93.1", "92.0 to 94.0", "10", "50,000", "10,000", "k 20, temperature 0.07")
    assert html.count("\n".join(f"<td>{cell}</td>" for cell in row)) == 1  # the same score twice is one row
    for words in (
        "16 x 16 pixels",
        "0.875 of the shorter side",
        "bicubic",
        "0.485, 0.456, 0.406",
        "0.229, 0.224, 0.225",
    ):
        assert words in html
    assert "secret" not in html


def test_the_card_tells_each_score_by_its_metric_and_data_set_and_leaves_other_encoders_out(
    encoder_of, tmp_path, finished
):
    encoder = encoder_of("convnet")
    pets = replace(
        SCORE,
        encoder_checksum=encoder.checksum(),
        protocol="linear",
        metric="mean_per_class",
        value=0.7,
        top1=0.8,
        data_set="pets",
    )
    tags = replace(
        SCORE,
        protocol="linear",
        metric="map11",
        value=0.6,
        top1=None,
        top5=None,
        data_set="tags",
        settings={},
    )
    again = replace(pets, test="other pets", value=0.65)
    untrained = replace(SCORE, encoder_checksum="0" * 32, value=0.123)
    meaningless = replace(pets, value=0.999, overlap=10_000)
    for score in (pets, tags, again, untrained, meaningless):
        write_scores({"": score}, finished / "scores.jsonl")
    byol.export(encoder, tmp_path / "e", run=finished)
    html = rendered((tmp_path / "e" / "README.md").read_text())
    for row in (
        ("pets", "linear", "mean per class", "70.0"),
        ("pets", "linear", "mean per class", "65.0"),
        ("tags", "linear", "11-point mAP", "60.0"),
        ("", "knn", "top-1"),
    ):
        assert html.count("\n".join(f"<td>{cell}</td>" for cell in row)) == 1
    assert "12.3" not in html
    assert "99.9" not in html
    assert "secret" not in html


def test_names_that_someone_chose_stay_text(encoder_of, tmp_path, finished):
    byol.export(encoder_of("convnet"), tmp_path / "e", run=finished)
    html = rendered((tmp_path / "e" / "README.md").read_text())
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt; [click](http://x.y) | **bold** `code`") == 2
    assert set(re.findall(r'href="([^"]*)"', html)) == {"https://arxiv.org/abs/2006.07733"}
    assert not set(re.findall(r"<(\w+)", html)) & {"script", "img", "strong", "em"}
    assert html.count("<h1>") == 1


@pytest.mark.parametrize(
    "text", [HOSTILE, "a_b_c *d* ~~e~~ <f> {g} $h$ #i 0.5 j.k é 日本", "---", "1. list", "[x]: y", "a\\b"]
)
def test_plain_text_renders_as_itself(text):
    shown = MarkdownIt("commonmark").enable("strikethrough").renderInline(f"x {plain(text)} x")
    plain_html = text.replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert shown == f"x {plain_html} x"


def test_no_escape_and_no_hidden_letter_of_a_plan_or_score_reaches_the_card(encoder_of, tmp_path, finished):
    hostile = "\x1b]0;owned\x07\x1b[2J\u202egnp\u200b\x00\r\n\x9b31m"
    plan = {**PLAN, "encoder": hostile, "optimizer": hostile, "encoder_options": {hostile: hostile}}
    (finished / "plan.json").write_text(json.dumps({"plan": plan}))
    score = replace(SCORE, protocol=hostile, data_set=hostile, settings={hostile: hostile})
    write_scores({"": score}, finished / "scores.jsonl")
    encoder = encoder_of("convnet")
    encoder.info = replace(encoder.info, architecture=f"my.code:{hostile}")
    byol.export(encoder, tmp_path / "e", run=finished)
    lines = (tmp_path / "e" / "README.md").read_text().split("\n")
    assert all(line.isprintable() for line in lines)
    assert any("owned" in line for line in lines)


def test_the_hub_s_library_reads_the_card_s_header(encoder_of, tmp_path, finished):
    for name, library in (("convnet", "byol"), ("torchvision:resnet18", "timm")):
        byol.export(encoder_of(name, size=(32, 32)), tmp_path / library, run=finished)
        data = ModelCard.load(tmp_path / library / "README.md").data
        assert (data.library_name, data.pipeline_tag) == (library, "image-feature-extraction")
        assert "byol" in data.tags


def test_only_an_encoder_beside_the_plan_of_its_run_is_said_to_be_trained_with_byol(
    encoder_of, tmp_path, finished
):
    encoder = encoder_of("torchvision:resnet18", size=(32, 32))
    byol.export(encoder, tmp_path / "trained", run=finished)
    byol.export(encoder, tmp_path / "pretrained")
    said = ("trained with BYOL", "without labels", "self-supervised-learning")
    assert all(words in (tmp_path / "trained" / "README.md").read_text() for words in said)
    assert not any(words in (tmp_path / "pretrained" / "README.md").read_text() for words in said)


@pytest.mark.parametrize(("name", "library"), [("convnet", "byol"), ("torchvision:resnet18", "timm")])
def test_the_card_s_own_code_loads_the_encoder(encoder_of, tmp_path, name, library):
    import torch
    from PIL import Image

    encoder = encoder_of(name, size=(32, 32))
    byol.export(encoder, tmp_path / "e")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "e" / "README.md").read_text(), flags=re.S)
    given = {"images": torch.rand(2, 3, 40, 40), "image": Image.new("RGB", (50, 40))}
    exec(code.replace("PATH/OF/THIS/FOLDER", str(tmp_path / "e")), given)
    assert given["features"].shape[1] == encoder.info.features


def test_without_a_run_the_card_tells_of_the_encoder_alone(encoder_of, tmp_path):
    (tmp_path / "empty").mkdir()
    byol.export(encoder_of("convnet"), tmp_path / "a")
    byol.export(encoder_of("convnet"), tmp_path / "b", run=tmp_path / "empty")
    for name in "ab":
        text = (tmp_path / name / "README.md").read_text()
        assert "## Preprocessing" in text
        assert "## How it was trained" not in text
        assert "## Scores" not in text


@pytest.mark.parametrize("text", ["no", "7", "{}"])
@pytest.mark.parametrize("file", ["scores.jsonl", "plan.json"])
def test_a_damaged_record_of_the_run_gets_a_sentence(encoder_of, tmp_path, finished, file, text):
    (finished / file).write_text(text)
    with pytest.raises(CheckpointError, match=file):
        byol.export(encoder_of("convnet"), tmp_path / "e", run=finished)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
