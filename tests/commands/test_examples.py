"""The examples run as the page says, and the script for GPUs runs small where there is none."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

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
