import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from byol.data.sources import open_images
from byol.errors import ConfigError, DataError
from byol.evaluation import linear
from byol.evaluation.protocols import Score, evaluate, score_table, scored, write_scores
from byol.features.extract import Features, embed

COLOURS = {"blue": (30, 40, 220), "green": (40, 210, 50), "red": (220, 40, 30), "white": (240,) * 3, "yellow": (230, 220, 20)}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def encoder(encoder_of):
    """Its features are the mean colour of a picture."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    net[2].weight.data.copy_(torch.eye(3))
    net[2].bias.data.zero_()
    return encoder_of(net, size=(8, 8))


def clusters(count: int, classes: int, seed: int = 0, spread: float = 1.5, names: tuple[str, ...] | None = None) -> Features:
    """Overlapping clouds of features with their classes; the same classes for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, count)
    return Features(centres[y] + spread * generator.normal(size=(count, 8)), y, classes=names)


def picture(name: str, seed: int) -> np.ndarray:
    """A picture (8, 8, 3) of nearly one colour."""
    noise = np.random.default_rng(seed).integers(-15, 16, (8, 8, 3))
    return (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)


def folder(root: Path, names: list[str], count: int, seed: int) -> Path:
    """A folder of pictures with a folder per class, each of nearly the colour it is named after."""
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            stream = BytesIO()
            Image.fromarray(picture(name, seed + number)).save(stream, "PNG")
            (root / name / f"{number}.png").write_bytes(stream.getvalue())
    return root


# Scores


def test_scores_on_the_images_that_were_learned_from_come_with_a_warning(encoder, tmp_path, caplog):
    one, other = (folder(tmp_path / name, ["blue", "red"], 4, seed) for name, seed in (("a", 0), ("b", 50)))
    evaluate(encoder, train=one, test=other, protocols="knn")
    features = clusters(40, 2)
    evaluate(encoder, train=features, test=clusters(40, 2, seed=1), protocols="knn")
    assert caplog.text == ""
    evaluate(encoder, train=one, test=str(one), protocols="knn")
    assert "the same images, so these scores are meaningless" in caplog.text
    caplog.clear()
    evaluate(encoder, train=features, test=features, protocols="knn")
    assert "meaningless" in caplog.text


def test_knn_score_is_the_accuracy_of_scikit_learn(encoder):
    train, test = clusters(300, 5), clusters(500, 5, seed=1)
    score = evaluate(encoder, train=train, test=test, protocols=["knn"], k=7, temperature=0.2)["knn"]
    model = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.2))
    assert score.top1 == pytest.approx(model.fit(train.x, train.y).score(test.x, test.y))
    assert score.low < score.top1 < score.high
    assert (score.train_images, score.test_images, score.classes) == (300, 500, 5)
    assert score.settings == {"k": 7, "temperature": 0.2, "similarity": "cosine"}


def test_linear_score_is_that_of_the_classifier_with_its_settings(encoder):
    train, test = clusters(300, 5), clusters(500, 5, seed=1)
    score = evaluate(encoder, train=train, test=test, protocols=["linear"], seed=3)["linear"]
    classifier = linear.fit(torch.from_numpy(train.x), torch.from_numpy(train.y), 5, seed=3)
    expected = (classifier(torch.from_numpy(test.x)).numpy() == test.y).mean()
    assert score.top1 == pytest.approx(expected)
    assert score.settings == {"solver": "L-BFGS", "l2": classifier.l2, "l2_values": 45, "held_out": 0.1}
    assert score.seed == 3


def test_every_protocol_is_scored_in_the_order_asked_for(encoder):
    train, test = clusters(100, 3), clusters(50, 3, seed=1)
    assert list(evaluate(encoder, train=train, test=test)) == ["knn", "linear"]
    assert list(evaluate(encoder, train=train, test=test, protocols=("linear", "knn"))) == ["linear", "knn"]


def test_nothing_is_learned_or_chosen_on_test_images(encoder):
    """Whatever the other test images and their labels are, the choice and the answer for an image stay the same."""
    train, test = clusters(150, 3), clusters(60, 3, seed=1)
    first = evaluate(encoder, train=train, test=test)
    shuffled = evaluate(encoder, train=train, test=Features(test.x * 7 + 1, np.random.default_rng(0).permutation(test.y)))
    thirds = [evaluate(encoder, train=train, test=Features(test.x[i::3], test.y[i::3])) for i in range(3)]
    assert all(scores["linear"].settings == first["linear"].settings for scores in (shuffled, *thirds))
    for protocol, score in first.items():
        assert score.top1 == pytest.approx(np.mean([scores[protocol].top1 for scores in thirds]))


