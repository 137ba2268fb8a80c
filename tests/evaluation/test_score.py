import json
from dataclasses import asdict

import numpy as np
import pytest
from full_disk import largest_file

from byol.errors import CheckpointError, DiskError
from byol.evaluation.inputs import Predictions
from byol.evaluation.score import Score, read_scores, score_of, write_scores
from byol.evaluation.tables import Scores, comparison


def predicted(right: int, **settings: object) -> Predictions:
    """Predictions for 200 test images of 8 classes, some right, the others right at the second choice."""
    labels = np.arange(200) % 8
    classes = (labels[:, None] + np.arange(5)) % 8
    classes[right:, :2] = classes[right:, 1::-1]
    return Predictions(classes, labels, settings, 1000)


def score(protocol: str, *rights: int, **settings: object) -> Score:
    seeds = tuple(range(len(rights))) if len(rights) > 1 else ()
    runs = [predicted(right, **settings) for right in rights]
    known = {"seconds": 1.5, "encoder_name": "runs/a", "train": "train/", "test": "test/"}
    return score_of(protocol, runs, metric="top1", classes=8, seeds=seeds, **known)


def test_scores_are_appended_as_lines_of_json_that_give_them_back(tmp_path):
    path = tmp_path / "scores.jsonl"
    first, second = score("linear", 150, 160, l2=0.1), score("knn", 100, k=20)
    write_scores({"linear": first}, path)
    write_scores({"knn": second}, str(path))
    assert read_scores(path) == [first, second]
    assert json.loads(path.read_text().splitlines()[0])["encoder_name"] == "runs/a"


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path, room):
    path = tmp_path / "scores.jsonl"
    write_scores({"knn": score("knn", 100, k=20)}, path)
    before = path.read_bytes()
    said = r"scores\.jsonl cannot be written: (No space|File too large)"
    with largest_file(len(before) + room), pytest.raises(DiskError, match=said):
        write_scores({"linear": score("linear", 150, 160, l2=0.1)}, path)
    assert path.read_bytes() == before


def test_a_file_of_more_scores_than_can_be_is_a_sentence(tmp_path):
    path = tmp_path / "scores.jsonl"
    line = json.dumps(asdict(score("knn", 100, k=20))) + "\n"
    path.write_text(line * (2**23 // len(line) + 1))
    with pytest.raises(CheckpointError, match=r"scores\.jsonl has more than 8,388,608 bytes"):
        read_scores(path)


@pytest.mark.parametrize("line", ["no", "7", "{}", '{"seeds": [], "surprise": 1}'])
def test_a_line_that_is_not_a_score_is_told_by_its_number(tmp_path, line):
    path = tmp_path / "scores.jsonl"
    write_scores({"knn": score("knn", 100, k=20)}, path)
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(CheckpointError, match=r"Line 2 of .*scores\.jsonl is not a score"):
        read_scores(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"value": "x"}, {"low": None}, {"high": float("nan")}, {"value": 10**400}, {"settings": []},
        {"encoder_name": {}}, {"test_images": 0}, {"std": -1}, {"seeds": ["a"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_score_of_values_that_none_can_have_is_not_one(tmp_path, changed):
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps(asdict(score("knn", 100, k=20)) | changed))
    with pytest.raises(CheckpointError, match=rf"Line 1 .* is not a score .*{next(iter(changed))}") as told:
        read_scores(path)
    assert len(str(told.value)) < 500 + len(str(path))


def test_table_shows_every_score_in_percent():
    one, several = (
        score("knn", 150, k=20, temperature=0.07),
        score("linear", 150, 170, l2=0.1, tried=list(range(45))),
    )
    scores = Scores({"knn": one, "linear": several})
    lines = str(scores).splitlines()
    assert lines[0].split() == ["protocol", "metric", "value", "95", "%", "interval", "top-5", "std"]
    assert lines[1].split()[:4] == ["knn", "top-1", "75.00", "%"]
    assert f"{100 * one.low:.2f} to {100 * one.high:.2f}" in lines[1]
    assert lines[1].split()[7:9] == ["100.00", "-"]
    assert lines[2].split()[2] == "80.00"
    assert lines[2].split()[8] == "7.07"  # of 75 and 85
    assert lines[3:] == [
        "knn: k 20, temperature 0.07",
        "linear: l2 0.1",  # what is long is in scores.jsonl
        "std: standard deviation over the seeds 0, 1",
        "200 test images of 8 classes, learned from 1,000",
    ]


def test_scores_and_a_score_are_shown_for_people():
    scores = Scores(knn=score("knn", 150))
    assert repr(scores) == str(scores)  # as a notebook shows it
    assert scores["knn"].top1 == 0.75
    assert (
        repr(scores["knn"])
        == f"Score(knn: top1 75.00 %, {100 * scores['knn'].low:.2f} to {100 * scores['knn'].high:.2f})"
    )
    assert str(Scores()).splitlines() == ["protocol   metric   value   95 % interval   top-5   std"]


def test_comparison_has_a_row_for_each_protocol_and_a_column_for_each_encoder():
    table = comparison(
        {
            "runs/a": {"knn": score("knn", 150), "linear": score("linear", 170)},
            "pixels": {"knn": score("knn", 80)},
        }
    )
    lines = table.splitlines()
    assert lines[0].split() == ["protocol", "metric", "runs/a", "pixels"]
    assert [lines[1].split()[place] for place in (0, 2, 4)] == ["knn", "75.00", "40.00"]
    assert lines[2].split()[0] == "linear"
    assert lines[2].split()[-1] == "-"
    assert lines[3].startswith("percent, and the 95 % interval")
    assert lines[4] == "200 test images of 8 classes, learned from 1,000"


def test_one_predicted_class_has_no_top5():
    """What the monitor of a run has: the same value and interval as from five classes."""
    full = predicted(150)
    alone = Predictions(full.classes[:, :1], full.labels, {}, 1000)
    found = score_of("knn", [alone], metric="top1", classes=8, seeds=(0,), seconds=1.0)
    expected = score("knn", 150)
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
    assert (found.top1, found.top5, expected.top5) == (0.75, None, 1.0)
