"""The examples run as the page says, and the script for GPUs runs small where there is none."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pyarrow.dataset import dataset

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


def said(name: str, *words: object, folder: Path, launcher: tuple[str, ...] = ()) -> str:
    command = [sys.executable, *launcher, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(package: str) -> pytest.MarkDecorator:
    reason = f"{package} is not installed: pip install -r examples/requirements.txt"
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


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


@pytest.mark.slow
def test_a_loop_of_ones_own_trains_one_network_in_two_processes(photos):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    words = ("photos", "--steps", 3, "--batch-size", 8, "--out", "two.pth")
    lines = said("several_processes.py", *words, folder=photos, launcher=launcher).splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2", "step 3"]  # of one process alone
    assert all(0 < float(line.split()[-1]) < 8 for line in lines)
    net = torchvision.models.resnet18()
    net.load_state_dict(torch.load(photos / "two.pth", weights_only=True))
    assert net.bn1.num_batches_tracked == 6  # two views a step


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs("ray")
def test_two_workers_of_ray_give_the_features_of_byol_embed(photos, monkeypatch):
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy machine takes longer than its minute
    said("ray_embed.py", "run", "photos", "by-ray", "--batch-size", 32, folder=photos)
    found = dataset(photos / "by-ray", format="parquet").to_table().sort_by("name")
    expected = byol.embed(byol.load_encoder(photos / "run"), photos / "photos")
    order = np.argsort(expected.names)
    assert found["name"].to_pylist() == [expected.names[row] for row in order]
    x = np.stack(found["x"].to_numpy())
    np.testing.assert_allclose(x, expected.x[order], rtol=0, atol=1e-5 * np.abs(expected.x).max())


@pytest.mark.slow
@needs("faiss")
def test_an_index_of_faiss_finds_the_neighbours_among_files_of_features(tmp_path):
    """Points around 60 centres, in two files: the ten nearest are of the same centre."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((60, 32))
    for name in ("part-000000", "part-000001"):
        x = centres[np.arange(1500) % 60] + 0.3 * draw.standard_normal((1500, 32))
        (tmp_path / "features").mkdir(exist_ok=True)
        byol.Features(x).save(tmp_path / "features" / f"{name}.parquet")
    (tmp_path / "features" / "_features.json").write_text("{}", encoding="utf-8")
    words = ("features", "--bytes", 16, "--lists", 40, "--out", "f.index")
    counted, found = said("faiss_index.py", *words, folder=tmp_path).splitlines()
    assert counted.startswith("3,000 rows of 128 bytes in 40 lists of 24 bytes a row")
    alone, among = (float(word) for word in found.replace("%", " ").split() if "." in word)
    assert 60 < alone < among
    assert among > 95
    assert os.path.getsize(tmp_path / "f.index") < 3000 * 24 + 2**17
