"""Images that lie in one array, in memory or in a .npy or .npz file."""

import mmap
import zipfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from byol.data.decode import Array
from byol.data.labels import Labels, found_labels
from byol.data.readers.reader import Reader, evenly_spaced
from byol.errors import DataError, complaint

IMAGE_KEYS, LABEL_KEYS = ("images", "x", "data", "image"), ("y", "labels", "label")  # of a .npz file
HASHED = 2**30  # bytes up to which a fingerprint reads a whole array; of a larger one it reads a sample


class Arrays(Reader):
    """Images in one array (N, H, W), (N, H, W, C) or (N, C, H, W). Raises DataError for another shape.

    `tensor` says that it was a torch tensor, which decides where the channels are when the shape does not.
    """

    def __init__(
        self, data: Array, where: str, labels: Labels | None = None, *, file: str = "", tensor: bool = False
    ) -> None:
        one_image = data.ndim == 2 or (data.ndim == 3 and data.shape[2] in (1, 3, 4))
        if data.ndim not in (3, 4) or 0 in data.shape or one_image:
            expected = "(N, H, W), (N, H, W, C) or (N, C, H, W), N > 0; a single image as array[None]"
            raise DataError(f"The images in {where} have the shape {data.shape}; expected {expected}.")
        if data.dtype.itemsize == 0:  # of which a file of no bytes may claim any number
            raise DataError(f"The images in {where} are of type {data.dtype}; expected numbers.")
        self.data, self.where, self.file, self.tensor, self.all_labels = data, where, file, tensor, labels

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return f"{self.file}:{index}" if self.file else str(index)

    def read(self, index: int) -> Any:
        return torch.from_numpy(self.data[index]) if self.tensor else self.data[index]

    def digest(self, everything: bool) -> bytes:
        digest = blake2b(f"{self.data.shape} {self.data.dtype} {self.tensor}".encode())
        few = None if everything or self.data.nbytes <= HASHED else evenly_spaced(len(self), 4096)
        for start in few or range(0, len(self), 64):
            digest.update(np.ascontiguousarray(self.data[start : start + (1 if few else 64)]).tobytes())
        return digest.digest()

    def release(self) -> None:
        """Let go of a mapped file's pages."""
        if isinstance(self.data, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.data._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file travels to a worker as its name: the pickle of the map would be the whole array.
        file = getattr(self.data, "filename", None)
        return self.__dict__ if file is None else {**self.__dict__, "data": str(file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.data, str):
            self.data = np.load(self.data, mmap_mode="r", allow_pickle=False)


def array_file(path: Path, where: str) -> Arrays:
    """The images, and perhaps labels, in a .npy file (mapped, not read) or .npz file. Raises DataError.

    A .npz file gives the array named images, x, data or image, else its first of three or more dimensions.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start == b"\x93NUMPY":
            return Arrays(np.load(path, mmap_mode="r", allow_pickle=False), where, file=path.name)
        if start[:2] != b"PK":
            raise DataError(f"{where} is not what numpy.save writes; pickles are never loaded.")
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.file_size > 2**27 + 8 * part.compress_size:  # images do not shrink like that
                    raise ValueError(f"{part.compress_size:,} bytes of it claim to be {part.file_size:,}")
        with np.load(path, allow_pickle=False) as loaded:
            for key in (*IMAGE_KEYS, *loaded):
                if key not in loaded or (data := held(loaded, key)) is None or data.ndim < 3:
                    continue
                named = [loaded[name] for name in LABEL_KEYS if name in loaded]
                labels = found_labels(named[0], len(data)) if named else None
                return Arrays(data, f"{where}[{key}]", labels, file=path.name)
            shapes = ", ".join(f"{key} {loaded[key].shape}" for key in loaded) or "nothing"
        raise DataError(f"{where} holds {shapes}; expected images as an array (N, H, W, C).")
    except DataError:
        raise
    except Exception as failure:  # damaged files end in nearly every exception there is
        objects = "allow_pickle" in str(failure) or "Python objects" in str(failure)
        reason = "it holds Python objects, which are never loaded" if objects else complaint(failure)
        advice = "Save one array of numbers with numpy.save."
        raise DataError(f"{where} cannot be read ({reason}). {advice}") from failure


def held(loaded: Any, key: str) -> Array | None:
    """An array of a .npz file; None for Python objects that do not stand where images are expected."""
    try:
        found: Array = loaded[key]
        return found
    except ValueError as failure:
        if "allow_pickle" not in str(failure) or key in IMAGE_KEYS:
            raise
        return None
