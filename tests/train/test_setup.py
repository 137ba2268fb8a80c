"""What a caller gives is used or refused, by `pretrain` and by `prepare_loop` alike."""

import numpy as np
import pytest
import torch
from small_runs import Tiny, seeded, small_config

import byol
from byol.train.config import DataConfig, KnnConfig, ModelConfig, ProbeConfig
from byol.train.setup import Setup, split


@pytest.mark.parametrize("run", [byol.pretrain, byol.prepare_loop])
@pytest.mark.parametrize(
    ("encoder", "changes", "words"),
    [
        (Tiny(), {"encoder": "resnet18"}, ["module", "encoder"]),
        (Tiny(), {"model": ModelConfig(width=2)}, ["module", "model.width"]),
        (Tiny(), {"model": ModelConfig(target_init="independent")}, ["module", "model.target_init"]),
        ("convnet", {"encoder": "resnet18"}, ["'convnet'", "'resnet18'"]),
        ("convnet", {"data": DataConfig(max_pixels=100)}, ["20x20", "limit of 100"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_setting_that_could_not_take_effect_is_refused(tmp_path, arrays, run, encoder, changes, words):
    images = byol.open_images(arrays)
    with pytest.raises((byol.ConfigError, byol.DataError)) as failure:
        run(encoder, images, small_config(tmp_path / "a", **changes))
    assert [word for word in words if word not in str(failure.value)] == []
    assert not (tmp_path / "a").exists()


def test_a_module_of_ones_own_is_planned_as_a_network_with_a_name_not_as_the_small_encoder(tmp_path):
    images = np.zeros((64, 32, 32, 3), np.uint8)
    own, named = (
        byol.prepare_loop(net, images, byol.TrainConfig(str(tmp_path / "a"), device="cpu", workers=0)).plan
        for net in (Tiny(), "torchvision:squeezenet1_1")
    )
    assert (own.base_lr, own.image_size, own.whiten) == (named.base_lr, named.image_size, named.whiten)
    assert (own.encoder, own.base_lr, own.image_size) == ("Tiny", 2e-3, (32, 32))


def test_images_that_are_open_already_are_read_as_the_config_says(tmp_path, arrays):
    images = byol.open_images(arrays)
    loop = byol.prepare_loop("convnet", images, small_config(tmp_path / "a", data=DataConfig(channels=1)))
    assert (images.channels, loop.plan.channels) == (3, 1)
    assert next(loop.batches).view1.shape[1] == 1


def images_of_12_bits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gray images and their classes, which differ in the lower 12 of 16 bits alone."""
    labels = np.arange(64) % 4
    noise = np.random.default_rng(seed).integers(0, 400, (64, 20, 20))
    return (noise + 900 * labels[:, None, None]).astype(np.uint16), labels


def test_images_of_12_bits_are_learned_from_and_embedded_as_in_training(tmp_path):
    """Read as 16 bits they would have 16 gray levels; a darker data set is not brightened by itself."""
    pixels, labels = images_of_12_bits(0)
    images = byol.open_images(pixels, labels=labels)
    model = ModelConfig(width=4, projection_size=8, projection_hidden_size=16)
    run = byol.pretrain("convnet", images, small_config(tmp_path / "a", model=model))
    encoder = byol.load_encoder(tmp_path / "a")
    assert encoder.info.levels == run.encoder.info.levels == (0, 4095)
    dark, eight = (
        images_of_12_bits(1)[0] // 4,
        (images_of_12_bits(1)[0] // 4 * (255 / 4095)).round().astype(np.uint8),
    )
    expected = byol.embed(encoder, eight).x
    for given in (dark, byol.open_images(dark), byol.open_images(dark, white=4095)):
        np.testing.assert_allclose(byol.embed(encoder, given).x, expected, atol=1e-4)
    assert not np.allclose(byol.embed(encoder, byol.open_images(dark, white=1023)).x, expected, atol=1e-2)


class Pairs:
    """A dataset as people write their own: an image and its label come together."""

    def __init__(self, arrays):
        with np.load(arrays) as loaded:
            self.images, self.labels = loaded["images"].repeat(40, axis=0), loaded["labels"].repeat(40)
        self.read = 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read += 1
        return self.images[index], int(self.labels[index])


def test_a_dataset_is_not_decoded_as_a_whole_to_learn_whether_it_has_labels(tmp_path, arrays):
    pairs = Pairs(arrays)
    loop = byol.prepare_loop("convnet", pairs, small_config(tmp_path / "a"))
    assert loop.plan.hold_out_images > 0
    assert pairs.read < len(pairs) / 4


def test_a_loop_of_ones_own_does_not_take_a_probe_that_it_would_not_train(tmp_path, arrays):
    with pytest.raises(byol.ConfigError, match=r"probe\.online"):
        byol.prepare_loop("convnet", arrays, small_config(tmp_path / "a", probe=ProbeConfig(online=True)))


def test_a_prepared_loop_of_ones_own_network_has_the_plan_of_its_run(tmp_path, photos):
    config = small_config(tmp_path / "a")
    loop = byol.prepare_loop(seeded(), photos, config)
    assert loop.plan.encoder == "Tiny"
    assert byol.pretrain(seeded(), photos, config).plan == loop.plan


@pytest.mark.parametrize("seed", [0, 1])
def test_hold_out_images_are_of_all_classes_and_of_every_seed_others(tmp_path, seed):
    images = byol.open_images(np.zeros((1_000, 8, 8, 3), dtype=np.uint8), labels=[0] * 500 + [1] * 500)
    chosen = []
    for number in (seed, seed + 1):
        config = small_config(tmp_path, image_size=8, seed=number, knn=KnnConfig(hold_out_share=0.2))
        chosen.append(split(1_000, Setup.of("convnet", images, config).new_plan())[1])
        assert 60 < int((chosen[-1] < 500).sum()) < 140
    assert len(set(chosen[0].tolist()) & set(chosen[1].tolist())) < 100


def test_an_independent_target_has_weights_of_its_own(tmp_path, arrays):
    for name, same in (("copy", True), ("independent", False)):
        model = ModelConfig(width=4, projection_size=8, projection_hidden_size=16, target_init=name)
        setup = Setup.of("convnet", arrays, small_config(tmp_path, model=model))
        learner = setup.learner(setup.new_plan())
        pairs = zip(learner.online.encoder.parameters(), learner.target.encoder.parameters(), strict=True)
        assert {torch.equal(a, b) for a, b in pairs if a.ndim > 1} == {same}


def test_pixels_of_the_hold_out_set_change_nothing_that_is_learned(tmp_path, arrays):
    pixels, labels = (np.load(arrays)[name] for name in ("images", "labels"))
    runs = []
    for name in ("a", "b"):
        images = byol.open_images(pixels, labels=labels)
        runs.append(byol.pretrain(seeded(), images, small_config(tmp_path / name)))
        pixels = pixels.copy()
        pixels[split(64, runs[0].plan)[1]] = 0
    first, second = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("a", "b"))
    assert runs[0].plan.hold_out_images == 6
    assert first == second
