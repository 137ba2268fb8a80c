import copy
import json
import os
import resource
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from full_disk import largest_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import byol
from byol.encoders.encoder import FILE, FORMAT, digest, save_encoder
from byol.encoders.load import load_encoder
from byol.errors import ByolError, CheckpointError, ConfigError, DataError
from byol.evaluation.classifier import holds_classifier
from byol.features.features import Features
from byol.models.build import build_encoder

IMAGES = torch.randint(0, 256, (3, 3, 20, 27), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def trained(net: nn.Module) -> nn.Module:
    """A network whose every number, buffers included, differs from what a fresh one has."""
    generator = torch.Generator().manual_seed(7)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.1)
        else:
            value.fill_(1234)
    return net


def small_resnet50() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], width_per_group=8)


def token_net() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16)


def described(file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["byol"])


def equal(state: dict, other: dict) -> bool:
    return list(state) == list(other) and all(
        torch.equal(value, other[name]) and value.dtype == other[name].dtype for name, value in state.items()
    )


def test_loaded_encoder_is_bit_for_bit_the_saved_one(encoder_of, tmp_path):
    encoder = encoder_of("convnet", width=4)
    trained(encoder.net)
    file = save_encoder(encoder, tmp_path)
    assert file == tmp_path / FILE
    for path in (tmp_path, file, str(tmp_path), str(file)):
        loaded = load_encoder(path)
        assert loaded.info == encoder.info
        assert equal(loaded.state_dict(), encoder.state_dict())
        assert not loaded.training
        torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-5)


def test_the_network_is_fed_normalised_pixels(encoder_of):
    """Of images of one colour, which resizing leaves as they are."""
    encoder = encoder_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)), "output")
    colours = torch.tensor([[0, 128, 255], [40, 41, 42]], dtype=torch.uint8)[:, :, None, None]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.info.mean, encoder.info.std))
    expected = encoder.net(((colours / 255 - mean) / std).expand(2, 3, 16, 16))
    torch.testing.assert_close(encoder(colours.expand(2, 3, 20, 27)), expected, rtol=1e-4, atol=1e-4)


def test_an_encoder_learns_nothing_from_what_it_embeds_even_in_train_mode(encoder_of):
    encoder = encoder_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "1")
    expected, before = encoder(IMAGES), copy.deepcopy(encoder.state_dict())
    encoder.train()
    assert torch.equal(encoder(IMAGES), expected)
    assert equal(encoder.state_dict(), before)
    assert not encoder(IMAGES).requires_grad


def test_floats_of_another_scale_are_told(encoder_of, caplog):
    """Features of floats from 0 to 255 would be off by hundreds, without a word."""
    encoder = encoder_of()
    encoder(IMAGES / 255 if IMAGES.dtype == torch.uint8 else IMAGES)
    assert caplog.text == ""
    for number in (200.0, 220.0):  # also behind images that were right; once is enough
        encoder(torch.full((2, 3, 16, 16), number))
    assert "from 200 to 200; expected floats from 0 to 1" in caplog.text
    assert len(caplog.records) == 1


