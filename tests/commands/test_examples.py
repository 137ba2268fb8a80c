"""The examples run as the page says, and the script for GPUs runs small where there is none."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import byol
from byol.data.demo_images import photograph_tiles

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_resnet50_example_trains_and_saves_a_network_that_torchvision_loads(tmp_path):
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (70 + number, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    command = [
        sys.executable,
        str(EXAMPLES / "resnet50.py"),
        str(tmp_path),
        "--steps",
        "2",
        "--batch-size",
        "2",
    ]
    command += ["--image-size", "64", "--out", str(tmp_path / "improved.pth")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "step 2: loss" in done.stdout
    assert "(2, 2048)" in done.stdout
    net = torchvision.models.resnet50(weights=None)
    fresh = net.conv1.weight.detach().clone()
    net.load_state_dict(torch.load(tmp_path / "improved.pth", weights_only=True))
    assert not torch.equal(fresh, net.conv1.weight)


@pytest.mark.slow
def test_the_gpu_script_runs_small_on_a_cpu():
    script = EXAMPLES.parent / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, str(script), "--small"], capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr
    for part in (
        "correctness, convnet",
        "fp32, compiled",
        "speed, convnet",
        "checkpoint step-00000012",
        "linear",
    ):
        assert part in done.stdout


def test_the_example_stays_one_page():
    assert len((EXAMPLES / "resnet50.py").read_text().splitlines()) <= 70


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Tiles of four photographs, a folder for each, one of them twice; and beside them a run."""
    folder, tiles = tmp_path_factory.mktemp("examples"), photograph_tiles()
    for label in range(4):
        (folder / "photos" / tiles.names[label]).mkdir(parents=True)
        for row in np.flatnonzero(tiles.train_labels == label)[:30]:
            Image.fromarray(tiles.train[row]).save(folder / "photos" / tiles.names[label] / f"{row}.png")
    first = min((folder / "photos").glob("*/*.png"))
    Image.open(first).save(first.with_name("copy.png"), compress_level=0)  # a larger file
    byol.pretrain(
        "convnet", folder / "photos", byol.TrainConfig(out=str(folder / "run"), epochs=2, batch_size=40)
    )
    return folder


def said(name: str, *words: object, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_examples_find_what_is_alike_and_label_the_rest(photos):
    first = min((photos / "photos").glob("*/*.png"))
    found = said("image_search.py", "run", "photos", first, "--k", 2, folder=photos).splitlines()
    kind = first.parent.name
    assert sorted(line.split()[1] for line in found) == sorted([f"{kind}/{first.name}", f"{kind}/copy.png"])
    said("near_duplicates.py", "run", "photos", "--similarity", 0.9999, folder=photos)
    assert f"{kind}/{first.name}" in (photos / "remove.txt").read_text().splitlines()
    assert f"{kind}/copy.png" not in (photos / "remove.txt").read_text().splitlines()
    right = said("few_labels.py", "run", "photos", "--labels", 16, folder=photos).splitlines()[-1]
    assert float(right.split(" %")[0]) > 40  # by chance 25
    assert len((photos / "labels.csv").read_text().splitlines()) == 1 + 4 * 30 + 1
    score = said("sklearn_pipeline.py", "run", "photos", folder=photos).splitlines()[-1]
    assert float(score.split()[1].rstrip(",")) > 0.4


@pytest.mark.slow
def test_the_wrapper_trains_in_ten_lines(photos):
    lines = said("wrapper.py", "photos", folder=photos).splitlines()
    assert lines[-1].startswith("step 10: loss ")
    assert 0 < float(lines[-1].split()[-1]) < 8
