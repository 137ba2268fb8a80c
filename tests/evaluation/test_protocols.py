import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from labelled_images import images, pixels
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import nn

from byol.data.images import open_images
from byol.errors import ConfigError, DataError
from byol.evaluation import linear
from byol.evaluation.metrics import measure
from byol.evaluation.protocols import EvaluationConfig, evaluate, prepare, protocols_named
from byol.evaluation.score import read_scores, write_scores
from byol.features.embed import Features, embed

COLOURS = {
    "blue": (30, 40, 220),
    "green": (40, 210, 50),
    "red": (220, 40, 30),
    "white": (240,) * 3,
    "yellow": (230, 220, 20),
}


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


def clusters(
    count: int, classes: int, seed: int = 0, spread: float = 1.5, names: tuple[str, ...] | None = None
) -> Features:
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
    assert evaluate(encoder, train=one, test=other, protocols="knn")["knn"].overlap == 0
    features = clusters(40, 2)
    assert evaluate(train=features, test=clusters(40, 2, seed=1), protocols="knn")["knn"].overlap == 0
    assert caplog.text == ""
    found = evaluate(encoder, train=one, test=str(one), protocols="knn")
    assert "8 of the 8 test images are train images too" in caplog.text
    assert found["knn"].overlap == 8
    words = "8 test images of 2 classes, learned from 8 (8 of them train images too, so these scores are "
    words += "meaningless)"
    assert words in str(found)


def test_test_features_that_are_train_features_too_are_counted_in_any_order(caplog):
    train, test = clusters(40, 2), clusters(30, 2, seed=1)
    mixed = Features(
        np.concatenate([test.x[:20], train.x[[7, 3, 39]]]), np.append(test.y[:20], train.y[[7, 3, 39]])
    )
    found = evaluate(train=train, test=mixed, protocols="knn")["knn"]
    assert found.overlap == 3
    assert "3 of the 23 test images are train images too" in caplog.text
    assert (
        evaluate(train=train, test=Features(train.x[::-1].copy(), train.y[::-1]), protocols="knn")[
            "knn"
        ].overlap
        == 40
    )


@pytest.mark.parametrize("kind", ["folder", "parquet", "array"])
def test_test_images_that_are_train_images_too_are_counted_by_their_bytes(encoder, tmp_path, caplog, kind):
    """Whatever they are called, in whatever order and in whichever class: four of ten are."""
    x = np.stack([picture(name, number) for name in ("blue", "red") for number in range(12)])
    y = np.repeat([0, 1], 12)
    sides = []
    for name, rows in (
        ("train", np.arange(0, 24, 2)),
        ("test", np.array([22, 1, 3, 5, 0, 13, 15, 4, 17, 8])),
    ):
        if kind == "array":
            sides.append(open_images(x[rows], labels=y[rows]))
            continue
        streams = [BytesIO() for _ in rows]
        for row, stream in zip(rows, streams, strict=True):
            Image.fromarray(x[row]).save(stream, "PNG")
        encoded = [stream.getvalue() for stream in streams]
        if kind == "parquet":
            columns = {"image": [{"bytes": one, "path": None} for one in encoded], "label": y[rows].tolist()}
            pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
            sides.append(tmp_path / f"{name}.parquet")
            continue
        for place, (row, one) in enumerate(zip(rows, encoded, strict=True)):
            (tmp_path / name / "ab"[y[row]]).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "ab"[y[row]] / f"{place}.png").write_bytes(one)
        sides.append(tmp_path / name)
    score = evaluate(encoder, train=sides[0], test=sides[1], protocols="knn")["knn"]
    assert score.overlap == 4
    assert "4 of the 10 test images are train images too" in caplog.text


def test_a_dataset_given_twice_is_noticed(encoder, caplog):
    pairs = [(Image.fromarray(picture(("blue", "red")[n % 2], n)), n % 2) for n in range(30)]
    assert evaluate(encoder, train=pairs, test=list(pairs), protocols="knn")["knn"].overlap == 30
    assert evaluate(encoder, train=pairs[:20], test=pairs[20:], protocols="knn")["knn"].overlap == 0


