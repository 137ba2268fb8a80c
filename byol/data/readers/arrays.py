"""Images that lie in one array: which axis is which, and every kind of sample brought to uint8 (H, W, C)."""

import mmap
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from byol.data.decode import BadImage, Pixels
from byol.data.labels import Labels, found_labels
from byol.data.readers.folder import checksum
from byol.data.spread import spread
from byol.errors import DataError

Array = np.ndarray[Any, Any]
IMAGE_KEYS, LABEL_KEYS = ("images", "x", "data", "image"), ("y", "labels", "label")  # of a .npz file
SLACK = 1e-3  # by which a float may miss [0, 1]: interpolation overshoots a little
HASHED = 2**30  # bytes up to which a fingerprint reads a whole array; of a larger one it reads a sample


class Arrays:
    """Images in one array (N, H, W), (N, H, W, C) or (N, C, H, W), in memory or mapped from a .npy file.

    Samples are uint8, bool, uint16 or int16 (their largest value is white) or floats from 0 to 1. `tensor` says that the
    array was a torch tensor, which decides where the channels are when the shape does not. Raises DataError.
    """

    def __init__(
        self,
        data: Array,
        where: str,
        channels: int | None,
        *,
        labels: Labels | None = None,
        file: str = "",
        tensor: bool = False,
    ) -> None:
        one_image = data.ndim == 2 or (data.ndim == 3 and data.shape[2] in (1, 3, 4))
        if data.ndim not in (3, 4) or 0 in data.shape or one_image:
            raise DataError(
                f"The images in {where} have the shape {data.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W), N > 0."
                + (" A single image is a set of one as array[None]." if one_image else "")
            )
        self.data, self.where, self.file, self.labels = data, where, file, labels
        self.axis = channel_axis(data.shape[1:], channels, tensor)
        own = 1 if self.axis is None else data.shape[1 + self.axis]
        self.channels = own if channels is None else channels
        reasons = [reason for reason in map(self._unusable, spread(len(data))) if reason]
        if len(reasons) == len(spread(len(data))):
            raise DataError(f"The images in {where} cannot be used. The first: {reasons[0]}.")

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return f"{self.file}:{index}" if self.file else str(index)

    def picture(self, index: int) -> Pixels:
        return plain_pixels(self.data[index], self.axis, self.channels)

    def size(self, index: int) -> tuple[int, int]:
        height, width = (size for axis, size in enumerate(self.data.shape[1:]) if axis != self.axis)
        return height, width

    def identity(self) -> bytes:
        """A digest of the array: of all of it up to 1 GiB, else of 4,096 images."""
        digest = blake2b(f"{self.data.shape} {self.data.dtype}".encode())
        count = len(self.data)
        starts = range(0, count, 64) if self.data.nbytes <= HASHED else spread(count, 4096)
        for start in starts:
            stop = start + (64 if self.data.nbytes <= HASHED else 1)
            digest.update(np.ascontiguousarray(self.data[start:stop]).tobytes())
        return digest.digest()

    def checksum(self) -> bytes:
        """A digest of all that the array, or its file, holds, and of how it is read."""
        how = f"{self.axis} {self.channels} ".encode()
        if isinstance(self.data, np.memmap) and self.data.filename is not None:
            return how + checksum([self.data.filename])
        if self.data.nbytes <= HASHED:
            return how  # `identity` has read it all
        digest = blake2b(how)
        for start in range(0, len(self.data), 64):
            digest.update(np.ascontiguousarray(self.data[start : start + 64]).tobytes())
        return digest.digest()

    def release(self) -> None:
        """Let go of a mapped file's pages; they are read again when they are needed."""
        if isinstance(self.data, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.data._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def _unusable(self, index: int) -> str:
        try:
            self.picture(index)
        except BadImage as failure:
            return str(failure)
        return ""

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file travels to a worker as its name: the pickle of the map would be the whole array.
        mapped = isinstance(self.data, np.memmap) and self.data.filename is not None
        return {**self.__dict__, "data": str(self.data.filename)} if mapped else self.__dict__  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.data, str):
            self.data = np.load(self.data, mmap_mode="r", allow_pickle=False)


