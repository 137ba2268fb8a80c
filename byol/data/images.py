"""`Images`: what every source of pictures becomes, and all the rest of the program knows of them."""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from byol.data.arrays import to_numpy
from byol.data.decode import BadImage, Pixels, header_size, open_picture
from byol.data.folder import FileReader
from byol.data.labels import Labels
from byol.data.parquet import ParquetReader, Rows
from byol.data.spread import spread
from byol.errors import DataError


class Source(Protocol):
    """What stands behind `Images`: a number of pictures that are read one by one."""

    where: str  # for people: "photos/", "an array of shape (100, 32, 32, 3)"
    channels: int

    @property
    def labels(self) -> Labels | None: ...
    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def picture(self, index: int) -> Image.Image | Pixels: ...
    def size(self, index: int) -> tuple[int, int]: ...
    def identity(self) -> bytes: ...
    def checksum(self) -> bytes | None: ...
    def release(self) -> None: ...


class Images:
    """A set of images, read one by one. `open_images` makes them."""

    def __init__(self, source: Source, rows: Rows | None = None, labels: Labels | None = None) -> None:
        self._source = source
        self._rows = rows  # int64 (N,): which of the source's images, all when None
        self._given = labels  # of all the source's images, in place of its own

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def name(self, index: int) -> str:
        """A file's path from the folder it was found in, `file.parquet:row`, or the number of an array's image."""
        return self._source.name(self._row(index))

    def picture(self, index: int) -> Image.Image | Pixels:
        """One image as its source has it: a PIL image (mode RGB or L), or uint8 (H, W, C). Raises BadImage."""
        return self._source.picture(self._row(index))

    def array(self, index: int) -> Pixels:
        """One image as uint8 (H, W, C), a copy. Raises BadImage."""
        pixels: Pixels = np.array(self.picture(index))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    @property
    def channels(self) -> int:
        return self._source.channels

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """The class of every image, int64 (N,); None without labels or with several an image. Read when first asked for."""
        return self._labels(dimensions=1)

    @property
    def label_matrix(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Which classes every image is of, int64 (N, classes) of 0 and 1, where images have several labels; else None."""
        return self._labels(dimensions=2)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes' names: a label, or a column of `label_matrix`, is a place among them. None without labels."""
        return None if self._all_labels is None else self._all_labels.classes

    def with_classes(self, classes: tuple[str, ...]) -> "Images":
        """The same images with their labels numbered by other names, which hold all of theirs."""
        labels = self._all_labels
        return self if labels is None else Images(self._source, self._rows, labels.renumbered(classes))

    def subset(self, rows: Tensor | Rows | list[int]) -> "Images":
        """Some of the images, in the given order: int (n,) or, as a mask, bool (N,). Nothing is copied."""
        chosen = to_numpy(rows) if isinstance(rows, Tensor) else np.asarray(rows)
        if chosen.dtype == bool and chosen.shape != (len(self),):
            raise IndexError(f"a mask of shape {chosen.shape} for {len(self)} images")
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows {chosen.min()} to {chosen.max()} of {len(self)} images")
        return Images(self._source, chosen if self._rows is None else self._rows[chosen], self._given)

    def uniform_size(self) -> tuple[int, int] | None:
        """Height and width when all images share them, else None. Of files a spread sample of 64 headers is looked at."""
        seen: tuple[int, int] | None = None
        for index in spread(len(self)):
            try:
                size = self._source.size(self._row(index))
            except BadImage:
                continue
            if seen is not None and size != seen:
                self.release()
                return None
            seen = size
        self.release()
        return seen

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes when the images do: their names, their number, or a sample of what they hold."""
        digest = blake2b(self._source.identity(), digest_size=16)
        if self._rows is not None:
            digest.update(self._rows.tobytes())
        return digest.hexdigest()

    def checksum(self) -> str | None:
        """As `fingerprint`, of every byte that the images are read from, and of how; None where nobody can tell."""
        held = self._source.checksum()
        return None if held is None else self.fingerprint() + blake2b(held, digest_size=16).hexdigest()

    @property
    def description(self) -> str:
        """For people: "1,234 images in photos/ (5 classes)"."""
        count = f"{len(self):,}" if self._rows is None else f"{len(self):,} of {len(self._source):,}"
        classes = "" if self.classes is None else f" ({len(self.classes)} {'class' if len(self.classes) == 1 else 'classes'})"
        return f"{count} {'image' if count == '1' else 'images'} in {self._source.where}{classes}"

    def release(self) -> None:
        """Let go of caches and open files; what is needed later is read again."""
        self._source.release()

    def gathered(self) -> AbstractContextManager[None]:
        """For a while, have pictures that are slow to read in a shuffled order, those in parquet, ready to be read in any."""
        reader = self._source.reader if isinstance(self._source, Encoded) else None
        return reader.gathered(self._rows) if isinstance(reader, ParquetReader) else nullcontext()

    def _labels(self, dimensions: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        labels = self._all_labels
        if labels is None or labels.values.ndim != dimensions:
            return None
        return labels.values if self._rows is None else labels.values[self._rows]

    @property
    def _all_labels(self) -> Labels | None:
        return self._given or self._source.labels

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return index if self._rows is None else int(self._rows[index])


class Encoded:
    """Pictures that are read as encoded bytes: files, or rows of parquet files."""

    def __init__(
        self, reader: FileReader | ParquetReader, where: str, channels: int | None, max_pixels: int, *, folders: bool = False
    ) -> None:
        if channels not in (None, 1, 3):
            raise DataError(f"{channels} channels were asked for, but pictures in {where} give 3 (colour) or 1 (gray).")
        self.reader, self.where, self.max_pixels = reader, where, max_pixels
        self.channels = channels or 3
        self.folders = folders  # the first folder level names the classes

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        return self.reader.name(index)

    def picture(self, index: int) -> Image.Image:
        return open_picture(self.reader.read(index), channels=self.channels, max_pixels=self.max_pixels)

    def size(self, index: int) -> tuple[int, int]:
        return header_size(self.reader.read(index))

    @cached_property
    def labels(self) -> Labels | None:
        if isinstance(self.reader, ParquetReader):
            return self.reader.labels()
        found = self.reader.first_folders() if self.folders else None
        return None if found is None else Labels(*found)

    def identity(self) -> bytes:
        return self.reader.identity()

    def checksum(self) -> bytes:
        return f"{self.channels} {self.max_pixels} ".encode() + self.reader.checksum()

    def release(self) -> None:
        self.reader.release()
