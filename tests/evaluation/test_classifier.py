"""A classifier kept in a file: it says what was scored, with scikit-learn's probabilities."""

import json

import numpy as np
import pytest
import torch
from labelled_images import images, net, pixels
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import byol
from byol.encoders.encoder import digest
from byol.errors import CheckpointError, ConfigError

NAMES = ["owl", "cat", "fox", "bee"]
SHORT = {"linear-sgd": {"epochs": (2.0,)}, "semi-50": {"epochs": (2.0,)}, "finetune": {"epochs": (1.0,)}}


def named(count: int, seed: int = 0) -> byol.Images:
    """Images of four classes of which one occurs in none of them: numbers and names are no longer alike."""
    x, y = pixels(count, 3, seed)
    return byol.open_images(x, labels=[NAMES[one] for one in y]).with_classes(("ant", *sorted(NAMES)))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "classifier.safetensors"


@pytest.fixture
def own(encoder_of):
    """An encoder of one's own network, as both calls need it."""
    return encoder_of(net())


@pytest.mark.parametrize("protocol", ["knn", "linear", "linear-sgd", "semi-50", "finetune"])
def test_a_saved_classifier_says_of_the_test_images_exactly_what_was_scored(protocol, encoder_of, file):
    encoder, train, test = encoder_of("convnet", width=2), named(90), named(70, seed=1)
    settings = SHORT.get(protocol, {})
    scores = byol.evaluate(
        encoder, train=train, test=test, protocols=protocol, save_classifier=file, **settings
    )
    loaded = byol.load_classifier(file)
    found = loaded.predict(test)
    scored = scores[protocol].predictions[0].classes
    assert loaded.protocol == protocol
    assert found.labels == [test.classes[one] for one in scored[:, 0]]
    assert (
        np.mean([test.classes[one] for one in test.labels] == np.array(found.labels)) == scores[protocol].top1
    )
    order = np.argsort(-found.probabilities, axis=1, kind="stable")
    assert [loaded.classes[one] for one in order[:, 0]] == found.labels
    assert found.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert loaded.classes == ("cat", "fox", "owl")  # those that occurred
    assert scores[protocol].predictions[0].classifier is None  # a score does not hold the encoder


@pytest.mark.parametrize("protocol", ["knn", "linear", "semi-50"])
def test_nothing_of_the_test_images_is_in_a_saved_classifier(protocol, encoder_of, tmp_path):
    encoder, written = encoder_of("convnet", width=2), []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.safetensors"
        test = named(30 * seed, seed=seed)
        settings = SHORT.get(protocol, {})
        byol.evaluate(
            encoder, train=named(90), test=test, protocols=protocol, save_classifier=file, **settings
        )
        written.append(file.read_bytes())
    assert written[0] == written[1]


def test_a_part_that_was_held_out_is_not_learned_from(encoder_of, file):
    encoder, every = encoder_of("convnet", width=2), named(90)
    scores = byol.evaluate(encoder, train=every, test=0.3, protocols="knn", save_classifier=file, k=1)
    assert len(byol.load_classifier(file).of_features.bank) == scores["knn"].train_images == 63


def test_a_fine_tuned_encoder_is_saved_fine_tuned_and_a_frozen_one_as_it_was(encoder_of, tmp_path):
    encoder, test = encoder_of("convnet", width=2), named(30, seed=1)
    x, checksums = torch.rand(4, 3, 16, 16), {}
    for protocol in ("linear", "linear-sgd", "finetune"):
        file = tmp_path / f"{protocol}.safetensors"
        settings = SHORT.get(protocol, {})
        byol.evaluate(
            encoder, train=named(60), test=test, protocols=protocol, save_classifier=file, **settings
        )
        kept = byol.load_encoder(file)  # what every command takes
        checksums[protocol] = kept.checksum()
        assert torch.equal(kept(x), byol.load_classifier(file).encoder(x))
        same = torch.allclose(kept(x), encoder(x), rtol=1e-4)  # the kept one lies otherwise in memory
        assert same == (protocol != "finetune")
    assert checksums["linear"] == checksums["linear-sgd"] == encoder.checksum() != checksums["finetune"]


