"""Encoders in the torch checkpoints of byol-pytorch, lightly and solo-learn, found by the prefixes of their tensors' names."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byol.errors import CheckpointError, complaint

ZIP, LEGACY = (
    b"PK\x03\x04",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
)  # how torch's files begin, since and before 1.6
NPY = b"\x93NUMPY"
STATES = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "online_backbone",
)  # where checkpoints keep the tensors
# Where each library keeps the online encoder, and what stands beside it; the first that is there counts.
LAYOUTS = (
    ("byol-pytorch", "online_encoder.net.", ""),
    ("byol-pytorch", "learner.online_encoder.net.", ""),  # its Lightning example
    ("byol", "online.encoder.net.", ""),
    ("lightly", "student_backbone.", ""),
    ("lightly or solo-learn", "backbone.", ""),
    ("an older solo-learn", "encoder.", "momentum_encoder."),
)
# torchvision's ResNet as lightly's examples keep it: nn.Sequential(*children without fc)
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class ForeignEncoder:
    """The tensors of an encoder by their names in the network, and where they were."""

    library: str
    prefix: str
    tensors: dict[str, Tensor]
    left_out: dict[str, int]  # the first part of the other tensors' names -> how many there are
    padded_stem: bool  # solo-learn pads the small first convolution by 2


def is_torch(head: bytes) -> bool:
    """Whether a file's first bytes (64 or so) are those of a torch checkpoint; numpy's .npz are zip archives too."""
    first = head[
        30 : 30 + int.from_bytes(head[26:28], "little")
    ]  # the name of the first file in a zip archive
    return head.startswith(LEGACY) or (head.startswith(ZIP) and not first.endswith(b".npy"))


def read_foreign(path: Path, prefix: str | None = None) -> ForeignEncoder:
    """The online encoder in a torch checkpoint; `prefix` says where it is when it is in none of the known places.

    Raises CheckpointError for a file that is damaged, needs code to be run, or holds no tensors there.
    """
    state = tensors_in(load(path), path)
    names = {
        re.sub(r"^module\.|(?<![^.])_orig_mod\.", "", name): name for name in state
    }  # of DDP, of torch.compile
    library = "what you named"
    if prefix is None:
        there = (
            (who, where)
            for who, where, beside in LAYOUTS
            if all(any(name.startswith(part) for name in names) for part in (where, beside))
        )
        library, prefix = next(there, ("a plain network", ""))
    prefix = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    tensors = {
        name.removeprefix(prefix): state[full] for name, full in names.items() if name.startswith(prefix)
    }
    if not tensors:
        raise CheckpointError(f"{path} has no tensors under {prefix!r}. It has: {listed(grouped(names))}.")
    if {name.partition(".")[0] for name in tensors} == CHILDREN.keys():
        tensors = {
            re.sub(r"^\d", lambda child: CHILDREN[child[0]], name): tensor for name, tensor in tensors.items()
        }
    left_out = grouped((name for name in names if not name.startswith(prefix)), prefix)
    return ForeignEncoder(library, prefix, tensors, left_out, "momentum_projector" in left_out)


def load(path: Path) -> Any:
    """What a torch checkpoint holds, by torch's restricted reader, which runs no code."""
    try:
        with path.open("rb") as file:
            mapped = file.read(4) == ZIP
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as failure:  # damaged files end in nearly every exception there is
        refused = re.search(r"GLOBAL ([\w.]+)", str(failure))
        if refused:
            raise CheckpointError(
                f"{path} holds more than tensors: it calls for {refused[1]}, which would have to be run, and nothing was. If "
                "you trust it, save its tensors alone where it was made: torch.save(checkpoint['state_dict'], 'weights.pt')."
            ) from failure
        # torch's own words before and behind its unpickler's advise to load the file without this protection.
        unpickler = re.search(r"WeightsUnpickler error: (.+)", str(failure))
        reason = unpickler[1] if unpickler else complaint(failure)
        raise CheckpointError(
            f"{path} cannot be read as a torch checkpoint ({reason}). Take another copy."
        ) from failure


def tensors_in(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name: in the part of a checkpoint where trainers put them, or the checkpoint itself."""
    for part in [loaded[key] for key in STATES if isinstance(loaded, dict) and key in loaded] + [loaded]:
        if isinstance(part, dict):
            tensors = {
                name: value
                for name, value in part.items()
                if isinstance(name, str) and isinstance(value, Tensor)
            }
            if tensors:
                return tensors
    found = (", ".join(map(str, loaded)) or "nothing") if isinstance(loaded, dict) else type(loaded).__name__
    raise CheckpointError(
        f"{path} holds no tensors by name, only: {found[:200]}. Expected a state dict, or one under 'state_dict'."
    )


def grouped(names: Iterable[str], prefix: str = "") -> dict[str, int]:
    """How many names begin with the same first part; two parts tell apart what begins like the prefix."""
    root = prefix.partition(".")[0]
    parts = (name.split(".") for name in names)
    return dict(Counter(".".join(part[: 2 if part[0] == root else 1]) for part in parts))


def listed(groups: dict[str, int]) -> str:
    """Groups of tensors, for people."""
    return ", ".join(f"{name} ({count})" for name, count in groups.items()) or "nothing"
