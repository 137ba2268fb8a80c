"""Encoders in torch checkpoints of other libraries, found by their tensors' names."""

import os
import re
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from byol.disk import in_utf8
from byol.errors import CheckpointError, complaint, damaged, printable
from byol.models.build import HEADS

ZIP = b"PK\x03\x04"  # how torch's files begin, and numpy's .npz
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # and torch's before version 1.6
KINDS = {
    LEGACY: "torch",
    b"\x93NUMPY": "an array of numpy's",
    b"<": "a web page: download the file itself",
    b"version https:": "a git-lfs pointer: fetch the file it stands for",
    b"\x1f\x8b": "compressed: unpack it first",
    b"\x89HDF": "an HDF5 file",
}
STATES = ("state_dict", "model_state_dict", "model", "net", "online_backbone")  # where the tensors are
# Where each library keeps the online encoder, and what stands beside it; the first that is there counts.
LAYOUTS = (
    ("byol-pytorch", "online_encoder.net.", ""),
    ("byol-pytorch", "learner.online_encoder.net.", ""),  # its Lightning example
    ("byol", "online.encoder.net.", ""),
    ("lightly", "student_backbone.", ""),
    ("mmselfsup or mmpretrain", "backbone.", "target_net."),
    ("lightly or solo-learn", "backbone.", ""),
    ("mmselfsup", "online_net.0.", "target_net."),
    ("VISSL", "classy_state_dict.base_model.model.trunk._feature_blocks.", ""),
    ("DINO, its teacher (its student: --prefix student.backbone)", "teacher.backbone.", ""),
    ("DINO, its student", "student.backbone.", ""),  # the teacher was left out
    ("MoCo", "encoder_q.", ""),
    ("MoCo v3", "base_encoder.", ""),
    ("bolts", "online_network.encoder.", ""),
    ("an older solo-learn", "encoder.", "momentum_encoder."),
    ("bolts", "encoder.", "projection."),  # its SimCLR
)
NESTED = 6  # dicts in one another, at most
BLOCK = "layer1.0.conv1.weight"  # a tensor that every ResNet has
# torchvision's ResNet as lightly's examples keep it: nn.Sequential(*children without fc)
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# What may stand in a file and is not used: classifiers, auxiliary ones of GoogLeNet and Inception too.
CLASSIFIERS = (*HEADS, "aux1", "aux2", "AuxLogits")
MAKING = (b"]", b"}", b"(")  # instructions of a pickle of one byte, each of which makes 80 in memory
MOST_MADE = 2**21  # of those
ADVICE = (
    " Name the network with --encoder (torchvision:NAME, timm:NAME or package.module:function), or its place "
    "with --prefix."
)


