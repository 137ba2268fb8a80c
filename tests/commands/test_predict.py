"""`byol predict`, and `byol export` of what it takes, as people type them."""

import csv
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import byol
from byol.cli import main


@pytest.fixture(scope="module", params=["linear", pytest.param("knn", marks=pytest.mark.slow)])
def classifier(request, run, labelled, tmp_path_factory):
    """A file that `byol evaluate` kept, of the images of three colours."""
    file = tmp_path_factory.mktemp("kept") / f"{request.param}.safetensors"
    words = ["evaluate", str(run), "--train", str(labelled), "--test", str(labelled), "--no-baselines"]
    assert main([*words, "--no-cache", "--protocols", request.param, "--save-classifier", str(file)]) == 0
    return file


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.reader(file)]


def test_predict_writes_the_class_of_every_image(classifier, labelled, tmp_path, capsys):
    out = tmp_path / "new" / "labels.csv"
    assert main(["predict", str(classifier), "--data", str(labelled), "--out", str(out)]) == 0
    head, *rows = table(out)
    found = byol.load_classifier(classifier).predict(labelled)
    assert head == ["path", "class", "probability"]
    assert [row[:2] for row in rows] == [list(pair) for pair in zip(found.names, found.labels, strict=True)]
    assert [float(row[2]) for row in rows] == pytest.approx(found.probabilities.max(axis=1), abs=1e-6)
    said = capsys.readouterr().out
    assert "24 images" in said
    assert str(out) in said
    assert main(["predict", str(classifier), "--data", str(labelled), "--out", str(out), "--all"]) == 0
    assert table(out)[0] == ["path", "class", "probability", "blue", "green", "red"]
    assert [row[:3] for row in table(out)[1:]] == rows
    assert [np.argmax([*map(float, row[3:])]) for row in table(out)[1:]] == found.likeliest.tolist()


def test_unreadable_images_are_named_and_counted_and_left_out(classifier, labelled, tmp_path, capsys, caplog):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.png"):
        (pictures / name).write_bytes((labelled / "red" / "0.png").read_bytes())
    (pictures / "broken.png").write_bytes(b"not a picture")
    np.save(tmp_path / "gray.npy", np.zeros((3, 20, 20), dtype=np.uint8))
    out = tmp_path / "labels.csv"
    assert main(["predict", str(classifier), "--data", str(pictures), "--out", str(out)]) == 0
    assert [row[0] for row in table(out)[1:]] == ["a.png", "b.png"]
    assert "broken.png" in caplog.text
    assert "1 of 3 images" in capsys.readouterr().out
    assert main(["predict", str(classifier), "--data", str(tmp_path / "gray.npy"), "--out", str(out)]) == 0
    assert len(table(out)) == 4


def test_predict_replaces_nothing_but_predictions(classifier, labelled, tmp_path, capsys):
    mine = tmp_path / "mine.csv"
    mine.write_text("path,label\na.png,cat\n")
    for out, says in ((mine, "not replaced"), (tmp_path, ".csv"), (tmp_path / "labels.txt", ".csv")):
        assert main(["predict", str(classifier), "--data", str(labelled), "--out", str(out)]) == 2
        assert says in capsys.readouterr().err
    assert mine.read_text() == "path,label\na.png,cat\n"


def test_an_encoder_alone_is_a_sentence(run, labelled, tmp_path, capsys):
    words = ["--data", str(labelled), "--out", str(tmp_path / "labels.csv")]
    for place in (run, run / "encoder.safetensors"):
        assert main(["predict", str(place), *words]) == 2
        assert "--save-classifier" in capsys.readouterr().err


def test_evaluate_says_what_it_kept_and_what_is_next(run, labelled, tmp_path, capsys):
    file = tmp_path / "kept.safetensors"
    words = ["evaluate", str(run), "--train", str(labelled), "--test", "0.5", "--save-classifier", str(file)]
    assert main([*words, "--protocols", "linear"]) == 0  # beside the baselines, which are not kept
    said = capsys.readouterr().out
    assert f"written    {file}" in said
    assert f"next       byol predict {file}" in said
    assert byol.load_classifier(file).encoder.checksum() == byol.load_encoder(run).checksum()
    for more in ([], ["--protocols", "linear", "--seeds", "2"], ["--protocols", "knn", "--k", "1", "5"]):
        assert main([*words, *more]) == 2
        assert "one classifier" in capsys.readouterr().err
    sets = tmp_path / "sets.yaml"
    sets.write_text(f"a: {{train: {labelled}, test: {labelled}}}\n")
    assert main(["evaluate", str(run), "--transfer", str(sets), *words[-2:]]) == 2
    assert "--save-classifier" in capsys.readouterr().err


def test_export_writes_the_encoder_with_its_classifier(classifier, labelled, tmp_path, capsys):
    file, loaded = tmp_path / "x.onnx", byol.load_classifier(classifier)
    assert main(["export", str(classifier), "--out", str(tmp_path / "x.pth")]) == 2
    assert ".onnx" in capsys.readouterr().err
    assert main(["export", str(classifier), "--out", str(file)]) == 0
    said = capsys.readouterr().out
    assert "same probabilities" in said
    assert "blue, green, red" in said
    paths = sorted(labelled.glob("*/*.png"))
    x = (
        np.stack([np.asarray(Image.open(path).resize((16, 16))) for path in paths]).transpose(0, 3, 1, 2)
        / 255
    )
    x = np.float32(x)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(["probabilities"], {"images": x})
    np.testing.assert_allclose(found, loaded(torch.from_numpy(x)), atol=1e-5)
    assert found.max(axis=1).min() < 0.999  # not so sure that every wrong graph would agree
    notes = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(notes["preprocessing"])["classes"] == list(loaded.classes)
    if loaded.protocol == "knn":  # one of the two is enough for the other tool
        return
    done = byol.export(loaded, tmp_path / "x.pt2")
    assert (done.check.what, done.check.agrees) == ("probabilities", True)
    result = torch.export.load(tmp_path / "x.pt2").module()(torch.from_numpy(x))
    torch.testing.assert_close(result, loaded(torch.from_numpy(x)), atol=1e-5, rtol=0)
