"""Features of large sets: stopped and continued, by one process or several, the file is the same."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from byol.encoders.encoder import save_encoder
from byol.errors import CheckpointError, ConfigError, DataError, Stopped
from byol.features import embed as extract, embed as partial
from byol.features.embed import embed, embed_to
from byol.features.features import Features
from byol.world import World

ALONE = World(0, 1, torch.device("cpu"))
KINDS = (".npz", ".npy", ".parquet", ".safetensors")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Shards of six images."""
    for module in (extract, partial):
        monkeypatch.setattr(module, "BATCH", 3)
        monkeypatch.setattr(module, "SHARD", 2)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twenty pictures in two folders, three of them unreadable."""
    generator = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "photos" / f"class {number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        if number in (3, 8, 19):
            path.write_bytes(b"")
    return tmp_path / "photos"


def stop_after(reports: int):
    """A report that interrupts after some shards, as Ctrl-C does."""
    heard = []

    def report(done: int, total: int) -> None:
        heard.append(done)
        if len(heard) > reports:  # the first tells what was done before
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_in_parts_is_the_same_as_at_once(encoder_of, photos, tmp_path, kind, normalize):
    encoder, out = encoder_of("convnet", width=4), tmp_path / f"f{kind}"
    heard: list[tuple[int, int]] = []
    whole = embed(encoder, photos, normalize=normalize)
    found = embed_to(
        out, encoder, photos, ALONE, normalize=normalize, report=lambda *told: heard.append(told)
    )
    loaded = Features.load(out)
    for some in (found, loaded):
        assert np.array_equal(some.x, whole.x)
    if kind != ".npy":
        assert loaded.names == found.names == whole.names
        assert loaded.y.tolist() == whole.y.tolist()
        assert loaded.classes == ("class 0", "class 1")
    assert heard == [(0, 20), (6, 20), (12, 20), (18, 20), (20, 20)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "photos"]
    assert not normalize or np.allclose(np.linalg.norm(loaded.x, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_call_continues_and_gives_the_same_bytes(encoder_of, photos, tmp_path, workers):
    encoder = encoder_of("convnet", width=4)
    embed_to(tmp_path / "whole.npz", encoder, photos, ALONE)
    out = tmp_path / "f.npz"
    with pytest.raises(Stopped, match="the same command continues") as stopped:
        embed_to(out, encoder, photos, ALONE, report=stop_after(2))
    assert stopped.value.exit_code == 130
    assert not out.exists()
    (folder,) = tmp_path.glob("f.npz.partial-*")
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert sorted(kept) == ["shard-000000.npz", "shard-000001.npz"]

    heard: list[tuple[int, int]] = []
    embed_to(out, encoder, photos, ALONE, workers=workers, report=lambda *told: heard.append(told))
    assert heard == [(12, 20), (18, 20), (20, 20)]
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "photos", "whole.npz"]


def test_what_belongs_to_other_images_encoders_or_settings_is_not_used_and_goes_in_the_end(
    encoder_of, photos, tmp_path
):
    out = tmp_path / "f[1].npz"
    for encoder, normalize in (
        (encoder_of("convnet", width=4), False),
        (encoder_of("convnet", width=8), True),
    ):
        with pytest.raises(Stopped):
            embed_to(out, encoder, photos, ALONE, normalize=normalize, report=stop_after(1))
    (photos / "class 0" / "new.png").write_bytes((photos / "class 0" / "00.png").read_bytes())
    encoder, heard = encoder_of("convnet", width=8), []
    embed_to(out, encoder, photos, ALONE, report=lambda done, total: heard.append(done))
    assert heard[0] == 0
    assert np.array_equal(Features.load(out).x, embed(encoder, photos).x)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "photos"]


def test_a_damaged_part_is_removed_and_computed_again(encoder_of, photos, tmp_path):
    encoder, out = encoder_of("convnet", width=4), tmp_path / "f.npz"
    with pytest.raises(Stopped):
        embed_to(out, encoder, photos, ALONE, report=stop_after(2))
    (part,) = tmp_path.glob("f.npz.partial-*/shard-000001.npz")
    content = bytearray(part.read_bytes())
    content[-300] ^= 1
    content[400] ^= 1
    part.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"shard-000001\.npz was damaged and is removed; the same command"
    ):
        embed_to(out, encoder, photos, ALONE)
    assert np.array_equal(embed_to(out, encoder, photos, ALONE).x, embed(encoder, photos).x)


def test_ctrl_c_before_the_first_part_leaves_nothing(encoder_of, photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed_to(tmp_path / "f.npz", encoder_of("convnet"), photos, ALONE, report=stop_after(0))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_images_or_encoders_that_cannot_be_used_leave_nothing(encoder_of, photos, tmp_path):
    encoder = encoder_of("convnet")
    encoder.net.layers[0].weight.data[0] = float("nan")
    with pytest.raises(DataError, match="hold NaN"):
        embed_to(tmp_path / "f.npz", encoder, photos, ALONE)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"None of 20 images in .* can be read"):
        embed_to(tmp_path / "f.npz", encoder_of("convnet"), photos, ALONE)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_second_process_at_the_same_work_is_refused(encoder_of, photos, tmp_path):
    encoder, out = encoder_of("convnet"), tmp_path / "f.npz"

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(CheckpointError, match=r"Another process writes to .*Wait for it"):
            embed_to(out, encoder, photos, ALONE)

    assert len(embed_to(out, encoder, photos, ALONE, report=meanwhile).x) == 17


def test_a_small_set_is_never_kept_in_parts(encoder_of, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    heard: list[int] = []
    embed_to(
        tmp_path / "f.npz",
        encoder_of("convnet"),
        images,
        ALONE,
        report=lambda done, total: heard.append(done),
    )
    assert heard == []
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


RUN = """
import os, resource, sys
import torch
from byol.features import embed as extract
from byol.features import embed as partial
from byol.encoders.load import load_encoder
from byol.features.embed import embed_to
from byol.world import World
torch.set_num_threads(1)
for module in (extract, partial):
    module.BATCH, module.SHARD = 3, 2
