"""Runs that start from other weights: at step 0 the encoder is the source, and it keeps its name."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from official_files import haiku_network, write_official
from safetensors.torch import load_file, save_file
from small_runs import StopsItself, Tiny, seeded, small_config
from torch import nn
from torchvision import models

import byol
from byol.method.views import ViewConfig
from byol.train.config import DataConfig, ModelConfig, OptimConfig

NARROW = ModelConfig(width=4, projection_size=8, projection_hidden_size=16)
HEADS = replace(NARROW, width=None)
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory, arrays) -> Path:
    """A finished run of a convnet with a normalisation of its own."""
    views = ViewConfig(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    folder = tmp_path_factory.mktemp("source") / "run"
    byol.pretrain("convnet", arrays, small_config(folder, epochs=1, model=NARROW, views=views))
    return folder


def drawn(net: nn.Module) -> nn.Module:
    """The network with statistics that are not those it starts with."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return net


def made(kind: str, source: Path, folder: Path) -> tuple[str, str | None, byol.Encoder]:
    """Weights of a kind, the --encoder that goes with them, and the encoder that they are."""
    torch.manual_seed(0)
    if kind == "an official checkpoint":
        file = write_official(folder / "a.pkl", haiku_network(blocks=(1, 1, 1, 1), width=1 / 16, hidden=4))
    elif kind == "a file of torchvision's":
        file, name = folder / "a.pth", "torchvision:resnet18"
        torch.save(drawn(models.resnet18()).state_dict(), file)
        return str(file), name, byol.load_encoder(name, weights=file)
    elif kind == "a file of timm's":
        file, name = folder / "a.safetensors", "timm:resnet10t"
        save_file(drawn(timm.create_model("resnet10t")).state_dict(), file)
        return str(file), name, byol.load_encoder(name, weights=file)
    else:
        file = source / "encoder.safetensors" if kind == "an encoder file" else source
    return str(file), None, byol.load_encoder(file)


KINDS = ["a run", "an encoder file", "an official checkpoint", "a file of torchvision's", "a file of timm's"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_is_the_source_before_the_first_step(tmp_path, arrays, source, kind):
    init, name, encoder = made(kind, source, tmp_path)
    config = small_config(tmp_path / "b", init=init, image_size=32, encoder=name, model=HEADS)
    loop = byol.prepare_loop(None, arrays, config)
    loop.batches.close()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.info.mean, encoder.info.std))
    with torch.no_grad():
        expected = encoder.network((PIXELS / 255 - mean) / std)
        for network in (loop.learner.online, loop.learner.target):
            found = network.eval().encoder(loop.learner.prepare(PIXELS))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert loop.plan.init["checksum"] == encoder.checksum()
    assert loop.plan.encoder == encoder.info.architecture


def test_the_encoder_of_the_run_loads_by_its_name_and_prepares_images_as_the_source_does(tmp_path, arrays):
    file = tmp_path / "a.pth"
    torch.save(drawn(models.resnet18()).state_dict(), file)
    config = small_config(
        tmp_path / "b", init=str(file), encoder="torchvision:resnet18", image_size=32, epochs=0.2, model=HEADS
    )
    run = byol.pretrain(None, arrays, config)
    old, new = (
        byol.load_encoder("torchvision:resnet18", weights=file).info,
        byol.load_encoder(run.folder).info,
    )
    assert new.architecture == "torchvision:resnet18"
    assert replace(new, image_size=old.image_size) == old
    assert new.image_size == (32, 32)


def test_the_central_crop_is_the_source_s_unless_it_is_set(tmp_path, arrays):
    def crop(name: str, encoder: str | None, **settings: object) -> float:
        config = small_config(tmp_path / name, epochs=0.2, **settings)
        byol.pretrain(encoder, arrays, config)
        return byol.load_encoder(tmp_path / name).info.crop_ratio

    assert crop("a", "convnet", model=NARROW, eval_crop=0.75) == 0.75
    later = {"init": str(tmp_path / "a"), "model": HEADS, "image_size": None}
    assert crop("b", None, **later) == 0.75
    assert crop("c", None, **later, eval_crop=1.0) == 1