def test_probabilities_of_linear_are_scikit_learns(encoder_of, file):
    encoder, train, test = encoder_of("convnet", width=2), images(120), images(50, seed=1)
    scores = byol.evaluate(encoder, train=train, test=test, protocols="linear", save_classifier=file)
    x, queries = (byol.embed(encoder, one).x.astype(np.float64) for one in (train, test))
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std < 1e-6 * std.max()] = 1
    model = LogisticRegression(C=1 / (scores["linear"].settings["l2"] * len(x)), tol=1e-8, max_iter=10_000)
    model.fit((x - mean) / std, train.labels)
    expected = model.predict_proba((queries - mean) / std)
    found = byol.load_classifier(file).predict(test)
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-3)
    pixels = torch.stack([torch.from_numpy(test.array(row)).permute(2, 0, 1) for row in range(len(test))])
    np.testing.assert_allclose(byol.load_classifier(file)(pixels), found.probabilities, atol=1e-5)


def test_probabilities_of_knn_are_scikit_learns_vote_shares(encoder_of, file):
    encoder, train, test = encoder_of("convnet", width=2), images(120), images(50, seed=1)
    byol.evaluate(
        encoder, train=train, test=test, protocols="knn", save_classifier=file, k=7, temperature=0.01
    )
    model = KNeighborsClassifier(7, metric="cosine", weights=lambda distances: np.exp(-distances / 0.01))
    model.fit(byol.embed(encoder, train).x, train.labels)
    expected = model.predict_proba(byol.embed(encoder, test).x)
    found = byol.load_classifier(file).predict(test)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-3)
    assert (found.probabilities == 0).any()  # a class without a vote


def test_multi_label_images_get_every_class_that_is_likely(encoder_of, file, tmp_path):
    x, y = pixels(80)
    tags = np.stack([y < 2, y % 2 == 0, y == 3], axis=1).astype(int)
    encoder = encoder_of("convnet", width=2)
    train = byol.open_images(x, labels=tags)
    scores = byol.evaluate(encoder, train=train, test=train, protocols="linear", save_classifier=file)
    found = byol.load_classifier(file).predict(x)
    logits = scores["linear"].predictions[0].classes
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)
    expected = ["|".join(np.array(["0", "1", "2"])[row >= 0.5]) for row in found.probabilities]
    assert found.labels == expected
    assert any("|" in label for label in found.labels)
    found.save(tmp_path / "labels.csv")
    cells = (tmp_path / "labels.csv").read_text().splitlines()[1].split(",")
    assert len(cells[1].split("|")) == len(cells[2].split("|"))
    with pytest.raises(ConfigError, match="linear"):
        byol.evaluate(encoder, train=train, test=train, protocols="knn", save_classifier=file)


def test_a_table_of_predictions_is_read_as_labels_beside_the_images(encoder_of, file, tmp_path):
    names = ["a, b.png", 'say "owl".png', "fünf.png"]
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name, one in zip(names, pixels(3)[0], strict=True):
        Image.fromarray(one).save(tmp_path / "new" / "deep" / name)
    byol.evaluate(
        encoder_of("convnet", width=2), train=named(60), test=0.5, protocols="knn", save_classifier=file
    )
    found = byol.load_classifier(file).predict(tmp_path / "new")
    found.save(tmp_path / "new" / "labels.csv", every_class=True)
    read = byol.open_images(tmp_path / "new" / "labels.csv")
    assert [read.name(row) for row in range(3)] == found.names
    assert [read.classes[one] for one in read.labels] == found.labels
    numbers = [line.rsplit(",", 4)[1:] for line in (tmp_path / "new" / "labels.csv").read_text().splitlines()]
    assert numbers[0] == ["probability", "cat", "fox", "owl"]
    assert [max(row[1:]) for row in numbers[1:]] == [row[0] for row in numbers[1:]]