encoder, images, out, *rest = sys.argv[1:]
if rest and rest[0] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
def report(done, total):
    if rest and rest[0] == "kill" and done >= 6 and os.environ.get("RANK", "1") == "1":
        os.kill(os.getpid(), 9)
with World.join("cpu") as world:
    features = embed_to(__import__("pathlib").Path(out), load_encoder(encoder), images, world, report=report)
    print(world.rank, None if features is None else len(features.x))
"""


def torchrun(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.fixture
def words(encoder_of, photos, tmp_path) -> list[str]:
    """A command that embeds the photos into the file named after it; `one.npz` is what one process makes of them."""
    save_encoder(encoder_of("convnet", width=16), tmp_path)
    (tmp_path / "run.py").write_text(RUN)
    words = [str(tmp_path / "run.py"), str(tmp_path / "encoder.safetensors"), str(photos)]
    subprocess.run(
        [sys.executable, *words, str(tmp_path / "one.npz")], check=True, timeout=100, capture_output=True
    )
    return words


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(words, tmp_path):
    done = torchrun(*words, str(tmp_path / "two.npz"))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "0 17", "1 None"]
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_one_alone_can_continue(words, tmp_path):
    out = tmp_path / "f.npz"
    done = torchrun(*words, str(out), "kill")
    assert done.returncode != 0
    assert not out.exists()
    (folder,) = tmp_path.glob("f.npz.partial-*")
    assert 1 <= len(list(folder.glob("shard-*.npz"))) <= 3
    subprocess.run([sys.executable, *words, str(out)], check=True, timeout=100, capture_output=True)
    assert out.read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(words, tmp_path):
    command = [sys.executable, *words, str(tmp_path / "f.npz"), "full"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("byol.errors.DiskError: ")
    assert not list(tmp_path.glob("f.npz*"))


def test_several_processes_without_torchrun_are_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(ConfigError, match="WORLD_SIZE is 2, but the processes do not meet"),
        World.join("cpu"),
    ):
        pass