def test_knn_score_is_the_accuracy_of_scikit_learn(encoder):
    train, test = clusters(300, 5), clusters(500, 5, seed=1)
    score = evaluate(train=train, test=test, protocols=["knn"], k=7, temperature=0.2)["knn"]
    model = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.2)
    )
    assert score.top1 == pytest.approx(model.fit(train.x, train.y).score(test.x, test.y))
    assert score.low < score.top1 < score.high
    assert (score.train_images, score.test_images, score.classes) == (300, 500, 5)
    assert score.settings == {"k": 7, "temperature": 0.2, "similarity": "cosine"}


def test_linear_score_is_that_of_the_classifier_with_its_settings(encoder):
    train, test = clusters(300, 5), clusters(500, 5, seed=1)
    score = evaluate(train=train, test=test, protocols=["linear"], seed=3)["linear"]
    classifier = linear.fit(torch.from_numpy(train.x), torch.from_numpy(train.y), seed=3)
    expected = (classifier.predict(torch.from_numpy(test.x))[:, 0].numpy() == test.y).mean()
    assert score.top1 == pytest.approx(expected)
    assert score.settings == {
        "solver": "L-BFGS",
        "l2": classifier.l2,
        "l2_values": 45,
        "validation_images": classifier.validation_images,
    }
    assert score.seeds == (3,)


def test_more_neighbours_than_images_are_told_and_all_vote(encoder):
    train, test = clusters(30, 2), clusters(20, 2, seed=1)
    found = evaluate(train=train, test=test, protocols="knn", k=(30, 31))
    assert found["knn-30"].value == found["knn-31"].value
    assert [score.settings.get("voters") for score in found.values()] == [None, 30]
    assert "knn-31: k 31, voters 30, temperature 0.07" in str(found)


def test_several_k_give_a_score_each_from_one_search(encoder):
    train, test = clusters(300, 7), clusters(200, 7, seed=1)
    scores = evaluate(train=train, test=test, protocols="knn", k=(1, 5, 500))
    assert list(scores) == ["knn-1", "knn-5", "knn-500"]
    for k in (1, 5, 500):  # with fewer images than k all of them vote
        alone = evaluate(train=train, test=test, protocols="knn", k=k)["knn"]
        assert scores[f"knn-{k}"].protocol == "knn"
        assert (scores[f"knn-{k}"].top1, scores[f"knn-{k}"].top5) == (alone.top1, alone.top5)
        assert scores[f"knn-{k}"].settings == alone.settings


def test_top5_stands_beside_top1_where_there_are_more_than_five_classes(encoder):
    train, test = clusters(300, 8), clusters(200, 8, seed=1)
    classifier = linear.fit(torch.from_numpy(train.x), torch.from_numpy(train.y)).classifier
    standard = (torch.from_numpy(test.x) - classifier.mean) / classifier.std
    logits = (standard @ classifier.weight.T + classifier.bias).numpy()
    scores = evaluate(train=train, test=test, k=(1, 20))
    assert scores["linear"].top5 == pytest.approx(
        top_k_accuracy_score(test.y, logits, k=5, labels=np.arange(8))
    )
    assert scores["knn-1"].top5 == scores["knn-1"].top1  # one vote is one class, and not four more
    assert scores["knn-20"].top1 < scores["knn-20"].top5 < 1
    assert evaluate(train=clusters(99, 5), test=clusters(99, 5), protocols="knn")["knn"].top5 is None


def test_mean_per_class_is_chosen_and_scored_by_that_metric(encoder):
    """A rare class that a linear classifier gives up when only the number of right answers counts."""
    generator = np.random.default_rng(0)
    y = (generator.random(600) < 0.1).astype(int)
    features = Features(generator.normal(size=(600, 8)) + 0.8 * y[:, None], y)
    train, test = Features(features.x[:300], y[:300]), Features(features.x[300:], y[300:])
    score = evaluate(train=train, test=test, protocols="linear", metric="mean_per_class")["linear"]
    assert score.metric == "mean_per_class"
    classifier = linear.fit(torch.from_numpy(train.x), torch.from_numpy(train.y), metric="mean_per_class")
    assert score.settings["l2"] == classifier.l2
    found = classifier.predict(torch.from_numpy(test.x))[:, 0].numpy()
    assert score.value == pytest.approx(balanced_accuracy_score(test.y, found))
    assert score.top1 == pytest.approx((found == test.y).mean())
    assert score.low < score.value < score.high