def channel_axis(shape: tuple[int, ...], channels: int | None, tensor: bool) -> int | None:
    """Which axis of one image holds the channels: 0 or 2, or None for (H, W).

    It is the axis that has the channels asked for; else the one of length 1, 3 or 4; else the one beside a square; else
    the shortest. Where both do, or none, the library's own order counts: tensors (C, H, W), arrays (H, W, C).
    """
    if len(shape) == 2:
        return None
    first, middle, last = shape
    for in_front, behind in (
        (first == channels, last == channels),
        (first in (1, 3, 4), last in (1, 3, 4)),
        (middle == last, first == middle),
        (first == min(shape), last == min(shape)),
    ):
        if in_front != behind:
            return 0 if in_front else 2
        if in_front and behind:
            break
    return 0 if tensor else 2


def plain_pixels(samples: Array, axis: int | None, channels: int) -> Pixels:
    """One image (H, W), (H, W, C) or, with axis 0, (C, H, W) as uint8 (H, W, channels). Raises BadImage."""
    samples = samples[:, :, None] if axis is None else samples.transpose(1, 2, 0) if axis == 0 else samples
    pixels = eight_bits(np.asarray(samples))
    own = pixels.shape[2]
    if own == channels:
        return pixels
    if own == 1 and channels == 3:
        return pixels.repeat(3, axis=2)
    if own == 3 and channels == 1:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    raise BadImage(f"it has {own} channels where {channels} are wanted; ask for {own} channels")


def eight_bits(samples: Array) -> Pixels:
    """Samples of any supported kind on the scale of uint8. Raises BadImage."""
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if samples.dtype == np.uint8:
        return samples
    if kind == "b":
        return samples.astype(np.uint8) * np.uint8(255)
    if kind == "f":
        if not np.isfinite(samples).all():
            raise BadImage("it has samples that are not finite")
        low, high = float(samples.min()), float(samples.max())
        if low < -SLACK or high > 1 + SLACK:
            raise BadImage(
                f"its samples go from {low:.4g} to {high:.4g}; expected floats from 0 to 1, or uint8"
            )
        return (samples.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    if size == 2 and kind in "iu":
        white = 65535 if kind == "u" else 32767
        if samples.min() < 0:
            raise BadImage(
                f"its samples go down to {samples.min()}; expected 16-bit samples from 0 (black) to {white} (white)"
            )
        return ((samples.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    raise BadImage(f"its samples are {samples.dtype}; expected uint8, uint16 or floats from 0 to 1")


def to_numpy(tensor: Tensor) -> Array:
    """A tensor of any device as an array; bfloat16, which numpy has not, as float32."""
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def array_file(path: Path, where: str, channels: int | None) -> Arrays:
    """The images, and labels where there are some, in a .npy file (mapped, not read) or .npz file. Raises DataError.

    A .npz file gives the array named images, x, data or image, else its first of three or more dimensions.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
            if start == b"\x93NUMPY":
                return Arrays(
                    np.load(path, mmap_mode="r", allow_pickle=False), where, channels, file=path.name
                )
            if start[:2] != b"PK":
                raise DataError(
                    f"{where} is not what numpy.save or numpy.savez writes; pickles are never loaded."
                )
            file.seek(0)
            data, key, labels = _from_npz(np.load(file, allow_pickle=False), where)
            return Arrays(data, f"{where}[{key}]", channels, labels=labels, file=path.name)
    except DataError:
        raise
    except Exception as failure:  # damaged files end in nearly every exception there is
        objects = "allow_pickle" in str(failure) or "Python objects" in str(failure)
        reason = "it holds Python objects, which are never loaded" if objects else str(failure)
        raise DataError(
            f"{where} cannot be read ({reason}). Save one array of numbers with numpy.save."
        ) from failure


def _from_npz(loaded: Mapping[str, Array], where: str) -> tuple[Array, str, Labels | None]:
    """The images of a .npz file, their key and their labels."""
    for key in (*IMAGE_KEYS, *loaded):
        if key in loaded and loaded[key].ndim >= 3:
            data = loaded[key]
            named = next((loaded[name] for name in LABEL_KEYS if name in loaded), None)
            return data, key, None if named is None else found_labels(named, len(data))
    shapes = ", ".join(f"{key} {loaded[key].shape}" for key in loaded) or "nothing"
    raise DataError(f"{where} holds {shapes}; expected an array of images, such as `images` (N, H, W, C).")
