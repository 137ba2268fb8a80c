"""ONNX and torch.export against the encoder itself, run by onnxruntime and torch.export.load."""

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import byol
from byol.encoders.encoder import Encoder
from byol.errors import ByolError, ConfigError
from byol.exports import graphs
from byol.exports.graphs import GridAverage

BATCHES = (1, 3, 8)  # none of them the two that the graph was traced with


def pixels(batch: int, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Float images in [0, 1]."""
    return torch.rand((batch, channels, *size), generator=torch.Generator().manual_seed(batch))


def eager(encoder: Encoder, images: Tensor) -> Tensor:
    """The features of images of any size, taken whole."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (encoder.info.mean, encoder.info.std))
    with torch.no_grad():
        return encoder.network((images - mean) / std)


def by_onnxruntime(file: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(file)
    return lambda images: torch.from_numpy(session.run(["representation"], {"images": images.numpy()})[0])


def by_torch(file: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(file).module()


def assert_same_features(
    run: Callable[[Tensor], Tensor], encoder: Encoder, sizes: list[tuple[int, int]]
) -> None:
    for size in sizes:
        for batch in BATCHES:
            images = pixels(batch, size, encoder.info.channels)
            expected = eager(encoder, images)
            allowed = 1e-4 * min(1.0, float(expected.abs().max()))
            torch.testing.assert_close(run(images), expected, rtol=0, atol=allowed)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The small encoder and its two graphs, written once."""
    from byol.encoders.encoder import EncoderInfo
    from byol.method.probe import probe

    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    found = probe(byol.build_encoder("convnet", width=4), None, torch.rand(2, 3, 32, 32))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    info = EncoderInfo.of(
        found.encoder,
        "convnet",
        {"width": 4},
        image_size=(32, 32),
        channels=3,
        mean=mean,
        std=std,
        features=found.features,
    )
    encoder = Encoder(found.encoder.train(), info)
    before = copy.deepcopy(encoder)
    done = [byol.export(encoder, folder / name) for name in ("encoder.onnx", "encoder.pt2")]
    return encoder, *done, before


def test_export_leaves_the_encoder_as_it_was(exported):
    encoder, before = exported[0], exported[3]
    assert [(type(part), part.training) for part in encoder.modules()] == [
        (type(part), True) for part in before.modules()
    ]
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_onnx_gives_the_encoder_s_features_for_any_batch_and_size(exported):
    encoder, done = exported[0].eval(), exported[1]
    assert (done.format, done.check.tool) == ("onnx", "onnxruntime")
    assert done.check.difference < 1e-5
    run = by_onnxruntime(done.path)
    assert_same_features(run, encoder, [(32, 32), (40, 56), (33, 51)])
    images = pixels(4, (32, 32))
    torch.testing.assert_close(run(images), encoder(images), rtol=0, atol=1e-4)


def test_torch_export_gives_the_encoder_s_features_for_any_batch_and_size(exported):
    encoder, done = exported[0].eval(), exported[2]
    assert (done.format, done.check.tool) == ("torch.export", "torch.export")
    assert_same_features(by_torch(done.path), encoder, [(32, 32), (40, 56), (33, 51)])


def test_a_graph_file_tells_what_it_takes_and_gives_and_how_images_are_prepared(exported):
    encoder, in_onnx, in_torch, _ = exported
    model = onnx.load(in_onnx.path)
    onnx.checker.check_model(model, full_check=True)
    shapes = [
        (value.name, [part.dim_param or part.dim_value for part in value.type.tensor_type.shape.dim])
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [
        ("images", ["batch", 3, "height", "width"]),
        ("representation", ["batch", encoder.info.features]),
    ]
    told = json.loads({entry.key: entry.value for entry in model.metadata_props}["preprocessing"])
    assert told == {
        "image_size": [32, 32],
        "channels": 3,
        "crop_ratio": 0.875,
        "interpolation": "bicubic",
        "antialias": True,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "normalised_by_graph": True,
        "any_image_size": True,
    }
    files = {"preprocessing.json": ""}
    torch.export.load(in_torch.path, extra_files=files)
    assert json.loads(files["preprocessing.json"]) == told


def test_a_graph_file_tells_nothing_of_the_machine_it_was_made_on(exported):
    for done in exported[1:3]:
        held = done.path.read_bytes()
        for word in (
            os.getcwd(),
            str(Path(byol.__file__).parent),
            str(Path(torch.__file__).parent),
            "graphs.py",
        ):
            assert word.encode() not in held


def test_normalisation_stays_outside_the_graph_when_requested(exported, tmp_path):
    encoder = exported[0].eval()
    done = byol.export(encoder, tmp_path / "e.pt2", from_pixels=False)
    images = pixels(3, (32, 32))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (encoder.info.mean, encoder.info.std))
    torch.testing.assert_close(by_torch(done.path)((images - mean) / std), encoder(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (7, 7)])
def test_grid_average_is_torch_s_adaptive_average(grid):
    for size in [(2, 2), (3, 8), (7, 7), (10, 13), (14, 9)]:
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(GridAverage(*grid)(x), F.adaptive_avg_pool2d(x, grid))


class Blocks(nn.Module):
    """A block whose output the next layer overwrites, and layers behind that no representation needs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6))
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 50, 3)
        self.fc = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.relu(self.first(x))).mean((2, 3)))