@dataclass(frozen=True)
class ForeignEncoder:
    """The tensors of an encoder by their names in the network, and where they were."""

    source: str  # what the file is
    prefix: str
    tensors: dict[str, Tensor]
    left_out: dict[str, int]  # the first part of the other tensors' names -> how many there are
    seen: str = ""  # all that the file holds, for people
    padded_stem: bool = False  # solo-learn pads the small first convolution by 2
    advice: str = ADVICE  # what to try when it is not what was expected
    official: bool = False


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: "torch", "pickle", or in words."""
    refuse_distributed(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as failure:
        reason = "it is a folder" if os.path.isdir(path) else str(failure.strerror)
        raise CheckpointError(f"{path} cannot be read ({reason}). Give a checkpoint file.") from failure
    for start, kind in KINDS.items():
        if head.startswith(start):
            return kind
    if head.startswith(ZIP):
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]  # the name of the first file in it
        return "an array of numpy's" if first.endswith(b".npy") else "torch"
    if head[8:9] == b"{":  # behind the header's length
        return "a safetensors file: an encoder already, or --weights of torchvision:NAME or timm:NAME"
    if head[:1] == b"\x80" and head[1:2] > b"\x01":  # protocol 2 or newer
        return "pickle"
    return "damaged, or something else" if head else "empty"


def refuse_distributed(path: Path) -> None:
    """Raise CheckpointError for a checkpoint of torch.distributed.checkpoint, or a file of one."""
    folder = path if os.path.isdir(path) else path.parent
    part = path in (folder, folder / ".metadata") or path.suffix == ".distcp"
    if part and os.path.isfile(folder / ".metadata"):
        raise CheckpointError(
            f"{folder} is a checkpoint of torch's distributed format: a pickle tells what is in it, and byol "
            "executes none. If you trust it, make one file of it: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt"
        )


def read_foreign(path: Path, prefix: str | None = None) -> ForeignEncoder:
    """The online encoder in a torch checkpoint; `prefix` says where, if it is in none of the known places."""
    state = tensors_in(load(path), path)
    # Without the names that DDP and torch.compile put in front.
    wrappers = r"^(teacher\.|student\.)?module\.|(?<![^.])_orig_mod\."
    names = {re.sub(wrappers, r"\1", name): name for name in state}
    library = "what you named"
    if prefix is None:
        library, prefix = "a plain network", ""
        for who, where, beside in LAYOUTS:
            if all(any(name.startswith(part) for name in names) for part in (where, beside)):
                library, prefix = who, where
                break
    prefix = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    inside = [name for name in names if name.startswith(prefix)]
    tensors = {name.removeprefix(prefix): state[names[name]] for name in inside}
    if odd := [name for name, tensor in tensors.items() if not is_plain(tensor)]:
        kinds = "sparse, quantized, complex or without memory"
        raise CheckpointError(
            f"{printable(odd[0])} in {path} is {kinds}; expected plain numbers. Save those."
        )
    seen = seen_in(names)
    if not tensors:
        raise CheckpointError(f"{path} has no tensors under {prefix!r}. Its tensors are {seen}.")
    if {name.partition(".")[0] for name in tensors} == CHILDREN.keys():
        tensors = {CHILDREN[name[0]] + name[1:]: tensor for name, tensor in tensors.items()}
    # By the first part of their names, or two where the first is that of the prefix.
    others = [printable(name).split(".") for name in names if not name.startswith(prefix)]
    left = Counter(".".join(part[: 2 if part[0] == prefix.partition(".")[0] else 1]) for part in others)
    source = f"torch checkpoint of {library}" + (f", encoder under {prefix!r}" if prefix else "")
    return ForeignEncoder(source, prefix, tensors, dict(left), seen, "momentum_projector" in left)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of real numbers, all of them in memory: what a network is filled with."""
    there = tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_nested
    return there and not (tensor.is_quantized or tensor.is_complex())


def take(
    net: nn.Module, theirs: dict[str, Tensor], name: str, place: str, advice: str = ""
) -> tuple[int, dict[str, int]]:
    """Fill a network with another program's tensors: how many it took, and how many its classifier has.

    The network's own hooks may rename tensors of older versions. Other differences are refused.
    """
    state = OrderedDict((key, t.float() if t.is_floating_point() else t) for key, t in theirs.items())
    state._metadata = {"": net.state_dict()._metadata[""]}  # type: ignore[attr-defined]  # MNASNet wants it
    try:
        found = net.load_state_dict(state, strict=False, assign=any(p.is_meta for p in net.parameters()))
        missing, unexpected, shapes = found.missing_keys, found.unexpected_keys, list[str]()
    except RuntimeError as failure:  # other shapes, unless names differ too, which tell more
        ours, shapes = net.state_dict(), [complaint(failure).rstrip(".")]
        missing = [key for key in ours if key not in state]
        unexpected = [key for key in state if key not in ours]
    unknown = [key for key in unexpected if key.partition(".")[0] not in CLASSIFIERS]
    # Files of before torch 0.4.1 do not count batches.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    sides = ((missing, "missing"), (unknown, "too many"))
    said = [f"{len(keys)} {what} ({min(keys)}, ...)" for keys, what in sides if keys] or shapes
    if said:
        raise CheckpointError(f"The tensors {place} are not those of {name}: {' and '.join(said)}.{advice}")
    for key, value in net.state_dict().items():
        if not value.isfinite().all():
            raise CheckpointError(f"{key} {place} holds NaN or infinity: damaged, or the training diverged.")
    classifier = Counter(key.partition(".")[0] for key in unexpected)
    return len(theirs) - classifier.total(), dict(classifier)


