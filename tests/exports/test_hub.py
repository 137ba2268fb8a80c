"""Uploads to a hub on this machine, which speaks as the Hugging Face Hub's own library expects."""

import os
import subprocess
import sys
import tempfile

import pytest
import torch
from huggingface_hub import constants
from stand_in_hub import TOKEN, hub

import byol
from byol.encoders.encoder import save_encoder
from byol.errors import ByolError, ConfigError

# The Hub's library talks to its HTTP library in a way that is going.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
IMAGES = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def served(monkeypatch, tmp_path):
    """The hub, with large files by LFS; the other protocol, Xet, needs a storage of its own."""
    with hub() as server:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def run(encoder_of, tmp_path) -> str:
    """The folder of an encoder."""
    (tmp_path / "run").mkdir()
    save_encoder(encoder_of("convnet", size=(32, 32)), tmp_path / "run")
    return str(tmp_path / "run")


def test_what_is_uploaded_by_one_command_is_the_encoder_with_its_card(run, tmp_path):
    """In a process of its own, which knows the hub and the token as a user tells them."""
    with hub() as server:
        told = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-m", "byol", "push", run, "me/mine"],
            env={**os.environ, **told, "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"{server.address}/me/mine" in done.stdout
        files = server.written("me/mine", tmp_path / "downloaded")
    assert TOKEN not in done.stdout + done.stderr
    ours = byol.load_encoder(run)
    byol.export(ours, tmp_path / "exported")
    assert {path.name: path.read_bytes() for path in files.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()
    }
    assert torch.equal(byol.load_encoder(files)(IMAGES), ours(IMAGES))


def test_a_repository_that_is_made_is_its_owner_s_alone_unless_it_is_to_be_public(served, encoder_of):
    byol.push(encoder_of(), "me/hidden", endpoint=served.address)
    byol.push(encoder_of(), "me/shown", public=True, endpoint=served.address)
    assert served.private == {"me/hidden": True, "me/shown": False}


def test_another_push_replaces_the_weights_and_leaves_the_card_that_its_author_wrote_on(served, encoder_of):
    byol.push(encoder_of("convnet", width=4), "me/mine", endpoint=served.address)
    first = served.files["me/mine"]["encoder.safetensors"]
    served.files["me/mine"]["README.md"] += b"Licence: CC BY 4.0\n"
    assert byol.push(encoder_of("convnet", width=6), "me/mine", endpoint=served.address).kept_card
    assert served.files["me/mine"]["encoder.safetensors"] != first
    assert served.files["me/mine"]["README.md"].endswith(b"Licence: CC BY 4.0\n")
    assert len(served.commits) == 2


def test_a_network_that_timm_has_is_uploaded_as_timm_loads_it(served, encoder_of):
    byol.push(encoder_of("timm:test_resnet", size=(32, 32)), "me/resnet", endpoint=served.address)
    assert {*served.files["me/resnet"]} == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("token", "repository", "kind", "says"),
    [
        (None, "me/mine", ConfigError, "HF_TOKEN"),
        (TOKEN, "mine", ConfigError, "user/name"),
        (TOKEN, "me/mine/../other", ConfigError, "user/name"),
        ("hf_expired", "me/mine", ByolError, "401"),
        (TOKEN, "you/yours", ByolError, "403"),
    ],
)
def test_what_the_hub_does_not_take_is_a_sentence_and_nothing_is_uploaded(
    served, encoder_of, monkeypatch, token, repository, kind, says
):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind, match=says):
        byol.push(encoder_of(), repository, endpoint=served.address)
    assert served.files == {}


def test_a_hub_that_cannot_be_reached_is_a_sentence(served, encoder_of, monkeypatch):
    served.server_close()
    with pytest.raises(ByolError, match="connection"):
        byol.push(encoder_of(), "me/mine", endpoint=served.address)


def test_without_the_hub_s_library_its_name_is_told(encoder_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"byol\[hub\]"):
        byol.push(encoder_of(), "me/mine")


def test_no_part_of_an_upload_stays_on_the_disk(served, encoder_of, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    byol.push(encoder_of(), "me/mine", endpoint=served.address)
    assert [*tmp_path.iterdir()] == []
