"""Samples of any kind, with views by a function of the user's own: trained, resumed, embedded, evaluated."""

import multiprocessing
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import started
from small_runs import small_config, stopping
from test_ranks import assert_same_run
from test_run import losses_of, state_of
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import byol
from byol.data.pairs import PairBatches, Pairs
from byol.data.samples import Samples, collated, sample_batches
from byol.train.config import DataConfig, KnnConfig, OptimConfig
from byol.train.setup import Setup

HEIGHT, WIDTH = 40, 100  # of a log-mel spectrogram
PLAIN = {"image_size": None, "hidden_layer": "output"}


class Mel(nn.Module):
    """Takes spectrograms of 40 x 100 and of no other size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 5, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 20, 12)
        )

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (1, HEIGHT, WIDTH)
        return self.layers(x)


class Sounds(Dataset):
    """Noise of two loudnesses, which this data set itself changes a little at each reading."""

    def __init__(self, jitter: float = 0.1, count: int = 40) -> None:
        self.jitter, self.count = jitter, count
        self.targets = [index % 2 for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        x = np.random.default_rng(index).normal(size=(1, HEIGHT, WIDTH)) * (1 + index % 2)
        return x * (1 + self.jitter * np.random.rand()), self.targets[index]


def shifted(x: np.ndarray) -> tuple[Tensor, Tensor]:
    """Draws from all three: Python's, numpy's and torch's random numbers."""
    rolled = [torch.from_numpy(np.roll(x, random.randrange(WIDTH), axis=2)) for _ in range(2)]
    return rolled[0] * np.random.uniform(0.8, 1.2), rolled[1] + 0.1 * torch.randn(x.shape)


def same(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x


def mel() -> Mel:
    torch.manual_seed(0)
    return Mel()


def config_of(out: Path, **changes: object) -> byol.TrainConfig:
    return small_config(out, **{**PLAIN, **changes})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_own_samples_resumes_bit_for_bit(tmp_path, workers):
    """Whatever data set and views draw, from whomever, and with other workers than before."""
    config = config_of(tmp_path / "a", workers=workers, optim=OptimConfig(name="adamw", accumulation=2))
    whole = byol.pretrain(mel(), Sounds(), config, views=shifted)
    again = replace(config, out=str(tmp_path / "b"), workers=0)
    random.seed(1)
    np.random.seed(1)
    with pytest.raises(byol.Stopped, match="saved at step 4"):
        byol.pretrain(stopping(mel(), 18), Sounds(), again, views=shifted)
    resumed = byol.pretrain(mel(), Sounds(), again, views=shifted)
    assert resumed.plan.total_steps == whole.plan.total_steps > 5
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    assert resumed.score.value == whole.score.value
    with pytest.raises(byol.CheckpointError, match=r"other images.*images: 40 samples in the Sounds"):
        byol.pretrain(mel(), Sounds(count=42), again, views=shifted)


def test_samples_reach_the_network_as_they_are(tmp_path):
    """40 x 100 stays so: nothing is cropped, flipped, resized or normalised; an epoch visits each once."""
    x = torch.randn(40, 1, HEIGHT, WIDTH)
    loop = byol.prepare_loop(mel(), x, config_of(tmp_path / "a", epochs=3), views=same)
    seen = []
    for _ in range(5):
        view1, view2, indices, _ = next(loop.batches)
        assert torch.equal(view1, x[indices])
        assert torch.equal(view2, x[indices])
        seen += indices.tolist()
    assert sorted(seen) == list(range(40))
    assert loop.learner.views is None


def test_views_differ_by_sample_and_epoch_and_not_by_workers_or_processes(tmp_path):
    setup = Setup.of(mel(), Sounds(), config_of(tmp_path / "a", epochs=3, seed=3), views=shifted)
    plan = setup.new_plan()
    learner = setup.learner(plan)
    rows = torch.arange(len(setup.images))

    def views(workers: int = 0, start: int = 0) -> list[Tensor]:
        batches = setup.batches(rows, replace(plan, workers=workers), learner, start)
        found = [next(batches) for _ in range(10 - start)]
        batches.close()
        return [torch.stack([one.view1, one.view2]) for one in found]

    first = views()
    for other, start in ((views(workers=2), 0), (views(start=4), 4)):
        assert all(map(torch.equal, first[start:], other))
    every = torch.cat([batch[1] for batch in first]).flatten(1)  # two epochs of 40
    assert len(every.unique(dim=0)) == len(every) == 80


def test_embed_and_evaluate_give_the_networks_own_output(tmp_path):
    data = Sounds(jitter=0)
    run = byol.pretrain(mel(), data, config_of(tmp_path / "a"), views=shifted)
    encoder = byol.load_encoder(tmp_path / "a", net=Mel())
    x = torch.stack([torch.from_numpy(data[index][0]).float() for index in range(len(data))])
    own = run.encoder.net.eval()
    with torch.no_grad():
        expected = own(x)
    assert torch.equal(encoder(x), expected)
    features = byol.embed(encoder, data)
    np.testing.assert_allclose(features.x, expected.numpy(), atol=1e-6)
    assert features.y.tolist() == data.targets
    assert features.encoder_checksum == run.encoder.checksum()
    plain = byol.embed(
        encoder, byol.Samples(x, labels=["loud" if t else "soft" for t in data.targets]), workers=2
    )
    np.testing.assert_array_equal(plain.x, features.x)
    assert (plain.classes, plain.y[:2].tolist()) == (("loud", "soft"), [1, 0])
    scores = byol.evaluate(encoder, train=data, test=byol.Samples(x, labels=data.targets), protocols="linear")
    again = byol.evaluate(encoder, train=features, test=features, protocols="linear")
    assert scores["linear"].value == again["linear"].value > 0.6  # by chance 0.5


class Both(nn.Module):
    """Takes a series and a number by name."""

    def __init__(self) -> None:
        super().__init__()
        self.series, self.number = nn.Conv1d(2, 6, 5), nn.Linear(1, 6)

    def forward(self, series: Tensor, number: Tensor) -> Tensor:
        return torch.relu(self.series(series)).mean(2) + self.number(number[:, None])


@pytest.mark.parametrize("kind", ["names", "places"])
def test_a_network_of_several_inputs_is_given_them_by_name_or_place(tmp_path, kind):
    draws = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(2, 30, generator=draws), float(number)) for number in range(24)]
    if kind == "names":
        items = [{"series": series, "number": number} for series, number in pairs]
        views = lambda x: (x, {**x, "series": x["series"].flip(1)})  # noqa: E731
    else:
        items = [(pair, "one" if pair[1] % 2 else "two") for pair in pairs]
        views = lambda x: (x, (x[0].flip(1), x[1]))  # noqa: E731
    torch.manual_seed(0)
    run = byol.pretrain(Both(), items, config_of(tmp_path / "a"), views=views)
    with torch.no_grad():
        series, numbers = torch.stack([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])
        expected = run.encoder.net(series, numbers)
    features = byol.embed(run.encoder, items)
    np.testing.assert_allclose(features.x, expected.numpy(), atol=1e-6)
    assert features.classes == (("one", "two") if kind == "places" else None)


