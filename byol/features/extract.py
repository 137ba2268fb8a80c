"""Images through an encoder: the matrix that everything after training starts from."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.decode import BadImage
from byol.data.labels import is_matrix
from byol.data.sources import Images, open_images, printable
from byol.data.workers import arriving, loader
from byol.disk import replacing
from byol.errors import ConfigError, DataError
from byol.weights.files import Encoder

logger = logging.getLogger("byol")
BATCH = 256  # images per forward pass
Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Features:
    """The representations of a set of images, in the images' order."""

    x: np.ndarray[Any, np.dtype[np.float32]]  # (N, D)
    y: np.ndarray[Any, np.dtype[np.int64]] | None = None  # (N,) class numbers, or (N, classes) of 0 and 1, if there are labels
    names: list[str] = field(default_factory=list)  # N, or none
    classes: tuple[str, ...] | None = None  # what the class numbers stand for

    def __post_init__(self) -> None:
        # Other numbers are taken too: float64 of scikit-learn, labels of a byte each.
        x, y = np.asarray(self.x, dtype=np.float32), None if self.y is None else np.asarray(self.y)
        if x.ndim != 2 or 0 in x.shape:
            raise DataError(f"Features have shape {x.shape}; expected (N, D): one row per image.")
        if not np.isfinite(x).all():
            rows = np.flatnonzero(~np.isfinite(x).all(axis=1))
            raise DataError(
                f"{len(rows)} of {len(x)} feature rows hold NaN or infinity (the first is row {rows[0]}). "
                "The encoder's weights are damaged or diverged; take another checkpoint."
            )
        if self.names and len(self.names) != len(x):
            raise DataError(f"There are {len(self.names)} names for {len(x)} feature rows; expected one each.")
        if y is not None:
            matrix = len(y) == len(x) and is_matrix(y)
            if not matrix and (y.shape != (len(x),) or y.dtype.kind not in "iu" or y.min() < 0):
                raise DataError(
                    f"The labels are {y.dtype} of shape {y.shape}; expected the number of a class, from 0, for each of the "
                    f"{len(x)} feature rows, or a row of 0 and 1 for each."
                )
            if matrix and self.classes is not None and y.shape[1] != len(self.classes):
                raise DataError(f"The labels have {y.shape[1]} columns, but {len(self.classes)} classes are named.")
            if not matrix and self.classes is not None and y.max() >= len(self.classes):
                raise DataError(f"The labels go up to {y.max()}, but {len(self.classes)} classes are named.")
            y = y.astype(np.int64, copy=False)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    def save(self, path: str | Path) -> None:
        """Write .npz (x, y, names, classes) or .npy (x alone); the file appears as a whole or not at all."""
        path = Path(path)
        with replacing(path) as temporary, temporary.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, self.x)
            else:
                parts: dict[str, Any] = {"x": self.x, "names": np.array(self.names, dtype=str)}
                if self.y is not None:
                    parts["y"] = self.y
                if self.classes is not None:
                    parts["classes"] = np.array(self.classes, dtype=str)
                np.savez(file, **parts)

    @classmethod
    def load(cls, path: str | Path) -> "Features":
        """Read what `save` wrote. Raises DataError when the file holds something else."""
        try:
            with open(path, "rb") as file:
                loaded = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    return cls(loaded)
                names = loaded["names"].tolist() if "names" in loaded else []
                classes = tuple(loaded["classes"].tolist()) if "classes" in loaded else None
                return cls(loaded["x"], loaded.get("y"), names, classes)
        except Exception as failure:  # damaged files end in nearly every exception there is
            raise DataError(
                f"{path} does not hold features ({failure}); expected an .npz or .npy that `byol embed` wrote."
            ) from failure


class _Prepared(torch.utils.data.Dataset[tuple[int, Tensor | str]]):
    """Each image as the encoder is fed it, or why it cannot be read."""

    def __init__(self, images: Images, encoder: Encoder) -> None:
        self.images, self.channels, self.size = images, encoder.info.channels, encoder.info.image_size
        self.prepare = encoder.prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            pixels = torch.from_numpy(np.ascontiguousarray(self.images.array(index)))
        except BadImage as failure:
            return index, str(failure)
        return index, self.prepare(pixels.permute(2, 0, 1)[None])[0]


def _gathered(samples: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, list[tuple[int, str]]]:
    """What a worker sends: which images, their pixels (n, C, h, w), and the unreadable ones with the reasons.

    One tensor, because every tensor that travels apart holds a file open until it is used.
    """
    good = [(index, pixels) for index, pixels in samples if isinstance(pixels, Tensor)]
    pixels = torch.stack([pixels for _, pixels in good]) if good else None
    return [index for index, _ in good], pixels, [(index, why) for index, why in samples if isinstance(why, str)]


def check_encoder(encoder: object) -> None:
    """Raise ConfigError for anything but an Encoder, which alone knows how its images are prepared."""
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"The encoder is a {type(encoder).__name__}; expected what load_encoder(path) gives, or run.encoder. "
            "A learner embeds a batch with learner.embed(images)."
        )


def embed(encoder: Encoder, images: Any, *, workers: int = 0) -> Features:
    """The representation of every image, on the encoder's device, in the images' order.

    `images` is anything `open_images` takes. Unreadable images are left out with a warning that names them. Raises
    DataError when none can be read.
    """
    check_encoder(encoder)
    source = images if isinstance(images, Images) else open_images(images, channels=encoder.info.channels)
    return features_of(source, *embedded(encoder, source, workers=workers))


def embedded(encoder: Encoder, source: Images, *, workers: int) -> tuple[Rows, np.ndarray[Any, np.dtype[np.float32]]]:
    """Which of the images could be read, int64 (n,), and their representations (n, D)."""
    if workers < 0:
        raise ConfigError(f"workers is {workers}; expected 0 or more.")
    if source.channels != encoder.info.channels:
        raise ConfigError(
            f"{source.description} have {source.channels} channels, the encoder takes {encoder.info.channels}. "
            "Open the images with channels= to match."
        )
    device = device_of(encoder)
    prepared: torch.utils.data.DataLoader[Any] = loader(
        _Prepared(source, encoder),
        workers=workers,
        batch_size=BATCH,
        collate_fn=_gathered,
        generator=torch.Generator(),  # else the loader draws a seed from torch's own random state
    )
    rows: list[int] = []
    parts: list[Tensor] = []
    bad: list[str] = []
    for indices, pixels, unreadable in arriving(prepared):
        bad += [f"{printable(source.name(index))} ({reason})" for index, reason in unreadable]
        if pixels is not None:
            rows += indices
            parts.append(encoder(pixels.to(device)).cpu())
    if not parts:
        raise DataError(f"None of the {len(source)} images can be read: {bad[0] if bad else 'there are none'}.")
    if bad:
        logger.warning("%d unreadable images are left out: %s%s", len(bad), ", ".join(bad[:5]), " ..." if len(bad) > 5 else "")
    return np.array(rows, dtype=np.int64), torch.cat(parts).numpy()


def features_of(images: Images, rows: Rows, x: np.ndarray[Any, np.dtype[np.float32]]) -> Features:
    """The matrix with the labels and names of the images that its rows are of."""
    labels = images.label_matrix if images.labels is None else images.labels
    names = [images.name(row) for row in rows.tolist()]
    return Features(x, None if labels is None else labels[rows], names, images.classes)


def device_of(encoder: Encoder) -> torch.device:
    """Where an encoder's tensors are; the CPU for one without any, such as raw pixels."""
    return next((tensor.device for tensor in encoder.state_dict().values()), torch.device("cpu"))
