"""`byol evaluate` as people type it."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

import byol
from byol.cli import main
from byol.encoders.load import untrained
from byol.evaluation.protocols import settled
from byol.features.features import Features


def test_evaluate_prints_and_keeps_scores(run, labelled, capsys):
    before = (run / "scores.jsonl").read_text() if (run / "scores.jsonl").exists() else ""
    words = [
        "evaluate",
        str(run),
        "--train",
        str(labelled),
        "--test",
        str(labelled),
        "--protocols",
        "knn",
        "linear",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "knn" in out
    assert "linear" in out
    lines = (run / "scores.jsonl").read_text().removeprefix(before).splitlines()
    kept = [(json.loads(line)["encoder_name"], json.loads(line)["protocol"]) for line in lines]
    assert kept == [(name, one) for name in (str(run), "pixels", "untrained") for one in ("knn", "linear")]
    assert "verdict   linear: " in out
    assert "raw pixels (" in out
    assert "the most frequent class alone (+" in out
    assert json.loads(lines[1])["top1"] > 0.6  # of three colours, by an encoder of 3 steps


def test_evaluate_computes_features_once_and_repeats_what_is_random(run, labelled, tmp_path, capsys):
    words = [
        "evaluate",
        str(run),
        "--train",
        str(labelled),
        "--test",
        str(labelled),
        "--out",
        str(tmp_path / "o"),
    ]
    words.append("--no-baselines")
    assert main([*words, "--k", "1", "5", "--seeds", "2"]) == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "o" / "features").iterdir()}
    assert len(kept) == 1  # the same images on both sides
    assert main([*words, "--protocols", "knn", "--metric", "mean_per_class"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "o" / "features").iterdir()} == kept
    lines = [json.loads(line) for line in (tmp_path / "o" / "scores.jsonl").read_text().splitlines()]
    assert [
        (line["protocol"], line["metric"], line["seeds"], line["settings"].get("k")) for line in lines
    ] == [
        ("knn", "top1", [], 1),
        ("knn", "top1", [], 5),
        ("linear", "top1", [0, 1], None),
        ("knn", "mean_per_class", [], 20),
    ]
    assert {line["encoder_name"] for line in lines} == {str(run)}
    assert lines[0]["test"] == f"24 images in {labelled}/ (3 classes)"
    assert "standard deviation over the seeds 0, 1" in capsys.readouterr().out


def test_the_central_crop_that_is_scored_can_be_another(run, labelled, tmp_path):
    words = ["evaluate", str(run), "--train", str(labelled), "--test", str(labelled), "--protocols", "knn"]
    assert main([*words, "--no-baselines", "--out", str(tmp_path), "--eval-crop", "1"]) == 0
    (scored,) = (tmp_path / "features").glob("*/*.npz")
    encoder = byol.load_encoder(run)
    whole, usual = (byol.embed(one, labelled).x for one in (encoder.with_crop(1), encoder))
    np.testing.assert_allclose(Features.load(scored).x, whole, rtol=1e-4, atol=1e-5)
    assert np.abs(whole - usual).max() > 1e-3


def test_evaluate_puts_runs_and_baselines_side_by_side(run, labelled, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "scores.jsonl").unlink(missing_ok=True)
    words = [
        "evaluate",
        str(run),
        "--train",
        str(labelled),
        "--test",
        str(labelled),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--no-cache", "--compare", str(other), "pixels", "untrained"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["protocol", "metric", str(run), str(other), "pixels", "untrained", "majority"]
    assert [line.split()[0] for line in table[1:3]] == ["knn", "linear"]
    assert table[1].split()[2] == table[1].split()[4]  # the same encoder twice
    kept = [
        json.loads(line)["encoder_name"]
        for line in (tmp_path / "o" / "scores.jsonl").read_text().splitlines()
    ]
    assert kept == [str(run)] * 2 + ["pixels"] * 2 + ["untrained"] * 2
    assert len((other / "scores.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "o" / "features").exists()


def test_evaluate_puts_few_labels_beside_training_from_scratch_on_them(run, labelled, tmp_path, capsys):
    words = [
        "evaluate",
        str(run),
        "--train",
        str(labelled),
        "--test",
        str(labelled),
        "--out",
        str(tmp_path / "o"),
    ]
    few = ["--no-baselines", "--epochs", "1", "--protocols", "knn", "semi-50"]
    assert main([*words, *few, "--compare", "untrained", "supervised"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["protocol", "metric", str(run), "untrained", "supervised"]
    lines = [json.loads(line) for line in (tmp_path / "o" / "scores.jsonl").read_text().splitlines()]
    kept = [(line["encoder_name"], line["protocol"], line["train_images"]) for line in lines]
    assert kept == [
        (str(run), "knn", 24),
        (str(run), "semi-50", 12),
        ("untrained", "knn", 24),
        ("supervised", "semi-50", 12),
    ]
    assert main([*words, "--protocols", "knn", "--compare", "supervised"]) == 2
    assert "supervised is scored by none of knn" in capsys.readouterr().err


def test_scores_that_cannot_be_written_are_told_in_a_sentence(run, labelled, tmp_path, capsys):
    (tmp_path / "scores.jsonl").mkdir()
    words = [
        "evaluate",
        str(run),
        "--train",
        str(labelled),
        "--test",
        str(labelled),
        "--protocols",
        "knn",
        "--no-cache",
    ]
    assert main([*words, "--out", str(tmp_path)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("byol evaluate: ")]
    assert f" {tmp_path}/scores.jsonl: " in line
    assert "--out" in line


def test_a_run_that_cannot_be_written_to_can_be_compared_with(run, labelled, capsys, caplog):
    words = ["--train", str(labelled), "--test", str(labelled), "--protocols", "knn", "--no-cache"]
    with (run / "encoder.safetensors").open("rb") as file:
        other = f"/proc/self/fd/{file.fileno()}"  # a folder where not even root can write
        assert main(["evaluate", str(run), *words, "--compare", other]) == 0
        assert "Its scores are shown and not kept." in caplog.text
        shown = capsys.readouterr().out
        assert other in shown.splitlines()[0]
        written = [line for line in shown.splitlines() if line.startswith("written")]
        assert written == [f"written    {run}/scores.jsonl"]
        assert main(["evaluate", other, *words]) == 2
    assert "--out" in capsys.readouterr().err


def test_evaluate_takes_features_without_an_encoder(run, labelled, tmp_path, capsys):
    """What `byol embed` wrote scores as the images do, with the run beside it or without."""
    files = [str(tmp_path / name) for name in ("train.npz", "test.parquet")]
    for file in files:
        assert main(["embed", str(run), "--data", str(labelled), "--out", file]) == 0
    sides = ["--train", files[0], "--test", files[1]]
    tables = []
    for words in ([str(run), "--train", str(labelled), "--test", str(labelled)], [str(run), *sides], sides):
        capsys.readouterr()
        assert main(["evaluate", *words, "--no-baselines", "--out", str(tmp_path / "o")]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] == tables[2]
    lines = [json.loads(line) for line in (tmp_path / "o" / "scores.jsonl").read_text().splitlines()]
    assert len({line["encoder_checksum"] for line in lines}) == 1
    assert [line["encoder_name"] for line in lines] == [str(run)] * 4 + ["features"] * 2
    assert main(["evaluate", *sides, "--protocols", "knn"]) == 0
    assert "--out FOLDER keeps the scores" in capsys.readouterr().out
    for words, says in (
        (["--train", str(labelled), "--test", files[1]], "train must be features"),
        ([*sides, "--protocols", "semi-10"], "works on images"),
        ([*sides, "--compare", "pixels"], "--compare"),
        ([*sides, "--encoder", "a:b"], "--encoder"),
        ([*sides, "--weights", "a.pth"], "--weights"),
    ):
        assert main(["evaluate", *words]) == 2
        assert says in capsys.readouterr().err


def test_evaluate_scores_a_list_of_data_sets_each_by_its_metric(run, labelled, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    images[:20, :, :, 0] = 255
    y = np.stack([np.arange(40) < 20, np.arange(40) % 2 == 0], axis=1).astype(int)
    np.savez(tmp_path / "tags.npz", images=images, y=y)
    colours = f"colours: {{train: {labelled}, test: {labelled}, metric: mean_per_class}}"
    (tmp_path / "sets.yaml").write_text(f"{colours}\ntags: {{train: tags.npz, test: tags.npz}}\n")
    words = ["evaluate", str(run), "--transfer", str(tmp_path / "sets.yaml"), "--out", str(tmp_path / "o")]
    assert main([*words, "--protocols", "linear", "--no-baselines"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].startswith("colours linear   mean per class")
    assert table[2].startswith("tags linear      11-point mAP")
    lines = [json.loads(line) for line in (tmp_path / "o" / "scores.jsonl").read_text().splitlines()]
    assert [(line["data_set"], line["metric"]) for line in lines] == [
        ("colours", "mean_per_class"),
        ("tags", "map11"),
    ]


def test_metric_holds_for_the_data_sets_of_a_list_that_name_none(run, labelled, tmp_path, capsys):
    (tmp_path / "sets.yaml").write_text(f"a: {{train: {labelled}, test: {labelled}}}\n")
    words = ["evaluate", str(run), "--transfer", str(tmp_path / "sets.yaml"), "--out", str(tmp_path / "o")]
    assert main([*words, "--protocols", "knn", "--metric", "mean_per_class"]) == 0
    assert "mean per class" in capsys.readouterr().out


def test_what_is_finished_before_a_protocol_fails_is_kept(run, labelled, tmp_path, capsys):
    words = [
        "evaluate",
        str(run),
        "--train",
        str(labelled),
        "--test",
        str(labelled),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--protocols", "knn", "finetune", "--base-lrs", "1e25", "--epochs", "1"]) == 4
    assert "diverged" in capsys.readouterr().err
    [line] = (tmp_path / "o" / "scores.jsonl").read_text().splitlines()
    assert json.loads(line)["protocol"] == "knn"
    assert main([*words, "--protocols", "knn", "semi-9-per-class"]) == 3  # of 8: told before any work
    assert len((tmp_path / "o" / "scores.jsonl").read_text().splitlines()) == 1


def test_evaluate_takes_a_network_of_torchvision_with_weights_of_ones_own(
    run, labelled, tmp_path, capsys, monkeypatch
):
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "own.pth")
    monkeypatch.chdir(tmp_path)
    words = [
        "evaluate",
        "torchvision:squeezenet1_1",
        "--weights",
        "own.pth",
        "--train",
        str(labelled),
        "--test",
        str(labelled),
    ]
    assert main([*words, "--protocols", "knn"]) == 0
    assert "--out FOLDER keeps the scores" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["own.pth"]
    assert main([*words, "--protocols", "knn", "--out", "deep/er"]) == 0
    compared = [
        "--compare",
        "torchvision:squeezenet1_1",
        "--encoder",
        "no.module:here",
    ]  # which is for one's own networks
    assert main(["evaluate", str(run), *words[2:], "--protocols", "knn", *compared, "--out", "o"]) == 0
    assert (tmp_path / "deep" / "er" / "scores.jsonl").exists()


def test_embed_search_and_export_take_a_network_of_torchvision_too(labelled, tmp_path, capsys, monkeypatch):
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "own.pth")
    monkeypatch.chdir(tmp_path)
    network = ["torchvision:squeezenet1_1", "--weights", "own.pth"]
    picture = next(labelled.rglob("*.png"))
    assert main(["embed", *network, "--data", str(labelled), "--out", "f.npz"]) == 0
    assert (
        "byol search f.npz --query PICTURE --run torchvision:squeezenet1_1 --weights own.pth"
        in capsys.readouterr().out
    )
    assert main(["search", "f.npz", "--query", str(picture), "--run", *network, "--k", "1", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["images"][0]["name"] == str(picture.relative_to(labelled))
    assert main(["export", *network, "--out", "e.safetensors"]) == 0
    assert main(["embed", "e.safetensors", "--data", str(labelled), "--out", "g.npz"]) == 0
    assert np.array_equal(np.load("f.npz")["x"], np.load("g.npz")["x"])
    assert main(["embed", *network, "--data", str(labelled), "--out", "g.npz", "--encoder", "a.b:c"]) == 2
    assert "names its network" in capsys.readouterr().err


def test_evaluate_takes_test_images_of_one_class(run, labelled, tmp_path, capsys):
    one = tmp_path / "one"
    shutil.copytree(labelled / "red", one / "red")
    words = ["evaluate", str(run), "--out", str(tmp_path / "o"), "--protocols", "linear"]
    assert main([*words, "--train", str(labelled), "--test", str(one)]) == 0
    assert "8 test images of 3 classes, learned from 24" in capsys.readouterr().out
    assert (
        main([*words, "--train", str(one), "--test", str(one), "--protocols", "knn"]) == 3
    )  # to train on it is none
    assert "given as train carry no labels" in capsys.readouterr().err
    (one / "red").rename(one / "images")  # which names none of the classes
    assert main([*words, "--train", str(labelled), "--test", str(one)]) == 3
    assert "given as test carry no labels" in capsys.readouterr().err


def test_baselines_that_nobody_named_cost_no_training(run, labelled, tmp_path, capsys):
    words = ["evaluate", str(run), "--train", str(labelled), "--test", str(labelled), "--out", str(tmp_path)]
    assert main([*words, "--protocols", "knn", "linear-sgd", "--epochs", "1", "--base-lrs", "0.1"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(line["encoder_name"], line["protocol"]) for line in lines] == [
        (str(run), "knn"),
        (str(run), "linear-sgd"),
        ("pixels", "knn"),
        ("untrained", "knn"),
    ]


def test_a_run_that_is_named_as_a_baseline_is_scored_itself(run, labelled, tmp_path, capsys, monkeypatch):
    shutil.copytree(run, tmp_path / "untrained")
    (tmp_path / "untrained" / "scores.jsonl").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    words = ["--train", str(labelled), "--test", str(labelled), "--protocols", "knn", "--no-cache"]
    assert main(["evaluate", "untrained", *words]) == 0
    assert main(["evaluate", str(run), *words, "--no-baselines", "--out", "o"]) == 0
    checksums = [
        json.loads((tmp_path / folder / "scores.jsonl").read_text().splitlines()[0])["encoder_checksum"]
        for folder in ("untrained", "o")
    ]
    assert checksums[0] == checksums[1]


def test_one_labelled_folder_is_enough(run, labelled, tmp_path, capsys):
    words = ["evaluate", str(run), "--train", str(labelled), "--out", str(tmp_path / "o")]
    assert main([*words, "--test", "0.3", "--protocols", "knn", "--compare", "untrained"]) == 0
    told = capsys.readouterr()
    assert "6 test images of 3 classes, learned from 18" in told.out
    lines = [line for line in told.err.splitlines() if line.startswith("split")]
    assert len(lines) == 1  # and not one for each encoder
    assert "6 of 24 images" in lines[0] or "6 of 24" in lines[0]
    assert "0.3 of every class" in lines[0]
    assert main(words) == 2
    assert "--test 0.3" in capsys.readouterr().err


def test_a_share_as_test_and_few_labels_are_both_told(run, labelled, tmp_path, capsys, caplog):
    words = ["evaluate", str(run), "--train", str(labelled), "--out", str(tmp_path / "o"), "--test", "0.3"]
    assert main([*words, "--protocols", "semi-1", "--epochs", "1"]) == 0
    assert "split      6 of 24" in capsys.readouterr().err
    assert "1 % is less than one image of most classes" in caplog.text
    assert "3 of 18, 16.7 %" in caplog.text


def test_what_holds_for_every_encoder_is_said_once(run, labelled, tmp_path, capsys, caplog):
    words = ["evaluate", str(run), "--train", str(labelled), "--test", str(labelled)]
    assert main([*words, "--protocols", "knn", "--out", str(tmp_path / "o")]) == 0
    assert "24 of them train images too" in capsys.readouterr().out
    assert caplog.text.count("train images too") == 1
    lines = (tmp_path / "o" / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["overlap"] for line in lines] == [24, 24, 24]


def test_names_of_classes_reach_the_terminal_without_their_escapes(run, labelled, tmp_path, capsys):
    shutil.copytree(labelled, tmp_path / "classes")
    (tmp_path / "classes" / "red").rename(tmp_path / "classes" / "a\x1b[31m\nb")
    words = ["evaluate", str(run), "--train", str(tmp_path / "classes"), "--test", "0.3", "--no-baselines"]
    assert main([*words, "--protocols", "knn", "--out", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "a\\x1b[31m\\nb" in out
    assert "\x1b" not in out


def test_a_list_of_data_sets_may_have_shares_for_test_images(run, labelled, tmp_path, capsys):
    (tmp_path / "sets.yaml").write_text(f"colours: {{train: {labelled}, test: 0.5}}")
    words = ["evaluate", str(run), "--transfer", str(tmp_path / "sets.yaml"), "--protocols", "knn"]
    assert main([*words, "--out", str(tmp_path / "o")]) == 0
    assert "12 test images of 3 classes, learned from 12" in capsys.readouterr().out


def test_labels_of_a_table_score_as_folders_do(run, labelled, tmp_path, capsys):
    """Train images by a table, test images by their folders: the classes are matched by their names."""
    rows = [f"{path.parent.name}\t{path}\n" for path in sorted(labelled.glob("*/*.png"))]
    (tmp_path / "labels.tsv").write_text("".join(["label\tpath\n", *rows]))
    values = []
    for number, train in enumerate((labelled, tmp_path / "labels.tsv")):
        words = ["evaluate", str(run), "--train", str(train), "--test", str(labelled)]
        assert main([*words, "--out", str(tmp_path / str(number))]) == 0
        lines = (tmp_path / str(number) / "scores.jsonl").read_text().splitlines()
        values.append([(json.loads(line)["value"], json.loads(line)["overlap"]) for line in lines])
    assert values[0] == values[1]
    (tmp_path / "labels.tsv").write_text("label\tpath\nred\tnowhere.png\n")
    assert main(["evaluate", str(run), "--train", str(tmp_path / "labels.tsv"), "--test", "0.5"]) == 3
    assert "Line 2" in capsys.readouterr().err


def test_the_untrained_network_has_statistics_of_the_train_images(run, labelled, tmp_path, capsys):
    """With fresh ones, of nothing yet, any training would look like a success."""
    words = [
        "--train",
        str(labelled),
        "--test",
        str(labelled),
        "--protocols",
        "knn",
        "--no-cache",
        "--k",
        "3",
    ]
    assert main(["evaluate", str(run), *words, "--out", str(tmp_path)]) == 0
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    fresh = untrained(byol.load_encoder(run))
    images = byol.open_images(labelled)
    fair = settled(fresh, images)
    assert not torch.equal(fair(torch.zeros(1, 3, 20, 20)), fresh(torch.zeros(1, 3, 20, 20)))
    expected = byol.evaluate(fair, train=images, test=images, protocols="knn", k=3)["knn"]
    [found] = [score for score in scores if score["encoder_name"] == "untrained"]
    assert (found["encoder_checksum"], found["value"]) == (fair.checksum(), expected.value)


@pytest.mark.parametrize("name", ["scores.jsonl", "confusions.jsonl"])
@pytest.mark.parametrize("kind", ["link", "second name", "pipe"])
def test_scores_are_added_to_nothing_outside_of_a_run_that_a_stranger_made(
    run, labelled, tmp_path, capsys, name, kind
):
    copy, precious = tmp_path / "run", tmp_path / "precious"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("features"))
    precious.write_text("work")
    (copy / name).unlink(missing_ok=True)
    make = {"link": lambda to: to.symlink_to(precious), "second name": lambda to: os.link(precious, to)}
    make.get(kind, os.mkfifo)(copy / name)
    words = ["evaluate", str(copy), "--train", str(labelled), "--test", "0.5", "--protocols", "knn"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"Nothing can be added to {copy / name}: it is a symbolic link, a hard link" in said
    assert "--out" in said
    assert precious.read_text() == "work"
    assert not (copy / "features").exists()  # it is told before any work
