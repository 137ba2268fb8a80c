"""Exported folders in transformers: AutoModel, image processor and pipeline; beside timm's transform."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, pipeline

import byol
from byol.cli import main
from byol.encoders.encoder import Encoder, save_encoder
from byol.method.pixels import normalise_

NAMES = ("astronaut", "chelsea", "coffee", "immunohistochemistry", "retina", "rocket")
PHOTOGRAPHS = [np.array(getattr(data, name)()) for name in NAMES]
PHOTOGRAPHS += [np.array(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def features(encoder: Encoder) -> Tensor:
    return torch.cat([encoder(torch.from_numpy(one).permute(2, 0, 1)[None]) for one in PHOTOGRAPHS])


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("resnet18", 64, {}),
        ("torchvision:resnet18", 64, {}),
        ("timm:test_resnet", 64, {}),
        ("timm:test_vit", 48, {}),
        ("timm:vit_tiny_patch16_224", 64, {"depth": 2, "global_pool": "avg"}),
    ],
)
def test_auto_model_gives_the_features_of_the_encoder(encoder_of, tmp_path, name, size, options):
    encoder = encoder_of(name, size=(size, size), **options)
    byol.export(encoder, tmp_path / "e")
    images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    net = AutoModel.from_pretrained(tmp_path / "e").eval()
    with torch.no_grad():
        theirs = net(normalise_(images.clone(), encoder.info.mean, encoder.info.std)).pooler_output
    torch.testing.assert_close(theirs, encoder(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [64, 224])
def test_photographs_prepared_by_timm_and_transformers_give_nearly_the_features(
    encoder_of, tmp_path, name, size
):
    """They resize before they crop, to whole pixels."""
    encoder = encoder_of(name, size=(size, size))
    folder = str(tmp_path / "e")
    byol.export(encoder, folder)
    ours, net = features(encoder), timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=net.eval()))
    processor, auto = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    extract = pipeline("image-feature-extraction", model=folder, pool=True)
    ways: dict[str, Callable[[Image.Image], Tensor]] = {
        "timm": lambda image: net(transform(image)[None]),
        "processor": lambda image: auto(**processor(image, return_tensors="pt")).pooler_output,
        "pipeline": lambda image: torch.tensor(extract(image)).view(1, -1),
    }
    for tool, way in ways.items():
        with torch.no_grad():
            theirs = torch.cat([way(Image.fromarray(photograph)) for photograph in PHOTOGRAPHS])
        assert F.cosine_similarity(theirs, ours).min() > 0.99, tool
        # Those of different photographs are alike too; what tells them apart is what counts.
        theirs, centred = theirs - ours.mean(0), ours - ours.mean(0)
        assert F.cosine_similarity(theirs, centred).min() > (0.99 if size == 224 else 0.95), tool


@pytest.mark.parametrize(("name", "options"), [("convnet", {"width": 4}), ("resnet18", {"stem": "small"})])
def test_an_encoder_that_only_this_package_has_is_said_to_be_one(encoder_of, tmp_path, capsys, name, options):
    (tmp_path / "run").mkdir()
    save_encoder(encoder_of(name, size=(32, 32), **options), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "e")]) == 0
    told = capsys.readouterr().out
    assert all(tool in told for tool in ("timm", "transformers", "byol.load_encoder"))
    with pytest.raises((OSError, ValueError)):
        AutoModel.from_pretrained(tmp_path / "e")