def test_saving_again_what_was_loaded_writes_the_same_bytes(encoder_of, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    save_encoder(encoder_of("convnet"), tmp_path / "a")
    save_encoder(load_encoder(tmp_path / "a"), tmp_path / "b")
    for name in (FILE, "encoder.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_one_file_is_enough_wherever_it_is_moved(encoder_of, tmp_path):
    encoder = encoder_of("convnet")
    save_encoder(encoder, tmp_path)
    moved = tmp_path / "else where" / "my encoder.st"
    moved.parent.mkdir()
    shutil.move(tmp_path / FILE, moved)
    (tmp_path / "encoder.json").unlink()
    assert load_encoder(moved).info == encoder.info


def test_description_beside_the_file_is_the_one_inside(encoder_of, tmp_path):
    encoder = encoder_of("convnet", width=6)
    beside = json.loads((save_encoder(encoder, tmp_path).parent / "encoder.json").read_text())
    assert beside == described(tmp_path / FILE)
    assert beside["architecture"] == "convnet"
    assert beside["options"] == {"width": 6}
    assert (beside["image_size"], beside["channels"], beside["features"]) == ([16, 16], 3, 216)
    assert beside["mean"] == [0.485, 0.456, 0.406]


def test_saving_leaves_the_encoder_as_it_was(encoder_of, tmp_path):
    encoder = encoder_of("convnet").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    save_encoder(encoder, tmp_path)
    assert encoder.training
    assert equal(encoder.state_dict(), before)


def test_tensors_have_the_names_of_torchvision(encoder_of, tmp_path):
    encoder = encoder_of("resnet18")
    trained(encoder.net)
    tensors = load_file(save_encoder(encoder, tmp_path))
    theirs = torchvision.models.resnet18()
    missing = theirs.load_state_dict(tensors, strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert missing.unexpected_keys == []
    theirs.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(theirs.eval()(images), encoder.net.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layer", "pooling"),
    [("torchvision:resnet18", "output", "none"), ("torchvision:resnet18", "layer4.1.conv1", "channels first"),
     ("timm:test_vit", "blocks.0", "first token"), ("timm:test_vit2", "blocks.0", "mean of tokens"),
     ("timm:test_resnet", "layer2", "channels first"), ("torchvision:mnasnet0_5", "output", "none")],
)  # fmt: skip
def test_library_networks_come_back_by_their_names_with_hidden_layer_and_pooling(
    encoder_of, tmp_path, name, layer, pooling
):
    encoder = encoder_of(name, layer, size=(32, 32))
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.info == encoder.info
    assert (loaded.network.layer, loaded.network.pooling) == (layer, pooling)
    torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "layer", "pooling"),
    [(small_resnet50, "layer3", "channels first"), (small_resnet50, "avgpool", "channels first"),
     (token_net, "encoder", "first token"), (token_net, "encoder.layers.encoder_layer_0.mlp", "first token"),
     (lambda: timm.create_model("test_vit2", img_size=16, num_classes=0), "norm", "mean of tokens")],
    ids=["map", "average", "vit", "mlp of vit", "timm vit with registers"],
)  # fmt: skip
def test_own_network_built_again_is_read_at_the_same_hidden_layer(
    encoder_of, tmp_path, build, layer, pooling
):
    torch.manual_seed(0)
    encoder = encoder_of(build(), layer)
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path, net=build())
    assert loaded.info == encoder.info
    assert (loaded.network.layer, loaded.network.pooling) == (layer, pooling)
    assert (loaded.network.skip, loaded.network.calls) == (encoder.network.skip, encoder.network.calls)
    torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-4, atol=1e-4)


class Repeats(nn.Module):
    """Runs one layer twice; the second time counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.shared(self.shared(self.first(x)).relu()).mean(dim=(2, 3)))


def test_layer_that_runs_twice_is_read_the_second_time_after_loading_too(encoder_of, tmp_path):
    torch.manual_seed(0)
    encoder = encoder_of(Repeats(), "shared")
    save_encoder(encoder, tmp_path)
    assert described(tmp_path / FILE)["calls"] == 2
    torch.testing.assert_close(
        load_encoder(tmp_path, net=Repeats())(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-5
    )


class Odd(nn.Module):
    """One weight under two names, and buffers of other types and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twin = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)
        self.twin.weight = self.conv.weight
        for name, value in (
            ("short", torch.rand(3).bfloat16()),
            ("flag", torch.tensor(True)),
            ("empty", torch.zeros(0, 2)),
        ):
            self.register_buffer(name, value)

    def forward(self, x):
        return self.twin(x).mean(dim=(2, 3))


def test_tensors_of_every_type_and_shared_ones_come_back(encoder_of, tmp_path):
    torch.manual_seed(0)
    encoder = encoder_of(Odd())
    save_encoder(encoder, tmp_path)
    assert equal(load_encoder(tmp_path, net=Odd()).state_dict(), encoder.state_dict())


