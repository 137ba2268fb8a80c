import json
import resource

import numpy as np
import pytest

from byol.errors import CheckpointError, DiskError
from byol.evaluation.inputs import Answers
from byol.evaluation.score import Score, comparison, read_scores, score_of, score_table, scored, write_scores
from byol.features.embed import Features


def answered(right: int, **settings: object) -> Answers:
    """Answers of 200 test images among 8 classes, some of them right, the others right at the second choice."""
    labels = np.arange(200) % 8
    scores = np.zeros((200, 8))
    scores[np.arange(200), labels] = 1.0
    scores[right:, :] += 2 * np.eye(8)[(labels[right:] + 1) % 8]
    return Answers(scores, labels, settings, 1000)


def score(protocol: str, *rights: int, **settings: object) -> Score:
    seeds = tuple(range(len(rights))) if len(rights) > 1 else ()
    answers = [answered(right, **settings) for right in rights]
    return score_of(
        protocol, "top1", answers, 8, seeds=seeds, seconds=1.5, encoder="runs/a", train="train/", test="test/"
    )


def test_scores_are_appended_as_lines_of_json_that_give_them_back(tmp_path):
    path = tmp_path / "scores.jsonl"
    first, second = score("linear", 150, 160, l2=0.1), score("knn", 100, k=20)
    write_scores({"linear": first}, path)
    write_scores({"knn": second}, str(path))
    assert read_scores(path) == [first, second]
    assert json.loads(path.read_text().splitlines()[0])["encoder"] == "runs/a"


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path, room):
    path = tmp_path / "scores.jsonl"
    write_scores({"knn": score("knn", 100, k=20)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))  # which looks like a full disk
    try:
        with pytest.raises(DiskError, match=r"scores\.jsonl cannot be written: (No space|File too large)"):
            write_scores({"linear": score("linear", 150, 160, l2=0.1)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["no", "7", "{}", '{"seeds": [], "surprise": 1}'])
def test_a_line_that_is_no_score_is_told_by_its_number(tmp_path, line):
    path = tmp_path / "scores.jsonl"
    write_scores({"knn": score("knn", 100, k=20)}, path)
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(CheckpointError, match=r"Line 2 of .*scores\.jsonl is no score"):
        read_scores(path)


def test_table_shows_every_score_in_percent():
    one, several = (
        score("knn", 150, k=20, temperature=0.07),
        score("linear", 150, 170, l2=0.1, tried=list(range(45))),
    )
    lines = score_table({"knn": one, "linear": several}).splitlines()
    assert lines[0].split() == ["protocol", "metric", "value", "95", "%", "interval", "top-5", "spread"]
    assert lines[1].split()[:4] == ["knn", "top-1", "75.00", "%"]
    assert f"{100 * one.low:.2f} to {100 * one.high:.2f}" in lines[1]
    assert lines[1].split()[7:9] == ["100.00", "-"]
    assert lines[2].split()[2] == "80.00"
    assert lines[2].split()[8] == "7.07"  # of 75 and 85
    assert lines[3:] == [
        "knn: k 20, temperature 0.07",
        "linear: l2 0.1",  # what is long is in scores.jsonl
        "spread: standard deviation over the seeds 0, 1",
        "200 test images of 8 classes, learned from 1,000",
    ]


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


def test_answers_known_only_as_right_or_wrong_score_alike():
    """What the monitor of a run has: the same value and interval as from the scores of the classes."""
    train = Features(np.zeros((1000, 2)), np.arange(1000) % 8)
    found, expected = scored("knn", np.arange(200) < 150, train, {}, 0, 1.0), score("knn", 150)
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
    assert (found.top1, found.classes, found.test_images, found.train_images) == (0.75, 8, 200, 1000)
