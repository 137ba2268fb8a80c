"""Features that are computed once: kept in files named after everything they depend on."""

import logging
import os
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from byol.data.sources import Images
from byol.disk import left_behind, replacing
from byol.features.extract import Features, check_bad, computed, device_of, features_of, images_for
from byol.features.files import Rows, Values
from byol.weights.files import Encoder, check_savable, digest

logger = logging.getLogger("byol")


def cached(encoder: Encoder, images: Images, folder: Path | None, *, workers: int = 0) -> Features:
    """As `embed`, but features that a file in the folder holds are read from it, and others are kept there.

    The file is named after the encoder's tensors, description and answer to a fixed picture, and after the names of the
    images and every byte of them; labels are not in it. It appears as a whole or not at all, and a damaged one is written
    again. Without a folder, and for datasets of other libraries, which may change without a trace, nothing is kept.
    """
    checksum = None if folder is None else images.checksum()
    images = images_for(encoder, images, workers)
    if folder is None or checksum is None:
        return features_of(encoder, images, *computed(encoder, images, workers=workers))
    file = folder / f"{key(encoder, checksum)}.npz"
    kept = read(file, len(images), encoder.info.features)
    rows, x = kept or computed(encoder, images, workers=workers)
    features = features_of(encoder, images, rows, x)  # which refuses NaN
    if kept is None:
        write(file, rows, x)
    else:
        unread = np.setdiff1d(np.arange(len(images)), rows).tolist()
        check_bad(images, [(index, "as when the kept features were computed") for index in unread])
    return features


def key(encoder: Encoder, checksum: str) -> str:
    """A hexadecimal name that changes with the encoder, with the code that prepares and computes, and with the images."""
    check_savable(encoder.net)
    height, width = encoder.info.image_size
    noise = torch.Generator().manual_seed(0)
    shape = (1, encoder.info.channels, height + height // 3, width + width // 3)
    picture = torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8)
    answer = encoder(picture.to(device_of(encoder))).cpu()
    answer = (100 * answer / answer.abs().max().clamp(min=1e-12)).round()  # the last digits hang on the number of threads
    parts = f"{digest(encoder.net.state_dict(), asdict(encoder.info))} {answer.tolist()} {checksum}"
    return blake2b(parts.encode(), digest_size=16).hexdigest()


def read(file: Path, images: int, width: int) -> tuple[Rows, Values] | None:
    """Which images the features are of, and the features; None when there is no file, or a damaged one."""
    if not os.path.exists(file):
        return None
    try:
        with file.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)  # a zip archive: every byte read is checked
            rows, x = loaded["rows"], loaded["x"]
    except Exception:  # damaged files end in nearly every exception there is
        logger.warning("The features in %s are damaged; they are computed again.", file)
        return None
    if x.dtype != np.float32 or x.shape != (len(rows), width) or len(rows) > images:
        logger.warning("The features in %s have the shape %s; they are computed again.", file, x.shape)
        return None
    return rows, x


def write(file: Path, rows: Rows, x: Values) -> None:
    """Keep features; what cannot be written is computed again another time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob(".tmp-*"):
            if left_behind(left):
                left.unlink(missing_ok=True)
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, rows=rows, x=x)
    except OSError as failure:
        logger.warning("The features could not be kept in %s (%s).", file.parent, failure)
