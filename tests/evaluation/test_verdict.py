"""What the scores of an encoder and of its baselines say in words."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import confusion_matrix

from byol.evaluation.confusion import confusion, read_confusions, score_key, write_confusion
from byol.evaluation.inputs import Predictions
from byol.evaluation.protocols import EvaluationConfig, prepare, protocols_named
from byol.evaluation.score import Score, score_of
from byol.evaluation.verdict import difference, majority, verdict
from byol.features.features import Features

NAMES = ("ant", "bee", "cat")


def score(said: np.ndarray, labels: np.ndarray, name: str = "runs/a", metric: str = "top1") -> Score:
    predictions = Predictions(said[:, None], labels, {}, 100)
    known = {"metric": metric, "classes": 3, "seeds": (), "seconds": 0.0, "encoder_name": name}
    return score_of("linear", [predictions], **known)


def wrong(labels: np.ndarray, count: int, start: int = 0) -> np.ndarray:
    said = labels.copy()
    said[start : start + count] = (said[start : start + count] + 1) % 3
    return said


def task(y: np.ndarray, labels: np.ndarray, names: tuple[str, ...] = NAMES):
    sides = (
        Features(np.random.default_rng(0).random((len(found), 4), np.float32), found, classes=names)
        for found in (y, labels)
    )
    return prepare(None, *sides, protocols_named("knn", EvaluationConfig()), EvaluationConfig())


LABELS = np.arange(300) % 3


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [(30, 90, "clearly better than"), (90, 30, "worse than"), (60, 62, "not distinguishable from")],
)
def test_a_verdict_says_whether_an_encoder_beats_its_baselines_and_by_how_much(ours, theirs, outcome):
    scores = {
        "runs/a": {"linear": score(wrong(LABELS, ours), LABELS)},
        "untrained": {"linear": score(wrong(LABELS, theirs, 100), LABELS, "untrained")},
    }
    lines = verdict(scores)
    assert max(map(len, lines)) <= 110
    place = next((at for at, line in enumerate(lines) if line.startswith("to try")), len(lines))
    first, rest = (" ".join(" ".join(part).split()) for part in (lines[:place], lines[place:]))
    assert f"linear: {outcome} the untrained network ({(theirs - ours) / 3:+.1f}, " in first
    low, high = difference(scores["runs/a"]["linear"], scores["untrained"]["linear"])[1:]
    assert f"{100 * low:+.1f} to {100 * high:+.1f})" in first
    assert ("--epochs" in rest) == ("byol views" in rest) == (outcome[0] != "c")


def test_stock_weights_that_win_are_what_is_advised():
    scores = {
        "runs/a": {"linear": score(wrong(LABELS, 90), LABELS)},
        "torchvision:resnet18": {"linear": score(LABELS, LABELS, "torchvision:resnet18")},
        "pixels": {"linear": score(wrong(LABELS, 95), LABELS, "pixels")},
    }
    scores["timm:vit"] = {"linear": score(wrong(LABELS, 200), LABELS, "timm:vit")}  # is worse
    *_, advice = verdict(scores)
    assert "torchvision:resnet18" in advice
    assert "timm:vit" not in advice
    assert "--epochs" not in advice


def test_scores_of_other_images_and_other_protocols_are_not_compared():
    scores = {
        "runs/a": {"linear": score(LABELS, LABELS)},
        "untrained": {"linear": score(LABELS[1:], LABELS[1:], "untrained"), "knn": score(LABELS, LABELS)},
    }
    assert verdict(scores) == []


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_the_most_frequent_class_alone_scores_what_scikit_learn_says(metric):
    y, labels = np.repeat([0, 1, 2], [10, 50, 20]), np.repeat([0, 1, 2], [30, 40, 30])
    ours = score(labels, labels, metric=metric)
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((80, 1)), y).predict(np.zeros((100, 1)))
    expected = np.mean(dummy == labels) if metric == "top1" else 1 / 3
    found = majority(task(y, labels), ours)
    assert found.value == pytest.approx(expected)
    assert (found.encoder_name, found.protocol, found.train_images) == ("majority", "linear", 80)


def test_the_confusion_table_is_that_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [30, 40, 30])
    said = np.random.default_rng(0).integers(0, 3, 100)
    said[:25] = 0
    _, head, *rows = confusion(task(LABELS, labels), score(said, labels)).lines()
    assert head.split() == ["linear,", "%", "images", *NAMES]
    expected = 100 * confusion_matrix(labels, said, normalize="true")
    for row, name, count, shares in zip(rows[:3], NAMES, (30, 40, 30), expected, strict=True):
        assert row.split() == [name, str(count), *(f"{share:.0f}" if share else "-" for share in shares)]


def test_of_many_classes_the_pairs_that_are_confused_most_are_told():
    names = tuple(f"class{number}" for number in range(20))
    labels = np.repeat(np.arange(20), 10)
    said = labels.copy()
    said[40:47], said[100:103] = 9, 1
    title, first, second, worst, lowest, next_one, *_ = confusion(
        task(labels, labels, names), score(said, labels)
    ).lines()
    assert "linear" in title
    assert first.split() == ["7", "of", "10", "class4", "taken", "for", "class9"]
    assert second.split() == ["3", "of", "10", "class10", "taken", "for", "class1"]
    assert "Least often right" in worst
    assert lowest.split() == ["30", "%", "of", "10", "class4"]
    assert next_one.split() == ["70", "%", "of", "10", "class10"]


def test_classes_that_were_never_learned_and_unequal_ones_are_told():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    said = np.zeros(100, dtype=np.int64)
    lines = confusion(task(np.repeat([0, 1], 50), labels), score(said, labels)).lines()
    assert [line for line in lines if "mean per class" in line and "33.3 %" in line]
    assert "no train image" in lines[-1]
    assert ("ant" in lines[-1], "bee" in lines[-1], "cat" in lines[-1]) == (False, False, True)
    alike = confusion(task(LABELS, LABELS), score(LABELS, LABELS)).lines()
    assert not [line for line in alike if "mean per class" in line or "no train image" in line]


def test_of_many_classes_that_no_train_image_has_the_first_are_named_and_the_others_counted():
    names = tuple(f"class{number:02}" for number in range(20))
    labels = np.repeat(np.arange(20), 5)
    never = score(np.zeros(100, np.int64), labels)
    *_, last = confusion(task(np.arange(60) % 7, labels, names), never).lines()
    assert "no train image" in last
    assert [name in last for name in names] == [False] * 7 + [True] * 10 + [False] * 3
    assert "and 3 more" in last


def test_predictions_are_left_out_of_what_is_compared_and_kept(tmp_path):
    from byol.evaluation.score import read_scores, write_scores

    ours = score(LABELS, LABELS)
    write_scores({"linear": ours}, tmp_path / "scores.jsonl")
    assert "predictions" not in (tmp_path / "scores.jsonl").read_text()
    assert read_scores(tmp_path / "scores.jsonl") == [ours]


def test_a_confusion_is_kept_whole_and_known_by_its_score_though_lines_are_damaged(tmp_path):
    labels = np.repeat([0, 2], [30, 40])
    said = np.where(np.arange(70) % 5, labels, 1)
    said[3] = -1  # no class at all, as where nothing votes
    ours, other = score(said, labels), score(labels, labels)
    found, path = confusion(task(LABELS, labels), ours), tmp_path / "confusions.jsonl"
    write_confusion(found, path)
    whole = path.read_text()
    with path.open("a") as file:
        for other_cells in ("[0, 7, ", f"[0, 0, {2**60}", "[Infinity, 0, 1], [0, 0, "):
            file.write(whole.replace("[0, 0, ", other_cells))
        file.write('{"names": 3}\n[]\nnull\n{"na')
    assert read_confusions(path, [other, ours]) == {score_key(ours): found}
    assert read_confusions(path, [other]) == {}
    assert found.counts.tolist() == [30, 0, 40]
    assert found.right.tolist() == [sum((said == one) & (labels == one)) for one in range(3)]
    assert found.shares(range(3)).sum(axis=1) == pytest.approx([29 / 30, 0, 1])


def test_of_confusions_no_more_cells_are_kept_than_a_page_can_show(tmp_path, monkeypatch):
    monkeypatch.setattr("byol.evaluation.confusion.MOST_READ", 1000)
    labels = np.repeat([0, 2], [30, 40])
    scores = [score(labels, labels), score(np.full(70, 2), labels)]
    found = [confusion(task(LABELS, labels), one) for one in scores]
    path = tmp_path / "confusions.jsonl"
    many = replace(found[0], cells=((0, 0, 1),) * 980)
    for one in (found[1], many, replace(found[1], cells=many.cells), many):
        write_confusion(one, path)
    kept = read_confusions(path, scores)
    assert {key: len(one.cells) for key, one in kept.items()} == {
        score_key(scores[0]): 980, score_key(scores[1]): len(found[1].cells)
    }  # fmt: skip