def test_a_hidden_layer_is_read_before_later_layers_write_into_it_and_they_are_not_run(encoder_of, tmp_path):
    encoder = encoder_of(Blocks(), "first")
    done = byol.export(encoder, tmp_path / "e.pt2")
    assert_same_features(by_torch(done.path), encoder, [(16, 16), (19, 23)])
    assert (eager(encoder, pixels(4, (16, 16))) < 0).any()  # so the ReLU behind would show
    ran = [str(node.target) for node in torch.export.load(done.path).graph.nodes]
    assert sum("conv" in name for name in ran) == 1
    assert not any("linear" in name or "addmm" in name for name in ran)


def test_a_network_for_one_size_is_exported_for_that_size_and_any_batch(encoder_of, tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5))
    encoder = encoder_of(net, channels=1)
    done = byol.export(encoder, tmp_path / "e.pt2")
    assert done.check.sizes == ((16, 16),)
    assert_same_features(by_torch(done.path), encoder, [(16, 16)])
    files = {"preprocessing.json": ""}
    program = torch.export.load(done.path, extra_files=files)
    assert json.loads(files["preprocessing.json"])["any_image_size"] is False
    assert len(json.loads(files["preprocessing.json"])["mean"]) == 1
    with pytest.raises((AssertionError, RuntimeError), match="16"):
        program.module()(pixels(2, (20, 20), 1))


class Random(nn.Module):
    """Gives other features at every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.first(x).mean((2, 3)), 0.5, training=True)


def test_a_failed_comparison_says_by_how_much_and_leaves_what_was_there(encoder_of, tmp_path):
    (tmp_path / "e.pt2").write_bytes(b"an earlier export")
    with pytest.raises(
        ByolError, match=r"torch.export gives features that differ by up to .*e[+-]\d+ of the largest"
    ) as told:
        byol.export(encoder_of(Random()), tmp_path / "e.pt2")
    assert told.value.exit_code == 70
    assert [path.name for path in tmp_path.iterdir()] == ["e.pt2"]
    assert (tmp_path / "e.pt2").read_bytes() == b"an earlier export"


class Branching(nn.Module):
    """Decides by the pixels what to compute: no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).mean((2, 3))
        return y if y.sum() > 0 else -y


def test_a_network_that_is_not_a_graph_gets_a_sentence(encoder_of, tmp_path):
    with pytest.raises(
        ConfigError, match=r"Branching cannot be expressed as torch\.export: .* Export it as safetensors"
    ):
        byol.export(encoder_of(Branching()), tmp_path / "e.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_its_extra(exported, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed: pip install 'byol\[export\]'"):
        byol.export(exported[0], tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())


def test_an_encoder_too_large_for_one_onnx_file_gets_a_sentence(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "PROTOBUF_LIMIT", 1_000)
    with pytest.raises(ConfigError, match="ONNX file holds less than 2"):
        byol.export(exported[0], tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "size", "options", "any_size"),
    [
        ("resnet50", None, (64, 64), {}, True),
        ("resnet18", "layer3", (64, 64), {}, True),
        ("resnet18", None, (32, 32), {"stem": "small"}, True),
        ("resnet18", None, (64, 64), {"padding": "same"}, False),
        ("torchvision:vit_b_16", None, (32, 32), {}, False),
        ("timm:test_vit", None, (48, 48), {}, True),
        ("timm:test_vit", "blocks.0", (48, 48), {}, True),
        ("timm:vit_tiny_patch16_224", None, (32, 32), {}, False),
        ("timm:test_convnext", None, (64, 64), {}, True),
        ("timm:test_efficientnet", None, (64, 64), {}, True),
    ],
)
def test_graphs_of_many_networks_agree(encoder_of, tmp_path, name, layer, size, options, any_size):
    encoder = encoder_of(name, layer, size=size, **options)
    height, width = size
    sizes = [size, (height + 16, width + 48)] if any_size else [size]
    for file, run in (("e.onnx", by_onnxruntime), ("e.pt2", by_torch)):
        done = byol.export(encoder, tmp_path / file)
        assert len(done.check.sizes) == len(sizes)
        assert_same_features(run(done.path), encoder, sizes)