def test_volumes_of_three_dimensions_are_trained_on_saved_and_loaded(tmp_path):
    """Weights of five dimensions have no channels-last layout of images."""

    def net() -> nn.Module:
        layers = nn.Conv3d(1, 6, 3, 2), nn.BatchNorm3d(6), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
        return nn.Sequential(*layers)

    x = torch.randn(24, 1, 9, 8, 7)
    run = byol.pretrain(net(), TensorDataset(x), config_of(tmp_path / "a"), views=lambda v: (v, v.flip(1)))
    assert torch.equal(byol.load_encoder(tmp_path / "a", net=net())(x), run.encoder(x))
    assert run.verdict.state == "too short"
    assert "two views of a sample" in run.verdict.evidence
    assert "--budget" not in run.verdict.remedy  # which is refused there


def test_a_subset_by_a_mask_is_that_of_the_marked_samples():
    samples = byol.Samples(torch.arange(5.0)[:, None], labels=[0, 1, 2, 0, 1])
    some = samples.subset(np.array([False, True, False, False, True]))
    assert [float(some[row]) for row in range(len(some))] == [1, 4]
    assert some.labels.tolist() == [1, 1]
    for wrong in ([5], [-1], [True, False]):
        with pytest.raises(IndexError):
            samples.subset(np.array(wrong))


@pytest.mark.parametrize(
    "odd",
    [
        lambda x: x[:, ::-1],
        lambda x: x[::-1],  # of one element, which numpy calls contiguous all the same
        lambda x: x.astype(">f8"),
        lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),  # read-only
        lambda x: np.asfortranarray(x),
    ],
)
def test_arrays_that_lie_oddly_in_memory_are_collated_as_any(odd):
    arrays = [np.random.default_rng(seed).normal(size=(1, 7)) for seed in range(3)]
    expected = np.stack([odd(array) for array in arrays]).astype(np.float32)
    np.testing.assert_array_equal(collated([odd(array) for array in arrays]).numpy(), expected)
    held = collated([{"series": odd(array), "number": np.float64(1)} for array in arrays])
    np.testing.assert_array_equal(held["series"].numpy(), expected)