def load(path: Path) -> Any:
    """What a torch checkpoint holds, by torch's restricted reader, which runs no code."""
    try:
        with path.open("rb") as file:
            mapped = file.read(4) == ZIP
            check_pickles(file, mapped)
        # Namespace is what DINO saves its settings in; it only holds.
        with torch.serialization.safe_globals([Namespace]), in_utf8(path) as named:
            return torch.load(named, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as failure:  # damaged files end in nearly every exception there is
        if refused := re.search(r"GLOBAL ([\w.]+)", str(failure)):
            raise CheckpointError(
                f"{path} holds more than tensors: it calls for {refused[1]}, which would have to be run, and "
                "nothing was. If you trust it, save its tensors alone where it was made: "
                "torch.save(checkpoint['state_dict'], 'weights.pt')."
            ) from failure
        # torch's own words before and behind its unpickler's advise to load the file without this protection.
        unpickler = re.search(r"WeightsUnpickler error: (.+)", str(failure))
        reason = unpickler[1] if unpickler else complaint(failure)
        raise damaged(path, f"cannot be read as a torch checkpoint ({reason})") from failure


def check_pickles(file: BinaryIO, zipped: bool) -> None:
    """Raise ValueError for a torch file that would take far more memory than it has bytes."""
    file.seek(0)
    if zipped:
        made, most = 0, MOST_MADE
        with zipfile.ZipFile(file) as archive:
            for one in archive.infolist():
                if one.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("it is compressed, and torch compresses nothing")
                if one.filename.endswith(".pkl"):
                    file.seek(one.header_offset)
                    made += sum(map(file.read(one.file_size).count, MAKING))
    else:  # the numbers of its tensors are behind its pickles, and any bytes occur among them
        parts = iter(partial(file.read, 2**20), b"")
        made = sum(part.count(mark) for part in parts for mark in MAKING)
        most = MOST_MADE + file.tell() // 32
    if made > most:
        raise ValueError(f"it makes {made:,} lists and dicts; expected tensors")


def tensors_in(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name: in the part of a checkpoint where trainers put them, or the checkpoint itself.

    Those in dicts of dicts, as VISSL's and DINO's, have the names of all of them, joined by dots.
    """
    for part in [loaded[key] for key in STATES if isinstance(loaded, dict) and key in loaded] + [loaded]:
        pairs = part.items() if isinstance(part, dict) else ()
        tensors = {name: t for name, t in pairs if isinstance(name, str) and isinstance(t, Tensor)}
        if tensors:
            return tensors
    if tensors := dict(nested(loaded)):
        return tensors
    keys = loaded if isinstance(loaded, dict) else [type(loaded).__name__]
    names = [key for key in keys if isinstance(key, str)]
    raise CheckpointError(
        f"{path} holds no tensors by name, only: {', '.join(names)[:200] or 'nothing'}. "
        "Expected a state dict, or one under 'state_dict'."
    )


def nested(part: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors in dicts of dicts, whose names are joined by dots."""
    if isinstance(part, Tensor):
        yield name, part
    elif isinstance(part, dict) and depth < NESTED:
        for key, value in part.items():
            if isinstance(key, str):
                yield from nested(value, f"{name}.{key}" if name else key, depth + 1)


def seen_in(names: Iterable[str]) -> str:
    """A file's tensors, for people: where its ResNets are, or the first words in which their names differ."""
    names = [printable(name) for name in names]
    resnets = [repr(name.removesuffix(BLOCK)) for name in names if name.endswith(BLOCK)]
    if resnets:
        return f"those of ResNets under {' and '.join(resnets)}"
    shared = re.sub(r"[^.]*$", "", os.path.commonprefix(names))  # noqa: RUF071  # letter by letter is meant
    groups = Counter(shared + name.removeprefix(shared).partition(".")[0] for name in names)
    return ", ".join(f"{name} ({count})" for name, count in groups.most_common(12))
