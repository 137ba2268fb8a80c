"""Every command and every piece of Python of the README and the guides runs, in the order of its page."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torch import nn

import byol
from byol.cli import main
from byol.data.demo_images import Tiles, photograph_tiles

HERE = Path(__file__).parents[2]
WRITTEN = [*HERE.glob("docs/guides/*.md"), *HERE.glob("docs/concepts/*.md")]
PAGES = ["README.md", *sorted(path.relative_to(HERE).as_posix() for path in WRITTEN)]

SHORTER = {  # what a page says, and what is run in its place, so that all of them take minutes
    "byol train ": "byol train --epochs 1 --batch-size 50 --workers 0 ",
    " --budget 8h": "",
    "timm:vit_small_patch16_224": "timm:test_vit --image-size 32",
    "torchvision:resnet18": "torchvision:resnet18 --image-size 32",
    "--protocols semi-10 ": "--protocols semi-10 --epochs 1 --base-lrs 0.1 ",
    "--protocols semi-1 semi-10 ": "--protocols semi-1 semi-10 --epochs 1 --base-lrs 0.1 ",
    "--nproc-per-node=4": "--nproc-per-node=2",
    "epochs=300, batch_size=256": "epochs=1, batch_size=32, image_size=32, workers=0",
    '"resnet50", "photos/"': '"convnet", "photos/"',
    "image_size=224": "image_size=32",
    "image_size=96": "image_size=32, epochs=1, batch_size=32, workers=0",
    "base_lrs=(0.005, 0.01, 0.02, 0.05, 0.1), epochs=(30.0, 50.0)": "base_lrs=(0.02, 0.05), epochs=(1.0,)",
    "models.resnet50(pretrained=True)": "models.resnet18()",
    "imagenet/train --preset imagenet-100": "photos/ --preset imagenet-100 --encoder resnet18 "
    "--image-size 16 --model.projection-hidden-size 64 --optim.warmup-epochs 0",
    "--preset cifar10-1000": "--preset cifar10-1000 --image-size 16 --model.projection-hidden-size 64 "
    "--optim.warmup-epochs 0",
    " --batch-size 256 --model": " --model",
    " --batch-size 2048 --optim.accumulation 16": " --optim.accumulation 5",
    "image_size=256": "image_size=32",
    "(20, 3, 256, 256)": "(4, 3, 32, 32)",
    "range(100)": "range(2)",
    "MockDataset(256, 10000)": "MockDataset(32, 40)",
    "num_train_steps=100_000": "num_train_steps=2",
    "byol.BYOL(net, 224,": "byol.BYOL(net, 32, projection_size=32, projection_hidden_size=64,",
}
NOT_RUN = {  # the beginning of a command: why it is not run
    "make demo": "it installs an environment and trains for minutes",
    "make docs": "make check runs it",
    "make mutants": "it runs all tests many times",
    "make test": "it runs all tests",
    "torchrun --nnodes": "it needs two machines",
    "byol push": "it needs an account of the Hub; tests/exports/test_hub.py runs it against a hub of its own",
    "pip install": "it changes the environment of the tests",
}


def pieces(page: str) -> list[tuple[str, str]]:
    """What can be run in a page, in its order: the commands, blocks of Python, and content of files."""
    found = []
    text = (HERE / page).read_text(encoding="utf-8")
    for piece in re.finditer(r"^```(\w*)\n(.*?)^```$|`([^`]+)`", text, re.DOTALL | re.MULTILINE):
        language, block, words = piece.groups()
        if words is None:
            assert language in ("", "python", "yaml", "text", "bash"), f"{page}: what is {language}?"
            if language == "":
                found += [("command", line) for line in block.splitlines()]
            else:
                found.append((language, block))
        elif re.match(r"(byol \w+|make|pip|python|torchrun|git|docker)\s+\S", words):
            found.append(("command", " ".join(words.split())))
        elif re.match(r"byol\.\w+\(", words):
            found.append(("python", f"import byol\n{words}"))
    return found


def shorter(text: str) -> str:
    for said, run in SHORTER.items():
        text = text.replace(said, run)
    return text


def run_command(command: str) -> None:
    words = shlex.split(shorter(command), comments=True)
    if words[0] == "byol":
        try:
            code: object = main(words[1:])
        except SystemExit as left:  # as --help does
            code = left.code
        assert code == 0 or (code == 1 and words[1] == "check"), command  # 1: something was found
    else:
        assert words[0] == "torchrun", f"{command!r} can neither be run nor is it in NOT_RUN"
        words[:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": str(HERE)}, timeout=300)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def save_pictures(folder: Path, tiles: np.ndarray, names: list[str]) -> None:
    for tile, name in zip(tiles, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(folder / name)


def save_labelled(folder: Path, tiles: Tiles, each: int, *, test: bool) -> None:
    """Some tiles of six photographs, a folder for each."""
    images, labels = (tiles.test, tiles.test_labels) if test else (tiles.train, tiles.train_labels)
    rows = [row for label in range(6) for row in np.flatnonzero(labels == label)[:each]]
    save_pictures(folder, images[rows], [f"{tiles.names[labels[row]]}/{row}.png" for row in rows])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, official_files) -> Path:
    """The folder that the pages speak of, with tiles of photographs; and two short runs."""
    folder = tmp_path_factory.mktemp("guides")
    tiles = photograph_tiles()
    names = ["fox.jpg", "owl.jpg", *(f"{n // 50}/{n}.jpg" for n in range(148))]
    save_pictures(folder / "photos", tiles.train[: 150 * 28 : 28], names)
    shutil.copy(folder / "photos" / "fox.jpg", folder)
    (folder / "labelled.txt").write_text("fox.jpg\nowl.jpg\n")
    np.save(folder / "probabilities.npy", np.random.default_rng(0).dirichlet(np.ones(6), size=150))
    for name, each in (("labelled", 20), ("pets", 5)):
        save_labelled(folder / name / "train", tiles, each, test=False)
        save_labelled(folder / name / "test", tiles, each // 2, test=True)
    (folder / "pets" / "train").rename(folder / "pets" / "trainval")
    (folder / "voc2007").mkdir()
    for name, images in (("trainval", tiles.train[::40]), ("test", tiles.test[::20])):
        several = np.random.default_rng(0).integers(2, size=(len(images), 3))
        np.savez(folder / "voc2007" / name, images=images, y=several)
    (folder / "cifar10").mkdir()
    for name, rows in (("train", tiles.train[::40]), ("test", tiles.test[::20])):
        pictures = [{"bytes": png(pixels)} for pixels in rows]
        labels = tiles.train_labels[::40] if name == "train" else tiles.test_labels[::20]
        pq.write_table(pa.table({"image": pictures, "label": labels}), folder / "cifar10" / f"{name}.parquet")
    (official,) = official_files.glob("official_tiny.pkl")
    shutil.copy(official, folder / "pretrain_res50x1.pkl")
    tensors = torchvision.models.resnet18().state_dict()
    torch.save(
        {f"online_encoder.net.{name}": tensor for name, tensor in tensors.items()}, folder / "weights.ckpt"
    )
    torch.save(tensors, folder / "weights.pth")
    with chdir(folder):
        run_command("byol train photos/ --out runs/a")
        shutil.copytree("runs/a", "runs/b")
    return folder


class Blocks(nn.Module):
    """A network of one's own, with a layer "blocks.5"."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 8, 8, 8, 8, 8, 16)
        self.blocks = nn.Sequential(*(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(sizes)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.blocks(images).mean((2, 3))


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {  # what a page's Python takes for granted
    "README.md": lambda: {
        "net": byol.build_encoder("convnet"),
        "loader": [torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)],
    },
    "docs/guides/first-run.md": lambda: {"net": Blocks(), "build_it_again": Blocks},
    "docs/guides/other-libraries.md": lambda: {
        "net": Blocks(),
        "image_size": 32,
        "pairs": [(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32))],
    },
}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the libraries that load our exports
@pytest.mark.parametrize("page", PAGES)
def test_a_guide_runs_as_it_is_written(page, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    todo = pieces(page)
    for run in ("runs/a", "runs/b"):
        if any(kind == "command" and f"--out {run}" in text for kind, text in todo):
            shutil.rmtree(run)  # the page makes its own
    names: dict[str, Any] = GIVEN.get(page, dict)()
    for kind, text in sorted(todo, key=lambda piece: piece[0] != "yaml"):
        print(f"--- {page}: {text}", time.perf_counter())
        if kind == "yaml":
            Path("sets.yaml").write_text(text, encoding="utf-8")
        elif kind == "python":
            exec(compile(shorter(text), page, "exec"), names)
        elif kind == "command" and not text.startswith(tuple(NOT_RUN)):
            run_command(text)


@pytest.mark.parametrize("words", [*SHORTER, *NOT_RUN])
def test_what_is_shortened_or_not_run_stands_in_a_guide(words):
    assert any(words in text for page in PAGES for _, text in pieces(page))


def test_every_command_is_run_or_listed():
    for page in PAGES:
        for kind, text in pieces(page):
            known = text.startswith(("byol ", "torchrun ", *NOT_RUN))
            assert kind != "command" or known, f"{page}: {text!r} is neither run nor in NOT_RUN"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (HERE / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (HERE / page).parent.joinpath(link).exists()] == []


def test_the_page_of_the_method_names_code_that_is_there():
    text = (HERE / "docs" / "concepts" / "method.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+)\.py`: `(\w+)`", text)
    assert len(named) > 20
    for file, name in named:
        assert hasattr(import_module(f"byol.{file.replace('/', '.')}"), name), f"{file}.py: {name}"


def test_the_table_of_what_to_touch_names_files_that_are_there():
    text = (HERE / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:byol|tests|docs|benchmarks)/[\w/.]+)`", text)
    assert len(named) > 20
    assert [path for path in named if not (HERE / path).exists()] == []


def test_the_citation_names_this_version():
    assert yaml.safe_load((HERE / "CITATION.cff").read_text(encoding="utf-8"))["version"] == byol.__version__