def test_a_network_of_ones_own_is_needed_again(own, file):
    byol.evaluate(own, train=named(60), test=0.5, protocols="linear", save_classifier=file)
    with pytest.raises(CheckpointError, match="net="):
        byol.load_classifier(file)
    test = images(20)
    found = byol.load_classifier(file, net=net(seed=5)).predict(test)
    x = byol.embed(own, test).x
    expected = byol.load_classifier(file, net=net(seed=5)).of_features(torch.from_numpy(x))
    np.testing.assert_array_equal(found.probabilities, expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocols": ("knn", "linear")}, "2 are scored"),
        ({"protocols": "knn", "k": (1, 5)}, "2 are scored"),
        ({"protocols": "linear", "seeds": 3}, "3 are scored"),
        ({"protocols": "linear", "save_classifier": "x.pt"}, "x.pt"),
        ({"protocols": "linear", "encoder": None}, "encoder"),
        ({"protocols": "linear", "train": "features"}, "train images"),
    ],
)
def test_what_makes_no_single_classifier_is_refused_before_any_work(change, says, encoder_of, file):
    encoder, train = encoder_of("convnet", width=2), named(30)
    features = byol.embed(encoder, train)
    words = {"train": train, "test": features, "save_classifier": file, **change}
    encoder = words.pop("encoder", encoder)
    words["train"] = features if encoder is None or words["train"] == "features" else train
    with pytest.raises(ConfigError, match=says):
        byol.evaluate(encoder, **words)
    assert not file.exists()


def test_a_file_that_is_not_a_classifier_is_neither_replaced_nor_read(encoder_of, tmp_path):
    from byol.encoders.encoder import save_encoder

    encoder = encoder_of("convnet", width=2)
    path = save_encoder(encoder, tmp_path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is not a classifier"):
        byol.evaluate(encoder, train=named(30), test=0.5, protocols="knn", save_classifier=path)
    assert path.read_bytes() == before
    with pytest.raises(CheckpointError, match="--save-classifier"):
        byol.load_classifier(path)
    with pytest.raises(CheckpointError, match="no classifier"):
        byol.load_classifier(tmp_path / "nothing.safetensors")


def rewritten(path, said=(), tensors=()):
    """Another content with the right checksum."""
    with safe_open(path, "pt") as held:
        parts = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        description = json.loads(held.metadata()["byol"])
    del description["blake2b"]
    description["classifier"] |= dict(said)
    parts |= {f"classifier:{name}": tensor for name, tensor in dict(tensors).items()}
    description["blake2b"] = digest(parts, description)
    save_file(parts, path, {"byol": json.dumps(description)})


@pytest.mark.parametrize(
    ("protocol", "said", "tensors"),
    [
        ("knn", {"k": 0}, {}),
        ("knn", {"k": "many"}, {}),
        ("knn", {"temperature": float("nan")}, {}),
        ("knn", {"temperature": 10**400}, {}),
        ("knn", {"multi_label": True}, {}),
        ("knn", {"classes": ["a", "b"]}, {}),
        ("knn", {"classes": ["a", "b", "\ud800"]}, {}),
        ("knn", {}, {"columns": torch.full((60,), 7)}),
        ("knn", {}, {"columns": torch.full((60,), -1)}),
        ("knn", {}, {"bank": torch.rand(60, 3)}),
        ("knn", {}, {"bank": torch.tensor(1.0)}),
        ("linear", {"classes": 3}, {}),
        ("linear", {"classes": ["a"] * 10**6}, {}),
        ("linear", {"logit_cap": -1}, {}),
        ("linear", {}, {"bias": torch.full((3,), torch.nan)}),
        ("linear", {}, {"bias": torch.zeros(4)}),
        ("linear", {}, {"bias": torch.zeros(3, dtype=torch.int64)}),
        ("linear", {}, {"other": torch.zeros(3)}),
    ],
)
def test_what_a_file_says_is_checked_before_it_is_believed(protocol, said, tensors, encoder_of, file):
    byol.evaluate(
        encoder_of("convnet", width=2),
        train=named(60),
        test=named(9),
        protocols=protocol,
        save_classifier=file,
    )
    rewritten(file)
    byol.load_classifier(file)
    rewritten(file, said, tensors)
    with pytest.raises(CheckpointError, match="does not describe a classifier"):
        byol.load_classifier(file)
