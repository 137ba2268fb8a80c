"""Checkpoints that survive a kill at any instant, and hold nothing that could be executed.

A checkpoint is a folder `step-00001234` with `state.safetensors` (every tensor), `state.json` (everything else) and
`manifest.json` (size and BLAKE2b of both, written last). It is written in a temporary folder beside its final place,
every file is fsynced, the folder renamed and its parent fsynced: a name `step-…` is complete or does not exist.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from byol.disk import filling, left_behind, writing
from byol.errors import CheckpointError

logger = logging.getLogger("byol")
FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


def save(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint of a step and retire all but the newest `keep`. Returns its folder."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    with filling(final) as temporary:
        copied = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(copied, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(values))
        files = {
            name: {"bytes": (temporary / name).stat().st_size, "blake2b": _digest(temporary / name)}
            for name in ("state.safetensors", "state.json")
        }
        manifest = {"format": FORMAT, "step": step, "files": files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        if final.exists():  # of this very step: incomplete, or saved by an earlier attempt
            _retire(final)
    for _, old in _complete(folder)[keep:]:
        _retire(old)
    return final


def latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that verifies, as (step, tensors, values); None when there is none.

    A damaged one is passed over with a warning. Raises CheckpointError for one written by a newer version, and when
    checkpoints exist but none verifies.
    """
    found = _complete(folder)
    for step, path in found:
        try:
            return step, *_load(path)
        except (OSError, ValueError, KeyError, SafetensorError) as damage:
            logger.warning(
                "Checkpoint %s is damaged (%s): falling back to the one before.", path.name, damage
            )
    if found:
        raise CheckpointError(
            f"None of the {len(found)} checkpoints in {folder} can be read. Restore one of them, or start in another folder."
        )
    return None


def newest(folder: Path) -> Path | None:
    """The newest checkpoint's folder, unverified; None when there is none."""
    found = _complete(folder)
    return found[0][1] if found else None


def last_good(folder: Path) -> str:
    """Where a run that went wrong can be taken up again, in a sentence."""
    path = newest(folder)
    return f"The last good checkpoint is {path}." if path else "No checkpoint had been written yet."


def sweep(*folders: Path) -> None:
    """Remove what dead processes left behind: temporary files and folders, and folders on their way out."""
    for folder in folders:
        for path in [*folder.glob(".tmp-*"), *folder.glob(".del-*")] if folder.exists() else ():
            if path.name.startswith((".del-", f".tmp-{os.getpid()}-")) or left_behind(path):
                path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def flatten(state: Any, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """Split nested plain state into its tensors, by dotted name, and a JSON-ready rest that refers to them."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, walk(part, f"{name}.{key}")] for key, part in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [walk(part, f"{name}.{i}") for i, part in enumerate(value)]}
        return {"value": value}

    rest = walk(state, prefix)
    return tensors, rest


def unflatten(rest: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten` (tuples come back as lists)."""
    if "tensor" in rest:
        return tensors[rest["tensor"]]
    if "dict" in rest:
        return {key: unflatten(part, tensors) for key, part in rest["dict"]}
    if "list" in rest:
        return [unflatten(part, tensors) for part in rest["list"]]
    return rest["value"]


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load optimizer state, laid out in memory as the parameters are, so that a resumed run runs the same kernels."""
    optimizer.load_state_dict(state)
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _complete(folder: Path) -> list[tuple[int, Path]]:
    """Folders named as checkpoints that have a manifest, newest first."""

    def found() -> Iterator[tuple[int, Path]]:
        for path in folder.iterdir() if folder.exists() else ():
            name = _NAME.fullmatch(path.name)
            if name and (path / "manifest.json").exists():
                yield int(name[1]), path

    return sorted(found(), reverse=True)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"Checkpoint {path} has format {manifest['format']}; this byol reads up to {FORMAT}. Upgrade byol."
        )
    for name, expected in manifest["files"].items():
        if (path / name).stat().st_size != expected["bytes"] or _digest(path / name) != expected["blake2b"]:
            raise ValueError(f"{name} does not match its checksum")
    return load_file(path / "state.safetensors"), json.loads((path / "state.json").read_text())


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _retire(path: Path) -> None:
    """Take a checkpoint's name away first, then delete it: a half-deleted folder is never mistaken for a checkpoint."""
    gone = path.with_name(f".del-{os.getpid()}-{path.name}")
    try:
        path.rename(gone)
        shutil.rmtree(gone)
    except OSError as failure:
        logger.warning("Could not delete the old checkpoint %s: %s", path.name, failure)