def test_what_is_random_is_repeated_with_other_seeds_and_their_standard_deviation_is_told(encoder):
    train, test = clusters(150, 4), clusters(200, 4, seed=1)
    scores = evaluate(train=train, test=test, seed=5, seeds=3)
    alone = [evaluate(train=train, test=test, protocols="linear", seed=seed)["linear"] for seed in (5, 6, 7)]
    found = scores["linear"]
    assert found.seeds == (5, 6, 7)
    assert [found.value, found.top1] == pytest.approx([np.mean([score.value for score in alone])] * 2)
    assert found.std == pytest.approx(np.std([score.value for score in alone], ddof=1))
    assert found.settings["l2"] == [score.settings["l2"] for score in alone]
    assert len(set(found.settings["l2"])) > 1
    assert (scores["knn"].seeds, scores["knn"].std) == ((), None)  # nothing in it is random
    assert alone[0].std is None


def test_protocols_that_work_on_images_get_no_features(encoder):
    pictures, features = images(8), Features(np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2)
    for train, test in ((features, pictures), (pictures, features)):
        with pytest.raises(ConfigError, match="finetune works on images"):
            evaluate(encoder, train=train, test=test, protocols="finetune")


def test_the_protocols_that_train_are_chosen_by_name_and_take_settings(encoder_of):
    encoder = encoder_of("convnet", width=4)
    sets = {"train": images(80), "test": images(40, seed=1), "base_lrs": (0.1, 0.4), "epochs": (16.0,)}
    names = ("linear-sgd", "finetune", "semi-50", "semi-10-per-class")
    scores = evaluate(encoder, protocols=names, **sets)
    assert tuple(scores) == names
    assert [score.train_images for score in scores.values()] == [80, 80, 40, 40]
    for score in scores.values():
        assert score.value > 0.4  # 0.25 by chance
        assert [trial["base_lr"] for trial in score.settings["tried"]] == [0.1, 0.4]
        assert {trial["epochs"] for trial in score.settings["tried"]} == {16.0}
    capped = evaluate(encoder, protocols="linear-sgd", logit_cap=20.0, logit_penalty=0.01, **sets)[
        "linear-sgd"
    ]
    assert (capped.settings["logit_cap"], capped.settings["logit_penalty"]) == (20.0, 0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocols": "semi-lots"}, "'lots' is not an amount of labels"),
        ({"protocols": "semi-200"}, "at most 100"),
        ({"protocols": "finetun"}, "Did you mean 'finetune'"),
        ({"protocols": "finetune", "base_lrs": (-1.0,)}, "base_lrs"),
        ({"protocols": "finetune", "epochs": (0.0,)}, "epochs"),
        (
            {"protocols": "knn", "epochs": 5.0},
            "epochs was set, .* by knn.*: linear-sgd, finetune, semi-N",
        ),
        (
            {"protocols": ("knn", "linear"), "base_lrs": 0.1},
            "base_lrs was set, .* by knn, linear",
        ),
        ({"protocols": "semi-50", "k": (5,)}, "k was set, .* by semi-50.*: knn"),
        ({"protocols": "linear", "temperature": 0.1}, "temperature was set, .* by linear"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"seed": 10**20}, "seed is 100000000000000000000; expected"),
        ({"seed": 2**62 - 1, "seeds": 2}, "seed is 4611686018427387903"),
    ],
)
def test_protocols_and_settings_that_cannot_be_are_refused_before_any_work(encoder, settings, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(encoder, train=images(8), test=images(8), **settings)


def test_a_percentage_of_less_than_an_image_a_class_is_told(encoder_of, caplog):
    encoder = encoder_of("convnet", width=4)
    sets = {"train": images(80), "test": images(8, seed=1), "epochs": 1.0, "base_lrs": 0.1}
    scores = evaluate(encoder, protocols=("semi-10", "semi-5"), **sets)  # 2 and 1 of 20
    assert [score.train_images for score in scores.values()] == [8, 4]
    assert caplog.text == ""
    assert evaluate(encoder, protocols="semi-1", **sets)["semi-1"].train_images == 4
    for part in ("1 % is less than one image of most classes", "4 of 80", "5 %"):
        assert part in caplog.text


def test_features_of_another_encoder_are_refused(encoder, encoder_of):
    mine, other = (embed(each, images(12)) for each in (encoder, encoder_of("convnet", width=4)))
    evaluate(encoder, train=mine, test=replace(mine, encoder_checksum=None), protocols="knn")
    for sets, role in (({"train": other, "test": mine}, "train"), ({"train": mine, "test": other}, "test")):
        with pytest.raises(ConfigError, match=f"given as {role} are of another encoder"):
            evaluate(encoder, protocols="knn", **sets)
    with pytest.raises(ConfigError, match="given as test are of another encoder"):
        evaluate(train=mine, test=other, protocols="knn")  # without any


def test_features_need_no_encoder(encoder, tmp_path):
    """What `byol embed` wrote, or another program: on both sides, as an object or as a file."""
    train, test = clusters(100, 3), clusters(50, 3, seed=1)
    expected = evaluate(encoder, train=embed(encoder, images(80)), test=embed(encoder, images(40, seed=1)))
    found = evaluate(train=embed(encoder, images(80)), test=embed(encoder, images(40, seed=1)))
    assert {name: score.value for name, score in found.items()} == {
        name: score.value for name, score in expected.items()
    }
    assert found["knn"].encoder_checksum == encoder.checksum()
    for kind in (".npz", ".safetensors", ".parquet"):
        train.save(tmp_path / f"train{kind}")
        test.save(tmp_path / f"test{kind}")
        by_file = evaluate(train=str(tmp_path / f"train{kind}"), test=tmp_path / f"test{kind}")
        plain = evaluate(train=train, test=test)
        assert [score.value for score in by_file.values()] == [score.value for score in plain.values()]
    assert plain["knn"].encoder_checksum == "unknown"  # not empty, which says that a run wrote it
    with pytest.raises(ConfigError, match=r"Without an encoder test must be features.*\.npz"):
        evaluate(train=train, test=images(40))
    with pytest.raises(ConfigError, match="Without an encoder train must be features"):
        evaluate(train=tmp_path, test=test)
    with pytest.raises(DataError, match=r"missing\.npz"):
        evaluate(train=tmp_path / "missing.npz", test=test)
    with pytest.raises(ConfigError, match="works on images"):
        evaluate(train=train, test=test, protocols="semi-10")


def test_images_in_parquet_without_its_library_are_not_taken_for_features(tmp_path, encoder, monkeypatch):
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1, images")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"parquet.*pip install") as refused:
        evaluate(encoder, train=tmp_path / "train.parquet", test=tmp_path / "test.parquet")
    assert "eatures" not in str(refused.value)


def test_numbers_of_numpy_are_settings_and_words_are_not(encoder, tmp_path):
    train, test = clusters(40, 3), clusters(30, 3, seed=1)
    plain = evaluate(train=train, test=test, protocols="knn", k=(5, 10), temperature=0.5)
    numpy = evaluate(
        train=train,
        test=test,
        protocols=("knn", "knn"),
        k=np.array([5, 10]),
        temperature=np.float32(0.5),
    )
    assert [score.value for score in numpy.values()] == [score.value for score in plain.values()]
    write_scores(numpy, tmp_path / "scores.jsonl")
    assert [score.settings["k"] for score in read_scores(tmp_path / "scores.jsonl")] == [5, 10]
    for settings in ({"temperature": "a"}, {"k": "5"}, {"k": ["5"]}):
        with pytest.raises(ConfigError, match=r"(k|temperature) is .*; expected (a )?number"):
            evaluate(train=train, test=test, protocols="knn", **settings)
    with pytest.raises(ConfigError, match=r"seed is 1\.5; expected a whole number"):
        evaluate(train=train, test=test, seed=1.5)


def test_settings_are_chosen_by_the_metric_that_was_requested(encoder_of):
    """Nine in ten validation images are of one class: a constant looks good by top-1 alone."""
    encoder = encoder_of("convnet", width=4)
    x, _ = pixels(200)
    y = (np.arange(200) % 10 == 0).astype(int)
    sets = {
        "train": open_images(x, labels=y),
        "test": images(8, classes=2, seed=1),
        "base_lrs": (0.01, 3.0),
        "epochs": 2.0,
    }
    for metric in ("top1", "mean_per_class"):
        tried = evaluate(encoder, protocols="linear-sgd", metric=metric, **sets)["linear-sgd"].settings[
            "tried"
        ]
        assert all(set(trial) == {"epochs", "base_lr", "weight_decay", metric} for trial in tried)
        if metric == "top1":
            assert max(trial[metric] for trial in tried) >= 0.9
        else:
            assert min(trial[metric] for trial in tried) <= 0.6


def test_a_dataset_that_draws_at_random_is_not_taken_for_another_one(encoder):
    class Noise(list):
        def __getitem__(self, index):
            return Image.fromarray(
                np.random.default_rng().integers(0, 256, (16, 16, 3), dtype=np.uint8)
            ), index % 2

    scores = evaluate(encoder, train=Noise(range(12)), test=Noise(range(12)), protocols="knn")
    assert scores["knn"].overlap == 0


def test_training_protocols_refuse_multi_label_images(encoder):
    several = open_images(np.zeros((4, 8, 8, 3), dtype=np.uint8), labels=np.eye(4, 3, dtype=int))
    with pytest.raises(ConfigError, match=r"finetune .* got multi-label ones"):
        evaluate(encoder, train=several, test=several, protocols="finetune")


# Multi-label images


def tagged(count: int, seed: int = 0, names: tuple[str, ...] | None = None) -> Features:
    """Features of images that are of any of four classes, which add up, and the classes (count, 4)."""
    directions = np.random.default_rng(99).normal(size=(4, 12))
    generator = np.random.default_rng(seed)
    y = (generator.random((count, 4)) < 0.3).astype(np.int64)
    return Features(y @ directions + generator.normal(size=(count, 12)), y, classes=names)


def test_multi_label_images_are_scored_by_mean_average_precision(encoder):
    train, test = tagged(400), tagged(300, seed=1)
    scores = evaluate(train=train, test=test)
    classifier = linear.fit(torch.from_numpy(train.x), torch.from_numpy(train.y), metric="map11")
    found = classifier.predict(torch.from_numpy(test.x)).numpy()
    assert scores["linear"].value == pytest.approx(measure("map11", found, test.y))
    assert scores["linear"].settings["l2"] == classifier.l2
    for score in scores.values():
        assert (score.metric, score.top1, score.top5, score.classes) == ("map11", None, None, 4)
        assert score.low < score.value < score.high
    assert scores["linear"].value > scores["knn"].value > test.y.mean() + 0.2


def test_votes_for_multi_label_images_are_the_weights_of_the_neighbours_that_have_them(encoder):
    train, test = tagged(100), tagged(50, seed=1)
    score = evaluate(train=train, test=test, protocols="knn", k=9, temperature=0.2)["knn"]
    model = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(train.x.astype(float))
    distances, rows = model.kneighbors(test.x.astype(float))
    weights = np.exp((distances[:, :1] - distances) / 0.2)
    expected = measure("map11", np.einsum("qk,qkc->qc", weights, train.y[rows]), test.y)
    assert score.value == pytest.approx(expected, abs=1e-6)


def test_columns_are_matched_by_the_classes_names(encoder):
    train, test = tagged(300, names=("a", "b", "c", "d")), tagged(200, seed=1, names=("a", "b", "c", "d"))
    expected = evaluate(train=train, test=test)
    shuffled = Features(test.x, test.y[:, [2, 0, 3, 1]], classes=("c", "a", "d", "b"))
    found = evaluate(train=train, test=shuffled)
    assert {name: score.value for name, score in found.items()} == {
        name: pytest.approx(score.value) for name, score in expected.items()
    }


def test_images_of_a_file_may_be_multi_label(encoder, tmp_path):
    """Pictures of two halves, each of a colour: the classes are the colours that are there."""
    names = list(COLOURS)
    generator = np.random.default_rng(0)
    sets = {}
    for role, count in (("train", 60), ("test", 40)):
        chosen = generator.integers(0, 5, (count, 2))
        halves = [(picture(names[a], i)[:4], picture(names[b], i)[4:]) for i, (a, b) in enumerate(chosen)]
        images = np.stack([np.concatenate(pair) for pair in halves])
        y = np.zeros((count, 5), dtype=np.uint8)
        y[np.arange(count)[:, None], chosen] = 1
        np.savez(sets.setdefault(role, tmp_path / f"{role}.npz"), images=images, y=y)
    scores = evaluate(encoder, **sets)
    assert scores["knn"].metric == "map11"
    assert scores["knn"].value > 0.8


def test_multi_label_on_one_side_alone_is_refused(encoder):
    with pytest.raises(DataError, match="train have 4 columns, those of test 0"):
        evaluate(train=tagged(30), test=Features(np.zeros((3, 12)), np.arange(3)))
    with pytest.raises(DataError, match="train have 4 columns, those of test 3"):
        evaluate(train=tagged(30), test=Features(np.zeros((3, 12)), np.eye(3)))


# The rest


def test_every_protocol_is_scored_in_the_requested_order(encoder):
    train, test = clusters(100, 3), clusters(50, 3, seed=1)
    assert list(evaluate(train=train, test=test)) == ["knn", "linear"]
    assert list(evaluate(train=train, test=test, protocols=("linear", "knn"))) == ["linear", "knn"]


def test_nothing_is_learned_or_chosen_on_test_images(encoder):
    """Whatever the other test images and their labels are, choice and prediction for an image stay."""
    train, test = clusters(150, 3), clusters(60, 3, seed=1)
    first = evaluate(train=train, test=test)
    shuffled = evaluate(
        train=train, test=Features(test.x * 7 + 1, np.random.default_rng(0).permutation(test.y))
    )
    thirds = [evaluate(train=train, test=Features(test.x[i::3], test.y[i::3])) for i in range(3)]
    assert all(scores["linear"].settings == first["linear"].settings for scores in (shuffled, *thirds))
    for protocol, score in first.items():
        assert score.top1 == pytest.approx(np.mean([scores[protocol].top1 for scores in thirds]))


def test_scores_do_not_hang_on_the_order_of_the_test_images(encoder):
    train, test = clusters(300, 5), clusters(200, 5, seed=1)
    turned = Features(test.x[::-1].copy(), test.y[::-1].copy())
    for protocol, score in evaluate(train=train, test=test).items():
        assert evaluate(train=train, test=turned)[protocol].top1 == score.top1


def test_same_seed_gives_the_same_scores_and_leaves_the_random_state(encoder):
    train, test = clusters(100, 3), clusters(50, 3, seed=1)
    state = torch.get_rng_state()
    first, second = (evaluate(train=train, test=test, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name in first:
        assert (first[name].top1, first[name].low, first[name].high) == (
            second[name].top1,
            second[name].low,
            second[name].high,
        )


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
        assert {name: score.top1 for name, score in scores.items()} == {
            name: score.top1 for name, score in expected.items()
        }
        assert scores["knn"].train_images == 24


def test_worker_processes_change_no_score(encoder, tmp_path):
    names = ["blue", "red"]
    train, test = folder(tmp_path / "train", names, 6, 0), folder(tmp_path / "test", names, 4, 100)
    here, there = (
        evaluate(encoder, train=train, test=test, protocols=["knn"], workers=workers)["knn"]
        for workers in (0, 2)
    )
    assert (here.top1, here.low, here.high) == (there.top1, there.low, there.high)


def test_gray_encoder_scores_coloured_folders(encoder_of, tmp_path):
    names = ["blue", "white"]
    train, test = folder(tmp_path / "train", names, 6, 0), folder(tmp_path / "test", names, 4, 100)
    scores = evaluate(
        encoder_of("convnet", channels=1, size=(8, 8)), train=train, test=test, protocols=["knn"]
    )
    assert scores["knn"].top1 == 1.0


# One labelled set, divided


def test_a_share_as_test_scores_the_images_that_are_not_learned_from(encoder, tmp_path):
    """The same scores as for two folders into which the images were sorted by hand."""
    one = folder(tmp_path / "one", ["blue", "red", "white"], 10, 0)
    task = prepare(encoder, one, 0.3, protocols_named("knn", EvaluationConfig()), EvaluationConfig(), seed=5)
    sides = {"train": task.train, "test": task.test}
    for side, split in sides.items():
        for index in range(len(split)):
            name = split.name(index)
            (tmp_path / side / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / side / name).write_bytes((one / name).read_bytes())
    assert [len(split) for split in sides.values()] == [21, 9]
    divided = evaluate(encoder, train=one, test=0.3, seed=5, k=3)
    sorted_by_hand = evaluate(encoder, train=tmp_path / "train", test=tmp_path / "test", seed=5, k=3)
    for name, score in divided.items():
        assert (score.value, score.train_images, score.test_images) == (sorted_by_hand[name].value, 21, 9)
    assert divided["knn"].overlap == 0
    assert divided["knn"].test == f"9 of 30 images in {one}/ (3 classes)"


def test_features_are_divided_with_their_labels_and_names(tmp_path):
    whole = clusters(200, 4, spread=0.01)
    whole = Features(whole.x, whole.y, [f"{row}" for row in range(200)], tuple("abcd"))
    whole.save(tmp_path / "whole.npz")
    found = evaluate(train=tmp_path / "whole.npz", test="0.25", k=1)
    assert found["knn"].value == found["linear"].value == 1  # so far apart that wrong labels would show
    assert found["knn"].test_images == pytest.approx(50, abs=2)


def test_multi_label_features_are_divided_too():
    x = np.random.default_rng(0).normal(size=(300, 6))
    y = (x[:, :3] > 0.3).astype(np.int64)
    found = evaluate(train=Features(x, y), test=0.2, protocols="linear")["linear"]
    assert found.test_images == pytest.approx(60, abs=6)
    assert found.train_images + found.test_images == 300
    assert found.value > 0.9


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, "0", "1", float("nan"), True])
def test_a_share_that_leaves_a_side_empty_is_refused(share):
    with pytest.raises(ConfigError, match=rf"test is {share}; expected .* above 0 and below 1"):
        evaluate(train=clusters(40, 2), test=share)


def test_classes_of_one_image_each_cannot_be_divided():
    with pytest.raises(DataError, match=r"features of 3 images has two images.*test images of their own"):
        evaluate(train=Features(np.eye(3), np.arange(3)), test=0.5)


# Classes


def test_folders_that_lack_different_classes_are_matched_by_the_classes_names(encoder, tmp_path):
    """Train numbers blue, red, yellow 0, 1, 2; test green, red, yellow. By number, all would be wrong."""
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
        assert score.top1 == score.high == 1.0
        assert score.low < 0.5  # three images prove little


def test_features_are_matched_by_the_classes_names_too(encoder):
    train, test = (
        clusters(300, 3, spread=0.01, names=("a", "b", "c")),
        clusters(60, 3, seed=1, spread=0.01, names=("a", "b", "c")),
    )
    other = Features(test.x, np.array([2, 0, 3])[test.y], classes=("b", "unused", "a", "c"))
    for score in evaluate(train=train, test=other).values():
        assert score.top1 == 1.0


def test_classes_of_test_that_train_lacks_are_named(caplog):
    names = ("a", "b", "c\x1b", "d")
    every = clusters(80, 4, spread=0.01, names=names)
    train = Features(every.x[every.y < 2], every.y[every.y < 2], classes=names)
    unseen = int((every.y > 1).sum())
    for score in evaluate(train=train, test=every).values():
        assert score.top1 == pytest.approx(1 - unseen / 80)
    assert f"no image of 2 classes of test (c\\x1b, d), to which {unseen} of its 80 images" in caplog.text
    caplog.clear()
    evaluate(train=every, test=train, protocols="knn")
    evaluate(train=every, test=every, protocols="knn")
    assert "no image of" not in caplog.text
    several = np.eye(4, dtype=np.int64)[every.y]  # of labels of which an image may have many
    evaluate(
        train=Features(train.x, several[every.y < 2], classes=names),
        test=Features(every.x, several, classes=names), protocols="linear",
    )  # fmt: skip
    assert f"no image of 2 classes of test (c\\x1b, d), to which {unseen} of its 80 images" in caplog.text


def test_one_class_to_learn_from_is_refused_by_every_protocol(encoder):
    one, several = clusters(30, 1), clusters(30, 3)
    for protocol in ("knn", "linear"):
        with pytest.raises(DataError, match=r"Only one class occurs among .*; expected at least two"):
            evaluate(train=one, test=several, protocols=protocol)


def test_a_single_value_stands_for_a_list_of_one(encoder):
    train, test = clusters(300, 3), clusters(60, 3, seed=1)
    first, second = (
        evaluate(train=train, test=test, protocols="knn", k=k)["knn"] for k in (np.int64(5), (5,))
    )
    assert first.value == second.value
    config = EvaluationConfig(base_lrs=0.1, epochs=2, weight_decays=0)
    assert (config.base_lrs, config.epochs, config.weight_decays) == ((0.1,), (2,), (0,))


def test_labels_without_names_are_matched_by_number(encoder):
    for names in (None, ("a", "b", "c")):
        train, test = clusters(300, 3, spread=0.01, names=names), clusters(60, 3, seed=1, spread=0.01)
        assert evaluate(train=train, test=test, protocols=["knn"])["knn"].top1 == 1.0
        assert evaluate(train=test, test=train, protocols=["knn"])["knn"].top1 == 1.0


def test_matching_leaves_the_given_features_as_they_were(encoder):
    train, test = clusters(30, 2, names=("a", "b")), clusters(30, 2, seed=1, names=("b", "a"))
    y = test.y.copy()
    evaluate(train=train, test=test, protocols=["knn"])
    assert np.array_equal(test.y, y)
    assert test.classes == ("b", "a")


def test_no_class_in_common_is_refused_with_both_sides_names(encoder, tmp_path):
    train, test = (
        folder(tmp_path / "train", ["blue", "yellow"], 3, 0),
        folder(tmp_path / "test", ["green", "red"], 3, 0),
    )
    with pytest.raises(DataError, match=r"share no class: train has blue, yellow \.\.\., test green, red"):
        evaluate(encoder, train=train, test=test)


# What is refused


@pytest.mark.parametrize("role", ["train", "test"])
def test_missing_labels_are_told_with_the_role_before_any_work(encoder, tmp_path, role):
    labelled = folder(tmp_path / "labelled", ["blue", "red"], 3, 0)
    flat = labelled / "red"
    given = {"train": labelled, "test": labelled, role: flat}
    encoder.net[2].weight.data.fill_(float("nan"))  # which the first image embedded would show
    with pytest.raises(
        DataError, match=f"3 images in {flat}/ given as {role} carry no labels. Expected a folder with one"
    ):
        evaluate(encoder, **given)
    features = clusters(10, 2)
    given = {"train": features, "test": features, role: Features(features.x)}
    with pytest.raises(DataError, match=f"features of 10 images given as {role} carry no labels"):
        evaluate(encoder, **given)


def test_unknown_protocol_is_refused_with_the_nearest_one(encoder):
    features = clusters(10, 2)
    with pytest.raises(
        ConfigError,
        match=r"no protocol 'linaer'\. Did you mean 'linear' or 'linear-sgd'\? There are: knn, linear, ",
    ):
        evaluate(train=features, test=features, protocols=["knn", "linaer"])
    with pytest.raises(ConfigError, match=r"no protocol 'accuracy'"):
        evaluate(train=features, test=features, protocols=["accuracy"])


def test_features_of_two_widths_are_refused(encoder):
    train, test = clusters(30, 2), clusters(30, 2)
    with pytest.raises(ConfigError, match=r"5-dimensional features given as test .* 8-dimensional"):
        evaluate(train=train, test=Features(test.x[:, :5], test.y))
    with pytest.raises(ConfigError, match=r"8-dimensional features given as train .* 3-dimensional"):
        evaluate(encoder, train=train, test=images(8))


def test_the_same_images_on_both_sides_are_warned_of(encoder, caplog):
    one, other = (np.full((4, 8, 8, 3), shade, dtype=np.uint8) for shade in (0, 9))
    train = open_images(one, labels=[0, 1, 0, 1])
    evaluate(encoder, train=train, test=open_images(other, labels=[0, 1, 0, 1]), protocols="knn")
    assert caplog.text == ""
    evaluate(encoder, train=train, test=open_images(one, labels=[0, 1, 0, 1]), protocols="knn")
    assert "4 of the 4 test images are train images too" in caplog.text


def test_unknown_setting_is_refused_with_the_nearest_one(encoder):
    features = clusters(10, 2)
    with pytest.raises(ConfigError, match=r"no setting 'temprature'\. Did you mean 'temperature'\?"):
        evaluate(train=features, test=features, temprature=1.0)
    with pytest.raises(ConfigError, match="seeds is 0; expected at least 1"):
        evaluate(train=features, test=features, seeds=0)