class Tied(nn.Module):
    """Tensors that a state dict holds under several names, as people's networks do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv1, self.act = nn.Conv2d(3, 4, 3), nn.PReLU()
        self.conv2 = nn.Conv2d(4, 4, 3)
        if kind == "block in a list":
            self.blocks = nn.ModuleList([self.conv2] * 4)
        elif kind == "activation used twice":
            self.act2 = self.act
        elif kind == "tied weights":
            self.twin = nn.Conv2d(4, 4, 3)
            self.twin.weight = self.conv2.weight
        elif kind == "view of a weight":
            self.register_buffer("part", self.conv2.weight.detach()[1:, :2])
        else:
            self.body = nn.Sequential(*self.children())

    def forward(self, x):
        return self.act(self.conv2(self.act(self.conv1(x)))).mean(dim=(2, 3))


TIES = (
    "block in a list",
    "activation used twice",
    "tied weights",
    "children kept beside",
    "view of a weight",
)


@pytest.mark.parametrize("kind", TIES)
def test_tensors_under_several_names_are_saved_loaded_and_exported(encoder_of, tmp_path, kind):
    torch.manual_seed(0)
    encoder = encoder_of(Tied(kind))
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path, net=Tied(kind))
    assert equal(loaded.net.state_dict(), encoder.net.state_dict())
    assert loaded.checksum() == encoder.checksum()
    torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-5)
    byol.export(encoder, tmp_path / "tied")
    if kind != "view of a weight":  # torch.export warns of one
        byol.export(encoder, tmp_path / "tied.pt2")


def test_a_library_s_network_with_tied_tensors_is_exported_to_it(encoder_of, tmp_path):
    net = torchvision.models.resnet18()
    net.layer1[1].bn1.weight = net.layer1[0].bn1.weight
    net.body = nn.Sequential(*list(net.children())[:-1])
    encoder = encoder_of(net, "avgpool", size=(32, 32))
    for name, format in (("e.pth", None), ("e.safetensors", "torchvision"), ("e", "timm")):
        byol.export(encoder, tmp_path / name, format=format, model="resnet18")


def test_gray_encoder_and_oblong_size_come_back(encoder_of, tmp_path):
    encoder = encoder_of("convnet", channels=1, size=(12, 20))
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    assert (loaded.info.channels, loaded.info.image_size, len(loaded.info.mean)) == (1, (12, 20), 1)
    torch.testing.assert_close(loaded(IMAGES[:, :1]), encoder(IMAGES[:, :1]), rtol=1e-5, atol=1e-5)


def test_file_is_as_readable_as_the_umask_allows(encoder_of, tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            save_encoder(encoder_of("convnet"), tmp_path)
        finally:
            os.umask(before)
        assert {(tmp_path / name).stat().st_mode & 0o777 for name in (FILE, "encoder.json")} == {mode}


def test_any_flipped_bit_of_the_header_is_noticed(encoder_of, tmp_path):
    file = save_encoder(encoder_of("convnet", width=1), tmp_path)
    sound = file.read_bytes()
    length = 8 + int.from_bytes(sound[:8], "little")
    for position in range(0, length, 5):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_encoder(file)


def test_any_flipped_bit_of_the_tensors_is_noticed(encoder_of, tmp_path):
    file = save_encoder(encoder_of("convnet", width=1), tmp_path)
    sound = file.read_bytes()
    length = 8 + int.from_bytes(sound[:8], "little")
    for position in range(length, len(sound), 97):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged: what it holds does not match its checksum"):
            load_encoder(file)


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9999])
def test_cut_off_file_is_refused_by_name(encoder_of, tmp_path, share):
    file = save_encoder(encoder_of("convnet"), tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=f"{FILE} cannot be read as safetensors"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"<html>", b"\x80\x01\x00"]
)
def test_something_else_than_safetensors_is_refused(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_another_program_is_refused(tmp_path, metadata):
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="not an encoder of this project: it has no description"):
        load_encoder(tmp_path / "model.safetensors")


def rewritten(file: Path, **changes: object) -> Path:
    """The file with another description and a checksum that fits it, as a stranger could write it."""
    description = {**described(file), **changes}
    del description["blake2b"]
    tensors = load_file(file)
    description["blake2b"] = digest(tensors, description)
    save_file(tensors, file, metadata={"byol": json.dumps(description)})
    return file


def test_file_of_a_newer_format_asks_for_an_upgrade(encoder_of, tmp_path):
    file = rewritten(save_encoder(encoder_of("convnet"), tmp_path), format=FORMAT + 1, something_new="x")
    with pytest.raises(CheckpointError, match=r"written by a newer version of byol\. Upgrade byol"):
        load_encoder(file)
    description = {**described(file), "format": FORMAT + 2, "checksum": "of another kind"}
    save_file(load_file(file), file, metadata={"byol": json.dumps(description)})
    with pytest.raises(CheckpointError, match=r"written by a newer version of byol\. Upgrade byol"):
        load_encoder(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_ratio": 0},
        {"crop_ratio": 1.5},
        {"crop_ratio": "all"},
        {"interpolation": "nearest"},
        {"interpolation": None},
        {"antialias": 1},
    ],
    ids=str,
)
def test_preprocessing_that_cannot_be_is_refused(encoder_of, tmp_path, wrong):
    file = save_encoder(encoder_of("convnet"), tmp_path)
    with pytest.raises(CheckpointError, match="does not describe an encoder as this version of byol does"):
        load_encoder(rewritten(file, **wrong))


def test_file_from_before_preprocessing_was_told_is_read(encoder_of, tmp_path):
    """They were all resized as the defaults say."""
    file = save_encoder(encoder_of("convnet"), tmp_path)
    told = described(file)
    info = load_encoder(file).info
    description = {
        name: told[name]
        for name in told
        if name not in ("crop_ratio", "interpolation", "antialias", "blake2b")
    }
    tensors = load_file(file)
    save_file(
        tensors, file, metadata={"byol": json.dumps({**description, "blake2b": digest(tensors, description)})}
    )
    assert load_encoder(file).info == info
    assert (info.crop_ratio, info.interpolation, info.antialias) == (0.875, "bicubic", True)


OLDER = [
    (1, {"convolutions": 5, "grids": [2]}, {"width": 4}),
    (2, {"convolutions": 5, "grids": [2]}, {"width": 4}),
    (3, {"grids": [2, 2]}, {"width": 4}),
    (3, {"convolutions": 5, "grids": [2]}, {"width": 4, "convolutions": 5}),
]


@pytest.mark.parametrize(("format", "means", "written"), OLDER)
def test_files_of_older_formats_are_read(encoder_of, tmp_path, format, means, written):
    """In format 1 the architecture was called "encoder", and up to 2 every convnet had five convolutions."""
    file = save_encoder(encoder_of("convnet", width=4, **means), tmp_path)
    encoder, told, images = load_encoder(file), described(file), torch.rand(2, 3, 16, 16)
    if format == 1:
        told["encoder"] = told.pop("architecture")
    description = {**told, "format": format, "options": written}
    del description["blake2b"]
    tensors = load_file(file)
    description["blake2b"] = digest(tensors, description)
    save_file(tensors, file, metadata={"byol": json.dumps(description)})
    assert load_encoder(file).info == encoder.info
    assert torch.equal(load_encoder(file)(images), encoder(images))


CLAIMS = [
    {"image_size": [1_000_000, 1_000_000]},
    {"image_size": [1, 2**40]},
    {"image_size": [0, 16]},
    {"image_size": [16]},
    {"image_size": 16},
    {"image_size": [16.0, 16]},
    {"channels": 2**70},
    {"features": 0},
    {"features": "many"},
    {"mean": [0.5, 0.5]},
    {"mean": [float("nan")] * 3},
    {"mean": [10**400] * 3},
    {"std": [float("inf")] * 3},
    {"std": [0.5, 0.5, 0]},
    {"crop_ratio": float("nan")},
    {"skip": -1},
    {"calls": 0.5},
    {"options": [1]},
    {"pooling": "\x1b[2J"},
]


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_a_description_that_cannot_be_is_one_sentence(encoder_of, tmp_path, claim):
    file = rewritten(save_encoder(encoder_of("convnet"), tmp_path), **claim)
    with pytest.raises(CheckpointError, match=f"{FILE} does not describe an encoder") as told:
        load_encoder(file)
    assert str(told.value).isprintable()


@pytest.mark.parametrize("where", ["description", "options", "header"])
def test_json_that_is_nested_without_end_is_one_sentence(encoder_of, tmp_path, where):
    file = save_encoder(encoder_of("convnet"), tmp_path)
    deep = "[" * 200_000 + "]" * 200_000
    if where == "header":
        header = ('{"a":' + deep + "}").encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header)
    else:
        text = (
            deep
            if where == "description"
            else json.dumps(described(file)).replace('"width": 4', f'"width": {deep}')
        )
        save_file(load_file(file), file, metadata={"byol": text})
    with pytest.raises(CheckpointError, match=f"{FILE} (is damaged|cannot be read)") as told:
        load_encoder(file)
    assert len(str(told.value)) < 1000


def test_a_header_of_a_million_tensors_is_one_sentence(tmp_path):
    """safetensors itself takes 1.2 GB and minutes for such a header of 80 MB."""
    each = ",".join(
        f'"{number:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(70_000)
    )
    header = ("{" + each + "}").encode()
    file = tmp_path / FILE
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert len(load_file(file)) == 70_000  # it is a sound file
    with pytest.raises(CheckpointError, match="names more than 65,536 tensors"):
        load_encoder(file)
    with pytest.raises(DataError, match="names more than 65,536 tensors"):
        Features.load(file)
    with pytest.raises(CheckpointError, match="names more than 65,536 tensors"):
        load_encoder("torchvision:resnet18", weights=file)
    assert not holds_classifier(file)


LARGE = {
    "deep": ("timm:test_vit", {"depth": 99_999}),
    "long list": ("timm:test_resnet", {"layers": [9999] * 4}),
    "wide": ("timm:test_vit", {"embed_dim": 64_000}),
    "wide, of torchvision": ("torchvision:resnet18", {"width_per_group": 64, "num_classes": 99_999}),
    "deep, of torchvision": ("torchvision:vit_b_16", {"num_layers": 99_999}),
    "another network": ("timm:vit_giant_patch14_224", {}),
    "a network that needs its memory": ("torchvision:regnet_y_128gf", {}),
    "our own, deep": ("resnet", {"blocks": [99_999] * 4}),
    "our own, wide": ("convnet", {"width": 99_999}),
    "number without end": ("timm:test_vit", {"depth": 10**9}),
    "as text": ("timm:test_vit", {"depth": "1" * 10_000}),
    "numbers without end": ("timm:test_vit", {"depth": [1] * 100_000}),
}


# Their parameters are few, and the buffers that follow from them and the options are in no file.
BUFFERS = {
    "gigabytes of masks": {"img_size": 2048, "window_size": 64, "depths": [2]},
    "gigabytes on the way to them": {"img_size": 512, "window_size": 128, "depths": [1]},
    "many of some size": {"img_size": 176, "window_size": 44, "depths": [60]},
}


def fitting(folder: Path, encoder, name: str, options: dict[str, object]) -> Path:
    """An encoder file that holds all that the network of this description keeps in files."""
    with torch.device("meta"):
        state = build_encoder(name, image_size=224, **options).state_dict()
    file = save_encoder(encoder, folder)
    description = described(file)
    save_file({key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}, file)
    save_file(load_file(file), file, metadata={"byol": json.dumps(description)})
    return rewritten(file, architecture=name, options=options)


@pytest.mark.parametrize("kind", [*LARGE, *BUFFERS])
def test_a_file_cannot_have_a_network_built_that_is_larger_than_its_tensors(encoder_of, tmp_path, kind):
    """In a process that may take a gigabyte more than it has."""
    if kind in LARGE:
        name, options = LARGE[kind]
        file = rewritten(save_encoder(encoder_of("convnet"), tmp_path), architecture=name, options=options)
    else:
        name, options = (
            "timm:swin_tiny_patch4_window7_224",
            {**BUFFERS[kind], "embed_dim": 8, "num_heads": [1]},
        )
        file = fitting(tmp_path, encoder_of("convnet"), name, options)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, limits[1]))
    try:
        with pytest.raises(ByolError) as told:
            load_encoder(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert len(str(told.value)) < 1000
    assert "memory" not in str(told.value)


class Parts(nn.Module):
    """A network with a part that may be wrapped, and one that has the name of torch's wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.module = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.module(self.body(x)).mean(dim=(2, 3))


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


