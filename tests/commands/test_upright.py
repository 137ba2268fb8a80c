"""Photographs that a camera held askew has marked so (EXIF): upright alike wherever pictures are seen.

What ImageOps.exif_transpose of Pillow makes of them, saved without a mark, has to give the same everywhere.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import byol
from byol.cli import main
from byol.data.batches import BatchPlan, load_resident, resident_batches, streamed_batches
from byol.encoders.encoder import save_encoder
from byol.method.views import Views
from byol.report.pictures import view_section
from byol.train.plan import ImageFacts, plan_run
from byol.world import ALONE

ORIENTATION = 0x0112
MARKS = range(1, 9)
SIZE = (96, 64)  # width and height of what the camera saw


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of one scene as a camera saved it under each of the eight marks, and the same upright."""
    turned, upright = tmp_path_factory.mktemp("turned"), tmp_path_factory.mktemp("upright")
    coarse = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    for mark in MARKS:
        exif = Image.Exif()
        exif[ORIENTATION] = mark
        held = scene.copy()
        held.paste((30 * mark,) * 3, (0, 0, 2, 2))  # no two are the same file when they are upright
        held.getexif()[ORIENTATION] = {6: 8, 8: 6}.get(mark, mark)  # what undoes the turn of this mark
        ImageOps.exif_transpose(held).save(turned / f"{mark}.jpg", exif=exif, quality=95, subsampling=0)
        with Image.open(turned / f"{mark}.jpg") as picture:
            ImageOps.exif_transpose(picture).save(upright / f"{mark}.jpg", "PNG")  # content decides
    return turned, upright


def crops_of(folder: Path, in_memory: bool) -> torch.Tensor:
    images = byol.open_images(folder)
    plan = BatchPlan(0, len(images), 8, 1, Views((24, 24)))
    if in_memory:
        batches: Iterator = resident_batches(load_resident(images, print), plan)
    else:
        batches = streamed_batches(
            images, plan, device=torch.device("cpu"), workers=0, steps=range(1), report=print
        )
    return next(batches).crops


def resident_crops(folder: Path, out: Path) -> torch.Tensor:
    return crops_of(folder, in_memory=True)


def streamed_crops(folder: Path, out: Path) -> torch.Tensor:
    return crops_of(folder, in_memory=False)


def features(folder: Path, out: Path) -> torch.Tensor:
    words = ["embed", str(out / "encoder.safetensors"), "--data", str(folder), "--device", "cpu"]
    assert main([*words, "--out", str(out / "f.npz")]) == 0
    found = byol.Features.load(out / "f.npz")
    assert found.names == [f"{mark}.jpg" for mark in MARKS]
    return torch.from_numpy(found.x)


def sheet_of_views(folder: Path, out: Path) -> torch.Tensor:
    words = ["views", str(folder), "--count", "8", "--image-size", "24", "--out", str(out / "views.png")]
    assert main(words) == 0
    return torch.from_numpy(np.array(Image.open(out / "views.png").convert("RGB")))


def report(folder: Path, out: Path) -> list[str]:
    """The pictures that stand in a report."""
    images, config = byol.open_images(folder), byol.TrainConfig(out=str(out), image_size=24, batch_size=4)
    plan = plan_run(config, ImageFacts(len(images), (SIZE[1], SIZE[0]), 3, labelled=False), ALONE)
    return re.findall(r'src="(data:[^"]+)"', str(view_section(images, plan)))


def sprites_of_the_explorer(folder: Path, out: Path) -> torch.Tensor:
    byol.Features(np.eye(8, dtype=np.float32), names=[f"{mark}.jpg" for mark in MARKS]).save(out / "f.npz")
    words = ["explore", str(out / "f.npz"), "--data", str(folder), "--out", str(out / "map"), "--map", "pca"]
    assert main([*words, "--clusters", "0", "--k", "3", "--device", "cpu"]) == 0
    return torch.from_numpy(np.array(Image.open(out / "map" / "sheets" / "0.jpg")))


def check(folder: Path, out: Path) -> dict:
    main(["check", str(folder), "--workers", "0", "--out", str(out / "check.json")])
    found = json.loads((out / "check.json").read_text())
    assert found["sizes"] == {"height": [SIZE[1]] * 3, "width": [SIZE[0]] * 3}
    assert found["found"]["near-duplicate"] == 7, "eight photographs of one scene, when they are upright"
    return {name: found[name] for name in ("sizes", "groups", "modes", "images", "found")}


@pytest.mark.parametrize(
    "seen",
    [resident_crops, streamed_crops, features, sheet_of_views, report, sprites_of_the_explorer, check],
    ids=lambda one: one.__name__,
)
def test_turned_photographs_are_upright_alike_wherever_pictures_are_seen(
    seen: Callable, cameras: tuple[Path, Path], tmp_path: Path, encoder_of: Callable
) -> None:
    found = []
    for folder in cameras:
        (out := tmp_path / folder.name).mkdir()
        save_encoder(encoder_of(size=(24, 24)), out)
        found.append(seen(folder, out))
    turned, upright = found
    if isinstance(turned, torch.Tensor):
        assert torch.equal(turned, upright)
    else:
        assert turned == upright
        assert turned
