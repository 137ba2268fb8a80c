"""Layouts against the libraries they are for: every file is loaded by torchvision, timm or safetensors."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from full_disk import largest_file
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import byol
from byol.errors import ByolError, CheckpointError, ConfigError
from byol.method.pixels import normalise_

IMAGES = torch.rand((3, 3, 64, 64), generator=torch.Generator().manual_seed(0))


def trained(encoder):
    """The encoder with every number other than a fresh network's, BatchNorm's statistics included."""
    generator = torch.Generator().manual_seed(7)
    for name, value in encoder.net.state_dict().items():
        if value.is_floating_point():
            value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator))
            if name.endswith("running_mean"):
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return encoder


@pytest.fixture
def resnet(encoder_of):
    return trained(encoder_of("torchvision:resnet18", size=(64, 64)))


def normalised(encoder, images=IMAGES):
    return normalise_(images.clone(), encoder.info.mean, encoder.info.std)


def features(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net.eval()(x)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path)


@pytest.mark.parametrize(
    ("source", "name"),
    [("resnet18", "r.pth"), ("torchvision:resnet18", "r.safetensors"), ("timm:resnet18", "r.pth")],
)
def test_torchvision_loads_all_but_the_classifier_and_gives_the_same_features(
    encoder_of, tmp_path, name, source
):
    encoder = trained(encoder_of(source, size=(64, 64)))
    done = byol.export(encoder, tmp_path / name, format="torchvision")
    assert done.check.tool == "torchvision"
    net = torchvision.models.resnet18()
    missed = net.load_state_dict(tensors_of(tmp_path / name), strict=False)
    assert (missed.missing_keys, missed.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    net.fc = nn.Identity()
    torch.testing.assert_close(features(net, normalised(encoder)), encoder(IMAGES), rtol=0, atol=1e-5)


def test_preprocessing_travels_with_torchvision_s_tensors(resnet, tmp_path):
    byol.export(resnet, tmp_path / "r.pth")
    byol.export(resnet, tmp_path / "r.safetensors", format="torchvision")
    beside = json.loads((tmp_path / "r.pth.json").read_text())
    with safe_open(tmp_path / "r.safetensors", "pt") as opened:
        inside = json.loads(opened.metadata()["preprocessing"])
    assert beside == {"model": "torchvision:resnet18", **inside}
    assert inside == {
        "image_size": [64, 64],
        "channels": 3,
        "crop_ratio": 0.875,
        "interpolation": "bicubic",
        "antialias": True,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


@pytest.mark.parametrize(
    ("source", "size", "channels", "options"),
    [
        ("resnet18", (64, 64), 3, {}),
        ("resnet18", (64, 64), 1, {}),
        ("resnet18", (64, 64), 5, {}),
        ("torchvision:resnet18", (64, 64), 3, {}),
        ("timm:test_vit", (48, 48), 3, {}),
        ("timm:vit_tiny_patch16_224", (64, 64), 4, {"depth": 2, "global_pool": "avg"}),
        ("timm:test_resnet", (64, 64), 3, {}),
    ],
)
def test_timm_loads_the_folder_with_its_preprocessing(encoder_of, tmp_path, source, size, channels, options):
    encoder = trained(encoder_of(source, size=size, channels=channels, **options))
    byol.export(encoder, tmp_path / "e", format="timm")
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["config.json", "model.safetensors"]
    net = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, num_classes=0)
    images = torch.rand(2, channels, *size)
    torch.testing.assert_close(features(net, normalised(encoder, images)), encoder(images), rtol=0, atol=1e-5)
    data = timm.data.resolve_data_config(model=net)
    info = encoder.info
    assert (tuple(data["input_size"]), data["interpolation"]) == ((channels, *size), "bicubic")
    # 64 / 0.875 is 73.14, and timm's 73 would put its crop half a pixel beside; 48 / 0.875 is 54.86.
    assert (int(size[0] / data["crop_pct"]), data["crop_pct"]) == (
        (74, 0.8648) if size[0] == 64 else (54, 0.875)
    )
    assert (tuple(data["mean"]), tuple(data["std"])) == (info.mean, info.std)


def test_other_preprocessing_travels_to_timm_too(resnet, tmp_path):
    resnet.info = replace(
        resnet.info, interpolation="bilinear", crop_ratio=0.8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    )
    byol.export(resnet, tmp_path / "e", format="timm")
    net = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, num_classes=0)
    data = timm.data.resolve_data_config(model=net)
    assert (data["crop_pct"], data["interpolation"]) == (0.8, "bilinear")
    assert (tuple(data["mean"]), tuple(data["std"])) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_export_draws_nothing_from_torch_s_random_state(resnet, tmp_path):
    before = torch.get_rng_state()
    byol.export(resnet, tmp_path / "e")
    assert torch.equal(torch.get_rng_state(), before)


def test_timm_keeps_the_trunk_when_a_new_classifier_is_put_on(resnet, tmp_path):
    byol.export(resnet, tmp_path / "e", format="timm")
    net = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, num_classes=10)
    x = normalised(resnet)
    assert features(net, x).shape == (3, 10)
    trunk = net.forward_head(net.forward_features(x), pre_logits=True)
    torch.testing.assert_close(trunk, resnet(IMAGES), rtol=0, atol=1e-5)


def test_timm_loads_the_file_by_an_overlay_of_its_own_config(resnet, tmp_path):
    byol.export(resnet, tmp_path / "e", format="timm")
    overlay = {"file": str(tmp_path / "e" / "model.safetensors")}
    net = timm.create_model("resnet18", pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(features(net, normalised(resnet)), resnet(IMAGES), rtol=0, atol=1e-5)


def test_timm_s_transform_prepares_a_photograph_as_the_encoder_does(encoder_of, tmp_path):
    resnet = encoder_of("torchvision:resnet18", size=(112, 112))
    byol.export(resnet, tmp_path / "e", format="timm")
    net = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=net))
    from skimage.data import astronaut

    photograph = np.ascontiguousarray(astronaut()[:, :384])
    theirs = transform(Image.fromarray(photograph))
    ours = normalised(resnet, resnet.prepare(torch.from_numpy(photograph).permute(2, 0, 1)[None]))[0]
    assert theirs.shape == ours.shape
    assert (
        theirs - ours
    ).abs().mean() < 0.05  # of standard deviations: 8-bit rounding, and timm resizes before it crops
    assert (theirs - theirs.roll(1, -1)).abs().mean() > 0.2  # a pixel beside is another matter


def test_huggingface_folder_is_timm_s_where_timm_has_the_network(resnet, tmp_path):
    done = byol.export(resnet, tmp_path / "e")
    assert (done.format, done.check.tool) == ("huggingface", "timm")
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    net = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, num_classes=0)
    torch.testing.assert_close(features(net, normalised(resnet)), resnet(IMAGES), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("convnet", {"width": 4}),
        pytest.param("resnet18", {"stem": "small"}, marks=pytest.mark.slow),
        pytest.param("resnet18", {"padding": "same"}, marks=pytest.mark.slow),
    ],
)
def test_huggingface_folder_is_our_own_where_timm_has_no_such_network(encoder_of, tmp_path, source, options):
    encoder = trained(encoder_of(source, size=(32, 32), **options))
    done = byol.export(encoder, tmp_path / "e")
    assert done.check.tool == "byol"
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [
        "README.md",
        "encoder.json",
        "encoder.safetensors",
    ]
    torch.testing.assert_close(
        byol.load_encoder(tmp_path / "e")(IMAGES), encoder(IMAGES), rtol=1e-4, atol=1e-5
    )


def test_our_own_file_under_any_name_is_the_whole_encoder(encoder_of, tmp_path):
    encoder = trained(encoder_of("convnet", width=4))
    done = byol.export(encoder, tmp_path / "any.safetensors")
    assert (done.format, [path.name for path in tmp_path.iterdir()]) == ("safetensors", ["any.safetensors"])
    loaded = byol.load_encoder(done.path)
    assert loaded.info == encoder.info
    torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-4, atol=1e-5)


def own_resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18()


@pytest.mark.parametrize("format", ["torchvision", "timm"])
def test_an_export_may_lie_in_a_folder_whose_name_is_not_utf_8(resnet, tmp_path, format):
    home = tmp_path / os.fsdecode(b"caf\xe9")
    home.mkdir()
    for name in ("r.safetensors", "r.pth") if format == "torchvision" else ("r",):
        assert byol.export(resnet, home / name, format=format).check.agrees


def test_a_network_of_your_own_goes_to_the_library_whose_model_it_is(encoder_of, tmp_path):
    encoder = trained(encoder_of(own_resnet(), "avgpool", size=(64, 64)))
    byol.export(encoder, tmp_path / "r.pth", model="resnet18")
    net = torchvision.models.resnet18()
    missed = net.load_state_dict(torch.load(tmp_path / "r.pth", weights_only=True), strict=False)
    assert (missed.missing_keys, missed.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    net.fc = nn.Identity()
    torch.testing.assert_close(features(net, normalised(encoder)), encoder(IMAGES), rtol=0, atol=1e-5)
    byol.export(encoder, tmp_path / "e", model="resnet18")
    net = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, num_classes=0)
    torch.testing.assert_close(features(net, normalised(encoder)), encoder(IMAGES), rtol=0, atol=1e-5)


def test_a_network_of_your_own_goes_into_our_own_file(encoder_of, tmp_path):
    encoder = trained(encoder_of(own_resnet(), "layer2", size=(32, 32)))
    byol.export(encoder, tmp_path / "e")
    loaded = byol.load_encoder(tmp_path / "e", net=torchvision.models.resnet18())
    torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-4, atol=1e-5)
    assert "net=the_same_network" in (tmp_path / "e" / "README.md").read_text()


UNFIT = [
    ("convnet", {"width": 4}, "torchvision", "torchvision has no convnet"),
    pytest.param("resnet18x2", {}, "torchvision", "torchvision has no resnet18x2", marks=pytest.mark.slow),
    (
        "resnet18",
        {"stem": "small"},
        "torchvision",
        r"conv1.weight of shape \(64, 3, 7, 7\), this encoder has \(64, 3, 3, 3\)",
    ),
    (
        "resnet18",
        {"padding": "same"},
        "timm",
        "differ by up to .* it computes otherwise than resnet18, padding same",
    ),
    ("timm:test_vit", {}, "torchvision", "torchvision has no test_vit"),
    (
        "torchvision:efficientnet_b0",
        {},
        "timm",
        r"timm's efficientnet_b0 has conv_stem.weight of shape .* has none",
    ),
]


@pytest.mark.parametrize(("source", "options", "format", "says"), UNFIT)
def test_an_encoder_that_a_library_has_no_model_for_gets_a_sentence(
    encoder_of, tmp_path, source, options, format, says
):
    encoder = encoder_of(source, size=(32, 32), **options)
    with pytest.raises(
        ConfigError, match=f"{says}.*Export it as safetensors, huggingface, onnx or torch.export"
    ):
        byol.export(encoder, tmp_path / ("e" if format == "timm" else "e.pth"), format=format)
    assert not list(tmp_path.iterdir())


def test_a_hidden_layer_is_not_what_a_library_s_model_gives(encoder_of, tmp_path):
    encoder = encoder_of("torchvision:resnet18", "layer3", size=(32, 32))
    with pytest.raises(
        ConfigError,
        match="torchvision's resnet18 with this encoder's weights gives features of another shape",
    ):
        byol.export(encoder, tmp_path / "e.pth")
    assert not list(tmp_path.iterdir())


def test_torchvision_takes_three_channels_only(encoder_of, tmp_path):
    with pytest.raises(ConfigError, match="torchvision's models take 3 channels, this encoder takes 1"):
        byol.export(encoder_of("torchvision:resnet18", channels=1, size=(32, 32)), tmp_path / "e.pth")


MISUSE = [
    ("e.pt", {}, r"ends in .pt; expected .safetensors, .pth \(torchvision\), .pt2"),
    ("e.onnx", {"format": "onxx"}, "There is no format 'onxx'. Did you mean 'onnx'"),
    ("e.pth", {"format": "onnx"}, r"is not a name for onnx; expected one that ends in .onnx"),
    ("e", {"format": "safetensors"}, r"expected one that ends in .safetensors"),
    ("e.onnx", {"format": "timm"}, "but timm is a folder"),
    ("no/e.onnx", {}, "there is no folder .*no. Make it first"),
    ("full", {}, "not an empty folder"),
    ("full", {"format": "onnx"}, "is not a name for onnx"),
    ("folder.onnx", {"format": "onnx"}, "is a folder. Give the name of a file"),
    ("n" * 300 + ".onnx", {}, "cannot be written: File name too long"),
    ("e.safetensors", {"from_pixels": False}, "from_pixels=False is for onnx and torch.export"),
    ("e.onnx", {"model": "resnet18"}, "model='resnet18' is for torchvision, timm and huggingface"),
    ("e.pth", {"model": "resnet19"}, "no image classification model 'resnet19'. Did you mean"),
    (
        "e",
        {"model": "resnet34"},
        r"timm's resnet34 has layer1.2.conv1.weight of shape \(64, 64, 3, 3\), this encoder has none",
    ),
]


@pytest.mark.parametrize(("name", "options", "says"), MISUSE, ids=[str(row[:2])[:60] for row in MISUSE])
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(resnet, tmp_path, name, options, says):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ByolError, match=says) as told:
        byol.export(resnet, tmp_path / name, **options)
    assert told.value.exit_code == 2
    assert "\n" not in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_network_of_your_own_needs_the_name_of_its_model(encoder_of, tmp_path):
    with pytest.raises(
        ConfigError, match=r"a network of your own\. If it is one of torchvision, say which with model"
    ):
        byol.export(encoder_of(own_resnet(), "avgpool", size=(32, 32)), tmp_path / "e.pth")


def test_something_that_is_not_an_encoder_gets_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="load_encoder"):
        byol.export(own_resnet(), tmp_path / "e.onnx")


def test_the_encoder_file_of_a_run_is_not_overwritten_by_another_layout(resnet, tmp_path):
    path = byol.export(resnet, tmp_path / "encoder.safetensors").path
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="would be lost"):
        byol.export(resnet, path, format="torchvision")
    assert path.read_bytes() == before


def test_an_earlier_export_is_replaced_as_a_whole(encoder_of, tmp_path):
    for seed in (0, 1):
        encoder = encoder_of("convnet", width=4)
        if seed:
            trained(encoder)
        byol.export(encoder, tmp_path / "e.safetensors")
    torch.testing.assert_close(
        byol.load_encoder(tmp_path / "e.safetensors")(IMAGES), encoder(IMAGES), rtol=1e-4, atol=1e-5
    )


def test_an_encoder_of_nan_is_not_exported(resnet, tmp_path):
    with torch.no_grad():
        resnet.net.conv1.weight.fill_(float("nan"))
    for name in ("e.pth", "e.safetensors", "e"):
        with pytest.raises(CheckpointError, match="features are not finite"):
            byol.export(resnet, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(resnet, tmp_path, monkeypatch):
    for name, path in (("timm", "e"), ("torchvision", "e.pth")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=rf"{name} is not installed: pip install 'byol\[models\]'"):
            byol.export(resnet, tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_files_can_be_read_by_others(resnet, tmp_path):
    byol.export(resnet, tmp_path / "e")
    byol.export(resnet, tmp_path / "e.pth")
    plain = tmp_path / "plain"
    plain.touch()
    for path in (*(tmp_path / "e").iterdir(), tmp_path / "e.pth", tmp_path / "e.pth.json"):
        assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    "name",
    [
        "e.pth",
        pytest.param("e.pt2", marks=pytest.mark.slow),  # three exports take 7 s, those to onnx 18 s
        "e.safetensors",
        pytest.param("e.onnx", marks=pytest.mark.slow),
        "e",
    ],
)
def test_the_same_encoder_is_the_same_file_under_any_name_and_a_full_disk_is_one_sentence(
    encoder_of, tmp_path, name
):
    encoder = encoder_of("torchvision:resnet18" if name == "e.pth" else "convnet", size=(32, 32))
    files = [byol.export(encoder, tmp_path / f"{way}{name}").path for way in ("first", "second, longer ")]
    if name != "e":
        assert files[0].read_bytes() == files[1].read_bytes()
    before = sorted(tmp_path.rglob("*"))
    with largest_file(4096), pytest.raises(ByolError, match="cannot be written"):
        byol.export(encoder, tmp_path / f"third {name}")
    assert sorted(tmp_path.rglob("*")) == before