@pytest.mark.parametrize(
    ("wrap", "part"),
    [(compiled, "body"), *((nn.DataParallel, part) for part in (None, "body", "module"))],
)
def test_a_compiled_or_parallel_network_is_saved_by_its_plain_names(encoder_of, tmp_path, wrap, part):
    def wrapped(net: nn.Module) -> nn.Module:
        if part is None:
            return wrap(net)
        setattr(net, part, wrap(getattr(net, part)))
        return net

    torch.manual_seed(0)
    plain = Parts()
    expected = encoder_of(copy.deepcopy(plain))(IMAGES)
    names = set(plain.state_dict())
    file = save_encoder(encoder_of(wrapped(plain)), tmp_path)
    assert set(load_file(file)) == names
    for other in (Parts(), wrapped(Parts()), compiled(Parts())):
        torch.testing.assert_close(load_encoder(file, net=other)(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_a_hidden_layer_in_a_parallel_network_has_its_plain_name(encoder_of, tmp_path):
    torch.manual_seed(0)
    encoder = encoder_of(nn.DataParallel(Parts()), "module.body.0")
    save_encoder(encoder, tmp_path)
    assert described(tmp_path / FILE)["hidden_layer"] == "body.0"
    for net in (Parts(), nn.DataParallel(Parts())):
        loaded = load_encoder(tmp_path, net=net)
        torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_file_that_was_saved_with_the_names_of_a_wrapper_is_read(encoder_of, tmp_path):
    torch.manual_seed(0)
    encoder = encoder_of(Parts())
    file = save_encoder(encoder, tmp_path)
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        tensors = {prefix + name: tensor for name, tensor in encoder.net.state_dict().items()}
        description = described(file)
        del description["blake2b"]
        description["blake2b"] = digest(tensors, description)
        save_file(tensors, file, metadata={"byol": json.dumps(description)})
        torch.testing.assert_close(
            load_encoder(file, net=Parts())(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-5
        )


def test_missing_file_says_what_was_expected(tmp_path):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing" / FILE):
        with pytest.raises(
            CheckpointError,
            match=rf"no encoder at {path}; expected a run's folder, an {FILE} file or an official",
        ):
            load_encoder(path)


def test_unfinished_run_is_told_from_a_missing_one(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"not finished\. Run the same `byol train` command again"):
        load_encoder(tmp_path)


def test_tensors_that_do_not_fit_the_network_are_named(encoder_of, tmp_path):
    file = save_encoder(encoder_of("convnet"), tmp_path)
    with pytest.raises(CheckpointError, match=r"do not fit the network ConvNet: size mismatch for layers"):
        load_encoder(rewritten(file, options={"width": 5}))
    with pytest.raises(CheckpointError, match="do not fit the network ResNet: Missing key"):
        load_encoder(file, net=small_resnet50())


def test_network_without_the_hidden_layer_is_refused_when_it_is_loaded(encoder_of, tmp_path):
    def build(name: str) -> nn.Module:
        return nn.Sequential(OrderedDict([("conv", nn.Conv2d(3, 4, 3)), (name, nn.ReLU())]))

    save_encoder(encoder_of(build("relu"), "relu"), tmp_path)
    with pytest.raises(ConfigError, match="has no layer 'relu'"):
        load_encoder(tmp_path, net=build("activation"))


def test_an_encoder_is_written_with_its_description_or_not_at_all(encoder_of, tmp_path):
    (tmp_path / "encoder.json").mkdir()
    with pytest.raises(ByolError, match=r"encoder\.json cannot be written"):
        save_encoder(encoder_of("convnet"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.json"]


def test_disk_that_fills_up_leaves_the_old_file_and_no_temporary(encoder_of, tmp_path):
    encoder = encoder_of("convnet", width=8)
    old = save_encoder(encoder, tmp_path).read_bytes()
    for value in encoder.state_dict().values():
        value.zero_()
    for room in (0, 1000, 20_000):
        with largest_file(room), pytest.raises(ByolError) as failure:
            save_encoder(encoder, tmp_path)
        assert f"{tmp_path / FILE} cannot be written: " in str(failure.value)
    assert (tmp_path / FILE).read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.json", FILE]


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": ["a", "b", "c"]},
        {"std": [0.5, 0.0, 0.5]},
        {"options": {"channels": 1}},
        {"options": {"width": "8"}},
        {"options": {"width": -1}},
        {"encoder": "timm:resnet18", "options": {"norm_layer": "nope"}},
        {"encoder": "timm:resnet18", "options": {"checkpoint_path": "weights.pt"}},
        {"encoder": "torchvision:resnet18", "options": {"weights": "DEFAULT"}},
        {"encoder": "resnet18", "options": {"stem": ["small"]}},
    ],
    ids=str,
)
def test_a_description_that_nothing_can_be_built_of_is_one_sentence(encoder_of, tmp_path, changes):
    file = rewritten(save_encoder(encoder_of("convnet"), tmp_path), **changes)
    with pytest.raises(ByolError) as told:
        load_encoder(file)
    assert "\n" not in str(told.value)


def test_paths_that_cannot_be_looked_at_are_not_there(tmp_path):
    for path in ("x" * 300, tmp_path / ("y" * 300) / FILE):
        with pytest.raises(CheckpointError, match="There is no encoder at"):
            load_encoder(path)
