"""`byol convert` as people use it: what they read, what is written, and that nothing is when it cannot be."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from full_disk import largest_file
from torchvision import models

import byol
from byol.cli import main


def test_official_checkpoint_becomes_an_encoder_file(official_files, official, eval_images, tmp_path, capsys):
    out = tmp_path / "encoders" / "tiny"
    assert (
        main(["convert", str(official_files / "official_tiny.pkl"), "--out", str(out), "--image-size", "48"])
        == 0
    )
    said = capsys.readouterr().out
    assert "read       official checkpoint after 6 steps" in said
    assert "matched    120 tensors: resnet, " in said
    assert (
        "left out   online classifier (2), online predictor (8), online projector (8), target classifier (2)"
        in said
    )
    assert "central square of 0.875 x the shorter side, bicubic resize (not antialiased) to 48 x 48" in said
    assert f"byol embed {out} --data photos/" in said
    assert sorted(path.name for path in out.iterdir()) == ["encoder.json", "encoder.safetensors"]
    assert json.loads((out / "encoder.json").read_text())["options"]["padding"] == "same"
    expected = torch.from_numpy(official["eval_representation"])
    torch.testing.assert_close(byol.load_encoder(out)(eval_images), expected, rtol=0, atol=1e-4)


def test_torch_checkpoint_becomes_an_encoder_file_with_the_preprocessing_told(tmp_path, capsys):
    torch.save(models.mobilenet_v3_small().state_dict(), tmp_path / "a.pt")
    words = [
        "--encoder",
        "torchvision:mobilenet_v3_small",
        "--image-size",
        "64",
        "--mean",
        "0.5",
        "0.5",
        "0.5",
        "--std",
        "0.25",
        "0.25",
        "0.25",
        "--crop-ratio",
        "1",
        "--interpolation",
        "bilinear",
    ]
    assert main(["convert", str(tmp_path / "a.pt"), "--out", str(tmp_path / "o"), *words]) == 0
    said = capsys.readouterr().out
    assert "left out   classifier (2)" in said
    assert "central square of 1.0 x the shorter side, bilinear resize (antialiased) to 64 x 64" in said
    assert "assumed    the images are prepared as told below" in said
    info = byol.load_encoder(tmp_path / "o").info
    assert (info.mean, info.std, info.image_size) == ((0.5,) * 3, (0.25,) * 3, (64, 64))


BAD = [
    (["{tmp}/nowhere.pkl"], "cannot be read (No such file or directory)"),
    (["{tmp}"], "cannot be read (it is a folder)"),
    (["{tmp}/empty.pkl"], "it is empty"),
    (["{tmp}/page.pkl"], "it is a web page"),
    (["{tmp}/hostile.pkl"], "calls for 'posix.system'"),
    (["{tmp}/cut.pkl"], "is cut off or damaged"),
    (["{tmp}/other.pkl"], "no experiment_state"),
    (["{tmp}/newer.pkl"], "Upgrade byol"),
    (["{tmp}/wrong.pt"], "is not a ResNet that byol can recognise"),
    (["{tmp}/resnet.pt", "--prefix", "backbone"], "has no tensors under 'backbone.'"),
    (["{tmp}/resnet.pt", "--encoder", "torchvision:resnet50"], "are not those of torchvision:resnet50"),
    (["{tmp}/resnet.pt", "--encoder", "resnet51"], "There is no encoder 'resnet51'"),
    (["{tmp}/tiny.pkl", "--encoder", "resnet50"], "leave encoder, prefix and hidden_layer out"),
    (["{tmp}/tiny.pkl", "--mean", "0.5"], "cannot have mean (0.5,)"),
    (["{tmp}/tiny.pkl", "--out", "{tmp}/taken"], "which holds an encoder"),
    (["{tmp}/tiny.pkl", "--out", "{tmp}/empty.pkl"], "Not a directory"),
    (["{tmp}/tiny.pkl", "--out", "{tmp}/empty.pkl/o"], "Not a directory"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory, official_files) -> Path:
    """Files that are no checkpoints, or not the ones they are taken for."""
    folder = tmp_path_factory.mktemp("files")
    tiny = (official_files / "official_tiny.pkl").read_bytes()

    class Hostile:
        def __reduce__(self):
            return __import__("os").system, (f"touch {folder / 'executed'}",)

    contents = {
        "empty.pkl": b"",
        "page.pkl": b"<html>",
        "hostile.pkl": pickle.dumps({"experiment_state": Hostile()}, 2),
        "tiny.pkl": tiny,
        "cut.pkl": tiny[: len(tiny) // 2],
        "other.pkl": pickle.dumps({"params": 1}, 2),
        "newer.pkl": b"\x80\x09N.",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save({"a.weight": torch.zeros(2)}, folder / "wrong.pt")
    torch.save(models.resnet18().state_dict(), folder / "resnet.pt")
    (folder / "taken").mkdir()
    (folder / "taken" / "encoder.safetensors").write_bytes(b"mine")
    return folder


@pytest.mark.parametrize(
    ("words", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_sentence_and_exit_code_2_and_leaves_nothing(words, says, files, capsys):
    words = [word.format(tmp=files) for word in words]
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    folders = sorted(files.rglob("*"))
    assert main(["convert", *words, *([] if "--out" in words else ["--out", str(files / "o")])]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("byol convert: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert sorted(files.rglob("*")) == folders
    assert {path: path.read_bytes() for path in folders if path.is_file()} == before


def test_disk_that_fills_up_leaves_nothing(official_files, tmp_path, capsys):
    """No folder stays either."""
    words = ["convert", str(official_files / "official_tiny.pkl"), "--out", str(tmp_path / "new" / "o")]
    with largest_file(100_000):
        assert main(words) == 70
    assert capsys.readouterr().err.startswith(f"byol convert: {tmp_path / 'new' / 'o'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("padding", ["valid", "SAME"])
def test_unknown_padding_names_the_known_ones(official_files, tmp_path, padding, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "convert",
                str(official_files / "official_tiny.pkl"),
                "--out",
                str(tmp_path / "o"),
                "--padding",
                padding,
            ]
        )
    assert ended.value.code == 2
    assert "symmetric" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_names_in_a_checkpoint_reach_the_terminal_without_their_escapes(tmp_path, capsys):
    state = {f"net.{name}": value for name, value in models.resnet18().state_dict().items()}
    torch.save(state | {"\x1b]0;owned\x07.weight": torch.zeros(3)}, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), "--out", str(tmp_path / "o"), "--prefix", "net."]) == 0
    said = "".join(capsys.readouterr())
    assert "\\x1b]0;owned\\x07" in said
    assert "\x1b" not in said