def test_scores_do_not_hang_on_the_order_of_the_test_images(encoder):
    train, test = clusters(300, 5), clusters(200, 5, seed=1)
    turned = Features(test.x[::-1].copy(), test.y[::-1].copy())
    for protocol, score in evaluate(encoder, train=train, test=test).items():
        assert evaluate(encoder, train=train, test=turned)[protocol].top1 == score.top1


def test_same_seed_gives_the_same_scores_and_leaves_the_random_state(encoder):
    train, test = clusters(100, 3), clusters(50, 3, seed=1)
    state = torch.get_rng_state()
    first, second = (evaluate(encoder, train=train, test=test, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name in first:
        assert (first[name].top1, first[name].low, first[name].high) == (second[name].top1, second[name].low, second[name].high)


# What may be given


def test_folders_arrays_images_and_features_score_the_same(encoder, tmp_path):
    names = ["blue", "green", "red", "yellow"]
    train, test = folder(tmp_path / "train", names, 6, 0), folder(tmp_path / "test", names, 4, 100)
    expected = evaluate(encoder, train=train, test=test)
    assert expected["knn"].top1 > 0.9
    arrays = np.stack([picture(name, number) for name in names for number in range(6)])
    labelled = open_images(arrays, labels=[name for name in names for _ in range(6)])
    for given in (str(train), open_images(train), embed(encoder, train), labelled):
        scores = evaluate(encoder, train=given, test=test)
        assert {name: score.top1 for name, score in scores.items()} == {name: score.top1 for name, score in expected.items()}
        assert scores["knn"].train_images == 24


def test_worker_processes_change_no_score(encoder, tmp_path):
    names = ["blue", "red"]
    train, test = folder(tmp_path / "train", names, 6, 0), folder(tmp_path / "test", names, 4, 100)
    here, there = (evaluate(encoder, train=train, test=test, protocols=["knn"], workers=workers)["knn"] for workers in (0, 2))
    assert (here.top1, here.low, here.high) == (there.top1, there.low, there.high)


def test_gray_encoder_scores_coloured_folders(encoder_of, tmp_path):
    names = ["blue", "white"]
    train, test = folder(tmp_path / "train", names, 6, 0), folder(tmp_path / "test", names, 4, 100)
    scores = evaluate(encoder_of("convnet", channels=1, size=(8, 8)), train=train, test=test, protocols=["knn"])
    assert scores["knn"].top1 == 1.0


# Classes


def test_folders_that_lack_different_classes_are_matched_by_the_classes_names(encoder, tmp_path):
    """Train numbers blue, red, yellow 0, 1, 2; test numbers green, red, yellow so. By number, every answer is wrong."""
    train = folder(tmp_path / "train", ["blue", "red", "yellow"], 8, 0)
    test = folder(tmp_path / "test", ["green", "red", "yellow"], 5, 100)
    for score in evaluate(encoder, train=train, test=test).values():
        assert score.top1 == pytest.approx(10 / 15)  # green was never seen
        assert score.classes == 3
        assert (score.train_images, score.test_images) == (24, 15)


def test_class_missing_from_test_changes_nothing_for_the_others(encoder, tmp_path):
    names = ["blue", "green", "red", "yellow"]
    train = folder(tmp_path / "train", names, 8, 0)
    test = folder(tmp_path / "test", ["green", "red"], 5, 100)
    for score in evaluate(encoder, train=train, test=test).values():
        assert score.top1 == 1.0
        assert score.classes == 4


def test_test_of_one_class_can_be_scored(encoder, tmp_path):
    train = folder(tmp_path / "train", ["blue", "red", "yellow"], 8, 0)
    test = open_images(folder(tmp_path / "test", ["red", "yellow"], 5, 100)).subset([5, 6, 7])
    for score in evaluate(encoder, train=train, test=test).values():
        assert (score.top1, score.low, score.high) == (1.0, 1.0, 1.0)


def test_features_are_matched_by_the_classes_names_too(encoder):
    train, test = (
        clusters(300, 3, spread=0.01, names=("a", "b", "c")),
        clusters(60, 3, seed=1, spread=0.01, names=("a", "b", "c")),
    )
    other = Features(test.x, np.array([2, 0, 3])[test.y], classes=("b", "unused", "a", "c"))
    for score in evaluate(encoder, train=train, test=other).values():
        assert score.top1 == 1.0


def test_labels_without_names_are_matched_by_number(encoder):
    for names in (None, ("a", "b", "c")):
        train, test = clusters(300, 3, spread=0.01, names=names), clusters(60, 3, seed=1, spread=0.01)
        assert evaluate(encoder, train=train, test=test, protocols=["knn"])["knn"].top1 == 1.0
        assert evaluate(encoder, train=test, test=train, protocols=["knn"])["knn"].top1 == 1.0


def test_matching_leaves_the_given_features_as_they_were(encoder):
    train, test = clusters(30, 2, names=("a", "b")), clusters(30, 2, seed=1, names=("b", "a"))
    y = test.y.copy()
    evaluate(encoder, train=train, test=test, protocols=["knn"])
    assert np.array_equal(test.y, y)
    assert test.classes == ("b", "a")


def test_no_class_in_common_is_refused_with_both_sides_names(encoder, tmp_path):
    train, test = folder(tmp_path / "train", ["blue", "yellow"], 3, 0), folder(tmp_path / "test", ["green", "red"], 3, 0)
    with pytest.raises(DataError, match=r"share no class: train has blue, yellow \.\.\., test green, red"):
        evaluate(encoder, train=train, test=test)


# What is refused


@pytest.mark.parametrize("role", ["train", "test"])
def test_missing_labels_are_told_with_the_role_before_any_work(encoder, tmp_path, role):
    labelled = folder(tmp_path / "labelled", ["blue", "red"], 3, 0)
    flat = labelled / "red"
    given = {"train": labelled, "test": labelled, role: flat}
    encoder.net[2].weight.data.fill_(float("nan"))  # which the first image embedded would show
    with pytest.raises(DataError, match=f"3 images in {flat}/ given as {role} carry no labels. Expected a folder with one"):
        evaluate(encoder, **given)
    features = clusters(10, 2)
    given = {"train": features, "test": features, role: Features(features.x)}
    with pytest.raises(DataError, match=f"The features given as {role} carry no labels"):
        evaluate(encoder, **given)


def test_unknown_protocol_is_refused_with_the_nearest_one(encoder):
    features = clusters(10, 2)
    with pytest.raises(ConfigError, match=r"no protocol 'linaer'\. Did you mean 'linear'\? There are: knn, linear\."):
        evaluate(encoder, train=features, test=features, protocols=["knn", "linaer"])
    with pytest.raises(ConfigError, match=r"no protocol 'accuracy'"):
        evaluate(encoder, train=features, test=features, protocols=["accuracy"])


def test_features_of_two_encoders_are_refused(encoder):
    train, test = clusters(30, 2), clusters(30, 2)
    with pytest.raises(DataError, match="8 numbers an image in train and 5 in test; expected both from the same encoder"):
        evaluate(encoder, train=train, test=Features(test.x[:, :5], test.y))


def test_one_class_to_learn_from_is_refused_by_the_linear_protocol_alone(encoder):
    train, test = Features(clusters(30, 2).x, np.zeros(30, dtype=int)), clusters(30, 2)
    assert evaluate(encoder, train=train, test=test, protocols=["knn"])["knn"].top1 == pytest.approx((test.y == 0).mean())
    with pytest.raises(DataError, match="at least two classes"):
        evaluate(encoder, train=train, test=test, protocols=["linear"])


# Scores for files and people


def test_scores_are_appended_as_lines_of_json(encoder, tmp_path):
    path = tmp_path / "scores.jsonl"
    train, test = clusters(100, 3, names=("ä", "b", "c")), clusters(50, 3, seed=1, names=("ä", "b", "c"))
    first = evaluate(encoder, train=train, test=test)
    write_scores(first, path)
    write_scores(evaluate(encoder, train=train, test=test, protocols=["knn"], k=3), str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["protocol"], line["settings"].get("k")) for line in lines] == [("knn", 20), ("linear", None), ("knn", 3)]
    assert Score(**lines[0]) == first["knn"]
    assert Score(**lines[1]) == first["linear"]


def test_table_shows_every_score_in_percent():
    correct = np.arange(200) < 150
    score = scored("knn", correct, clusters(1000, 4), {"k": 20, "temperature": 0.07}, 0, 1.5)
    lines = score_table({"knn": score}).splitlines()
    assert lines[0].split() == ["protocol", "top-1", "95", "%", "interval", "settings"]
    assert lines[1].startswith("knn         75.00 %")
    assert f"{100 * score.low:.2f} to {100 * score.high:.2f}" in lines[1]
    assert lines[1].endswith("k 20, temperature 0.07")
    assert lines[2] == "200 test images of 4 classes, learned from 1,000"
