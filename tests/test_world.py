"""Where a run works: one process, one device, the arithmetic that is fastest there."""

import os
import socket
import time
from contextlib import suppress

import forked
import numpy as np
import pytest
import torch

from byol.errors import ConfigError
from byol.world import World, pick_device


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:99", "cpu:x", "", *([] if torch.cuda.is_available() else ["cuda"])]
)
def test_a_device_that_is_not_there_is_a_sentence(name):
    with pytest.raises(ConfigError, match="device is") as told:
        World.join(name)
    assert told.value.exit_code == 2


def test_several_processes_are_refused_until_they_would_train_together(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 4.* without torchrun"):
        World.join("cpu", alone=True)


@pytest.mark.parametrize("words", ["x", "", "-1", "0", "2.5"])
def test_a_number_of_processes_that_is_none_is_a_sentence(monkeypatch, words):
    monkeypatch.setenv("WORLD_SIZE", words)
    with pytest.raises(ConfigError, match=f"WORLD_SIZE is '{words}'"):
        World.join("cpu")


def test_the_world_of_one_knows_its_free_memory_and_its_name():
    world = World.join("cpu")
    assert (world.rank, world.size, world.device.type) == (0, 1, "cpu")
    assert 2**20 < world.free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = torch.get_num_threads()
    assert world.describe().endswith(f", {count} thread" + "s" * (count > 1))


def test_a_card_that_torch_cannot_use_is_told(tmp_path, monkeypatch, caplog):
    """Its driver is there; a machine without one says nothing."""
    for name, told in (("version", True), ("nothing", False)):
        (tmp_path / "version").touch()
        monkeypatch.setattr("byol.world.DRIVER", tmp_path / name)
        caplog.clear()
        device = pick_device(None)
        assert ("NVIDIA driver" in caplog.text) == (told and not torch.cuda.is_available())
        assert device.type in ("cuda", "mps", "cpu")


@pytest.mark.parametrize("command", ["train", "embed"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_others_do_not_come_answers_signals(tmp_path, monkeypatch, command, rank):
    """Rank 0 waits for another to come, rank 1 for an answer of rank 0."""
    np.save(tmp_path / "x.npy", np.zeros((8, 8, 8, 3), np.uint8))
    words = {"train": ["x.npy", "--out", "run"], "embed": ["run", "--data", "x.npy", "--out", "x.npz"]}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        if rank == 0:
            server.close()
        world = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in world.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        process = forked.command([command, *words[command]], tmp_path / "said")
        try:
            with met(port) if rank == 0 else server.accept()[0]:
                time.sleep(1)  # it is in torch's hands now
                process.terminate()
                process.join(30)
        finally:
            process.kill()
    said = (tmp_path / "said").read_text()
    assert (process.exitcode, "SIGTERM" in said) == (75, True), said


def met(port: int) -> socket.socket:
    """A connection to a port, once there is someone."""
    for _ in range(600):
        with suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.1)
    raise AssertionError(f"Nobody has opened port {port} in a minute.")


@pytest.mark.parametrize("fault", ["MASTER_ADDR", "MASTER_PORT", "RANK", "a port of another program's"])
def test_processes_that_cannot_meet_are_told_how_to_be_started(monkeypatch, fault):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", **address}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv(fault, raising=False)
        with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2.* could not connect.* torchrun") as told:
            World.join("cpu")
        assert told.value.exit_code == 2
        assert fault in str(told.value) or "port" in fault
