"""`byol export` as people type it, on a real run; and the guide, block by block."""

import re
import shlex
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import largest_file
from PIL import Image
from tiny import TINY

import byol
from byol.cli import main

SHORT = "--image-size 32 --batch-size 8 --epochs 1 --device cpu --model.projection-hidden-size 32"
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 16 pictures of two classes, with a score on 16 others."""
    root = tmp_path_factory.mktemp("export")
    generator = np.random.default_rng(0)
    for side, name in product(("train", "test"), ("one", "two")):
        (root / side / name).mkdir(parents=True)
        for i in range(8):
            pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / side / name / f"{i}.png")
    train, test = str(root / "train"), str(root / "test")
    assert main(["train", train, "--out", str(root / "a"), *TINY.split()]) == 0
    assert main(["evaluate", str(root / "a"), "--train", train, "--test", test, "--protocols", "knn"]) == 0
    return root / "a"


def test_the_overview_and_the_help_tell_of_it(capsys):
    assert main([]) == 0
    assert "\n  export " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["export", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for flag in (
        "--out",
        "--format",
        "--from-pixels",
        "--model",
        "--encoder",
        "torchvision",
        "huggingface",
        "torch.export",
    ):
        assert flag in out


def test_it_says_what_was_written_and_how_near_the_tool_comes(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "e.pt2")]) == 0
    out = capsys.readouterr().out
    assert f"written    {tmp_path / 'e.pt2'} (torch.export)" in out
    assert (
        "checked    torch.export gives the same features for 1, 2, 5 images of 16x16 and 49x70 pixels" in out
    )
    assert "takes      images float32 (B, 3, H, W) in [0, 1]" in out
    assert f'load       torch.export.load("{tmp_path / "e.pt2"}").module()(images)' in out
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(
        torch.export.load(tmp_path / "e.pt2").module()(images),
        byol.load_encoder(run)(images),
        rtol=0,
        atol=1e-4,
    )


def test_the_model_card_of_a_run_tells_its_length_and_score(run, tmp_path):
    assert main(["export", str(run / "encoder.safetensors"), "--out", str(tmp_path / "e")]) == 0
    card = (tmp_path / "e" / "README.md").read_text()
    assert "1 (2 steps of 8 images)" in card
    assert re.search(r"\| knn \| top-1 \| \d+\.\d \| \d+\.\d to \d+\.\d \| 2 \| 16 \| 16 \|", card)


def test_a_network_of_your_own_is_named_again(tmp_path, run, monkeypatch):
    (tmp_path / "code_of_mine.py").write_text(
        "import torchvision\n\ndef build():\n    return torchvision.models.shufflenet_v2_x0_5()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [
        "train",
        str(run.parent / "train"),
        "--out",
        str(tmp_path / "a"),
        "--encoder",
        "code_of_mine:build",
    ]
    words += ["--hidden-layer", "conv5", "--precision", "fp32", *TINY.split()[4:]]
    assert main(words) == 0
    words = [
        "export",
        str(tmp_path / "a"),
        "--encoder",
        "code_of_mine:build",
        "--model",
        "shufflenet_v2_x0_5",
    ]
    assert main([*words, "--out", str(tmp_path / "r.pth")]) == 0
    assert "fc.weight" not in torch.load(tmp_path / "r.pth", weights_only=True)


BAD = [
    (["{run}", "--out", "{tmp}/e.tflite"], "expected .safetensors"),
    (["{run}", "--out", "{tmp}/no/e.onnx"], "no folder"),
    (["{run}", "--out", "{tmp}/e.pth"], "torchvision has no convnet"),
    (["{run}", "--out", "{tmp}/e", "--format", "timm"], "timm has no convnet"),
    (["{run}", "--out", "{run}"], "not an empty folder"),
    (["{run}", "--out", "{run}/encoder.safetensors", "--format", "torchvision"], "would be lost"),
    (["{run}", "--out", "/proc/e.pt2"], "cannot be written"),
    (["{tmp}/nothing", "--out", "{tmp}/e.onnx"], "no encoder"),
]


@pytest.mark.parametrize(
    ("words", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_sentence_and_an_exit_code_and_leaves_nothing(words, says, run, tmp_path, capsys):
    before = [sorted(folder.rglob("*")) for folder in (tmp_path, run)]
    assert main(["export", *(word.format(tmp=tmp_path, run=run) for word in words)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("byol export: ")
    assert says in said
    assert "\n" not in said
    assert [sorted(folder.rglob("*")) for folder in (tmp_path, run)] == before


def test_an_unknown_format_is_named(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), "--out", str(tmp_path / "e"), "--format", "tflite"])
    assert ended.value.code == 2
    assert "tflite" in capsys.readouterr().err


def test_a_disk_that_is_full_gets_a_sentence_and_leaves_nothing(run, tmp_path, capsys):
    for name in ("e.safetensors", "e"):
        with largest_file(4000):
            assert main(["export", str(run), "--out", str(tmp_path / name)]) == 70  # as of every full disk
        said = capsys.readouterr().err
        assert f"{tmp_path / name} cannot be written: " in said
        assert said.count("\n") == 1
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_guide_s_commands_and_code_run_in_order(run, tmp_path, monkeypatch):
    """On a run of the small default encoder, and with the pictures of the test for photos/."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(run)
    (tmp_path / "photos").symlink_to(run.parent / "train")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(\w*)\n(.*?)```", GUIDE.read_text(), flags=re.S)
    commands = [line for language, text in blocks if not language for line in text.splitlines()]
    for command in commands:
        words = shlex.split(command)[1:]
        assert main([*words, *(SHORT.split() if words[0] == "train" else [])]) == 0, command
    encoders = {name: byol.load_encoder(f"runs/{name}") for name in ("a", "resnet")}
    known: dict = {}
    for language, code in blocks:
        if language == "python":
            exec(code, known)
    small, images = encoders["a"], torch.from_numpy(known["images"])
    expected = small.network((images - channels(small.info.mean)) / channels(small.info.std)).detach()
    torch.testing.assert_close(torch.as_tensor(known["features"]), expected, rtol=0, atol=1e-4)
    resnet = encoders["resnet"]
    x = (images - channels(resnet.info.mean)) / channels(resnet.info.std)
    known["net"].fc = torch.nn.Identity()
    with torch.no_grad():
        expected = resnet.network(x)
        for net in (known["encoder"], known["net"]):
            torch.testing.assert_close(
                net.eval()(x), expected, rtol=0, atol=1e-4 * float(expected.abs().max())
            )
        assert known["fine_tuned"](x).shape == (4, 10)


def channels(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def test_the_guide_stays_short():
    assert len(GUIDE.read_text().splitlines()) < 80