def test_any_tensors_come_out_of_workers_as_they_are():
    kinds = (torch.bfloat16, torch.complex64, torch.bool, torch.int64, torch.uint16)
    items = [
        {"all": tuple((3 * torch.rand(2, 3)).to(kind) for kind in kinds), "none": torch.zeros(0, 4)}
        for _ in range(70)
    ]
    samples = Samples(items)
    for own, theirs in zip(sample_batches(samples), sample_batches(samples, workers=2), strict=True):
        assert own["none"].shape == theirs["none"].shape == (len(own["none"]), 0, 4)
        for kind, one, other in zip(kinds, own["all"], theirs["all"], strict=True):
            assert one.dtype == other.dtype == kind
            assert torch.equal(one, other)


def kills_its_process(x: Tensor) -> tuple[Tensor, Tensor]:
    """At one sample, in some epochs."""
    if float(x) == 3 and random.random() > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x, x


def test_a_worker_that_dies_is_a_sentence():
    pairs = Pairs(Samples(torch.arange(24.0)[:, None]), kills_its_process)
    batches = PairBatches(
        pairs, seed=0, batch_size=8, micro_batch_size=8, steps=range(99), first=0, share=8,
        device=torch.device("cpu"), workers=2,
    )  # fmt: skip
    with pytest.raises(byol.ByolError, match=r"died \(SIGKILL\).*--workers"):
        list(batches)
    assert multiprocessing.active_children() == []


def fails_at_17(x: Tensor) -> tuple[Tensor, Tensor]:
    if float(x.flatten()[0]) == 17:
        raise ValueError("no sound")
    return x, x


@pytest.mark.parametrize(
    ("change", "views", "words"),
    [
        ({"image_size": 16}, same, "image_size cannot apply"),
        ({"budget": "9s", "epochs": None}, same, "budget cannot apply"),
        ({"data": DataConfig(channels=1)}, same, "data cannot apply"),
        ({}, lambda x: x[0], "expected two views of one sample"),
        ({}, fails_at_17, "views fails for sample 17: ValueError: no sound"),
        ({}, lambda x: (x[:, :, : random.randrange(50, 100)], x), "do not make one tensor.*cut or pad"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(tmp_path, change, views, words):
    x = torch.arange(40.0)[:, None, None, None].expand(40, 1, HEIGHT, WIDTH).clone()
    net = nn.Sequential(nn.Conv2d(1, 4, 5, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(byol.ByolError, match=words):
        byol.pretrain(net, x, config_of(tmp_path / "a", **change), views=views)


def test_encoders_of_own_samples_are_refused_where_images_are_needed(tmp_path):
    with pytest.raises(byol.ConfigError, match=r"module too.*build_encoder"):
        byol.pretrain("convnet", Sounds(), config_of(tmp_path / "a"), views=shifted)
    with pytest.raises(byol.DataError, match="str does not hold samples"):
        byol.pretrain(mel(), "sounds/", config_of(tmp_path / "a"), views=shifted)
    with pytest.raises(byol.DataError, match=r"Sample 0 .*tuple of 3"):
        byol.Samples([(1, 2, 3)])[0]
    run = byol.pretrain(mel(), Sounds(), config_of(tmp_path / "a"), views=shifted)
    with pytest.raises(byol.CheckpointError, match="net="):
        byol.load_encoder(tmp_path / "a")
    with pytest.raises(byol.ConfigError, match="not images"):
        byol.export(run.encoder, tmp_path / "encoder.onnx")
    with pytest.raises(byol.DataError, match="only Python reads"):
        run.encoder.open("photos/")


def train(out: str) -> int:
    """What each of several processes does."""
    knn = KnnConfig(hold_out_share=0.0)
    config = config_of(
        Path(out), optim=OptimConfig(name="lars", base_lr=0.2), log_every_steps=1, knn=knn, epochs=5
    )
    byol.pretrain(mel(), Sounds(), config, views=shifted)
    return 0


@pytest.mark.slow
def test_two_processes_on_own_samples_are_the_run_of_one(tmp_path):
    for count in (1, 2):
        with started(count, tmp_path / f"{count}.log", train, str(tmp_path / str(count))) as running:
            codes, said = running.codes(), running.said()
        assert codes == [0] * count, said
    assert_same_run(tmp_path / "1", tmp_path / "2")


def test_the_parts_of_two_processes_are_the_batches_of_one():
    pairs = Pairs(Samples(torch.arange(24.0)[:, None]), lambda x: (x + torch.rand(1), x + torch.rand(1)))
    cut = {
        "seed": 0,
        "batch_size": 8,
        "micro_batch_size": 8,
        "steps": range(4),
        "device": torch.device("cpu"),
    }
    whole = PairBatches(pairs, first=0, share=8, **cut)
    parts = (PairBatches(pairs, first=first, share=4, **cut) for first in (0, 4))
    for one, *two in zip(whole, *parts, strict=True):
        for mine, theirs in zip(one[:3], zip(*(part[:3] for part in two), strict=True), strict=True):
            assert torch.equal(mine, torch.cat(theirs))
