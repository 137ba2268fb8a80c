"""What a caller gives is used or refused, by `pretrain` and by `prepare_loop` alike."""

import numpy as np
import pytest
from small_runs import Tiny, seeded, small_config

import byol
from byol.train.config import DataConfig, ModelConfig, ProbeConfig


@pytest.mark.parametrize("run", [byol.pretrain, byol.prepare_loop])
@pytest.mark.parametrize(
    ("encoder", "changes", "words"),
    [
        (Tiny(), {"encoder": "resnet18"}, ["module", "encoder"]),
        (Tiny(), {"model": ModelConfig(width=2)}, ["module", "model.width"]),
        (Tiny(), {"model": ModelConfig(target_init="independent")}, ["module", "model.target_init"]),
        ("convnet", {"encoder": "resnet18"}, ["'convnet'", "'resnet18'"]),
        ("convnet", {"data": DataConfig(max_pixels=100)}, ["data.max_pixels is 100", "open_images"]),
        ("convnet", {"data": DataConfig(channels=1)}, ["3 channels", "1 are needed"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_setting_that_could_not_take_effect_is_refused(tmp_path, arrays, run, encoder, changes, words):
    images = byol.open_images(arrays)
    with pytest.raises((byol.ConfigError, byol.DataError)) as failure:
        run(encoder, images, small_config(tmp_path / "a", **changes))
    assert [word for word in words if word not in str(failure.value)] == []
    assert not (tmp_path / "a").exists()


def test_a_loop_of_ones_own_does_not_take_a_probe_that_it_would_not_train(tmp_path, arrays):
    with pytest.raises(byol.ConfigError, match=r"probe\.online"):
        byol.prepare_loop("convnet", arrays, small_config(tmp_path / "a", probe=ProbeConfig(online=True)))


def test_a_prepared_loop_of_ones_own_network_has_the_plan_of_its_run(tmp_path, photos):
    config = small_config(tmp_path / "a")
    loop = byol.prepare_loop(seeded(), photos, config)
    assert loop.plan.encoder == "Tiny"
    assert byol.pretrain(seeded(), photos, config).plan == loop.plan


def test_pixels_of_the_hold_out_set_change_nothing_that_is_learned(tmp_path, arrays):
    from byol.train.setup import split

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