def test_a_run_from_other_weights_says_so_and_adopts_their_normalisation(tmp_path, arrays, source, capsys):
    run = byol.pretrain(
        None, arrays, small_config(tmp_path / "b", init=str(source), model=HEADS, epochs=1, image_size=None)
    )
    said = capsys.readouterr().err
    assert f"init       {source} (checksum {byol.load_encoder(source).checksum()[:8]})" in said
    assert "mean 0.1, 0.2, 0.3, std 0.4, 0.5, 0.6" in said
    assert "BatchNorm" in said
    assert (run.encoder.info.mean, run.encoder.info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert run.plan.encoder == "convnet"
    assert run.plan.image_size == run.plan.eval_size == (16, 16)  # the images have 20
    assert run.plan.encoder_options == {"width": 4, "whiten": True}


def test_on_resume_the_weights_are_those_of_the_checkpoint(tmp_path, arrays):
    """The source may be gone by then."""
    init = tmp_path / "source"
    byol.pretrain(seeded(), arrays, small_config(init, epochs=1))
    config = small_config(tmp_path / "a", init=str(init), optim=OptimConfig(name="adamw"))
    whole = byol.pretrain(seeded(), arrays, config)
    again = replace(config, out=str(tmp_path / "b"))
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 9), arrays, again)
    shutil.rmtree(init)
    resumed = byol.pretrain(seeded(), arrays, again)
    assert resumed.plan.init == whole.plan.init
    assert resumed.encoder.checksum() == whole.encoder.checksum()


def test_a_source_that_changed_before_the_first_checkpoint_is_refused(tmp_path, arrays, source):
    init = tmp_path / "source"
    shutil.copytree(source, init)
    config = small_config(tmp_path / "b", init=str(init), model=HEADS)
    byol.pretrain(None, arrays, config)
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    (tmp_path / "b" / "encoder.safetensors").unlink()
    byol.pretrain("convnet", arrays, small_config(tmp_path / "c", seed=1, model=NARROW, epochs=1))
    shutil.copy(tmp_path / "c" / "encoder.safetensors", init)
    with pytest.raises(byol.CheckpointError, match=f"{init} has changed"):
        byol.pretrain(None, arrays, config)


def test_a_network_of_your_own_is_filled(tmp_path, arrays):
    first = byol.pretrain(seeded(), arrays, small_config(tmp_path / "a", epochs=1))
    torch.manual_seed(7)
    net = Tiny()
    loop = byol.prepare_loop(net, arrays, small_config(tmp_path / "b", init=str(tmp_path / "a"), epochs=1))
    loop.batches.close()
    assert loop.learner.net is net
    for name, tensor in first.encoder.tensors().items():
        assert torch.equal(net.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"encoder": "resnet18"}, r"encoder is convnet; the encoder here is resnet18.*--encoder"),
     ({"model": ModelConfig(width=8)}, r"model\.width cannot apply"),
     ({"hidden_layer": "layers"}, "hidden_layer cannot apply"),
     ({"model": ModelConfig(target_init="independent")}, r"model\.target_init cannot apply"),
     ({"views": ViewConfig(mean=(0.0, 0.0, 0.0))}, r"views\.mean cannot apply"),
     ({"data": DataConfig(channels=1)}, r"takes 3 channels, the images have 1.*--data\.channels 3"),
     ({"init": "nowhere"}, "nowhere"), ({"init": ""}, "empty")],
)  # fmt: skip
def test_what_does_not_go_with_the_weights_is_a_sentence(tmp_path, photos, source, changes, says):
    config = small_config(tmp_path / "b", **{"init": str(source), **changes})
    with pytest.raises((byol.ConfigError, byol.CheckpointError), match=says):
        byol.pretrain(None, photos, config)
    assert not (tmp_path / "b").exists()


def test_weights_of_another_shape_are_a_sentence(tmp_path, arrays):
    file = tmp_path / "a.pth"
    torch.save(models.resnet34().state_dict(), file)
    config = small_config(tmp_path / "b", init=str(file), encoder="torchvision:resnet18", model=HEADS)
    with pytest.raises(byol.CheckpointError, match="not those of torchvision:resnet18"):
        byol.pretrain(None, arrays, config)


def test_the_usual_target_is_slower_from_other_weights(tmp_path, arrays, source):
    plans = []
    for init in (None, str(source)):
        config = small_config(
            tmp_path / str(len(plans)), init=init, encoder="convnet", optim=OptimConfig(name="sgd")
        )
        plans.append(byol.prepare_loop(None, arrays, replace(config, model=HEADS)).plan)
    fresh, begun = plans
    assert begun.base_lr == fresh.base_lr
    assert begun.base_tau > fresh.base_tau
    given = OptimConfig(name="sgd", base_lr=3.0, base_tau=0.5)
    plan = byol.prepare_loop(None, arrays, replace(config, model=HEADS, optim=given)).plan
    assert (plan.base_lr, plan.base_tau) == (3.0, 0.5)


def test_weights_that_came_before_a_file_named_safetensors_are_told_apart(tmp_path, arrays, source):
    """An encoder file beside --encoder torchvision:... is an encoder, whose network is another."""
    file = source / "encoder.safetensors"
    assert load_file(file)
    config = small_config(tmp_path / "b", init=str(file), encoder="torchvision:resnet18", model=HEADS)
    with pytest.raises(
        byol.ConfigError, match="encoder is convnet; the encoder here is torchvision:resnet18"
    ):
        byol.pretrain(None, arrays, config)
