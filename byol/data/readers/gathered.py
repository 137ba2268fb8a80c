"""Encoded pictures one behind another in a temporary file, where any of them is read at once."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

logger = logging.getLogger("byol")
TOLD_BYTES = 2**30  # from this size on people are told what they wait for


class Gathered:
    """A file without a name: the operating system deletes it with the last process that uses it, even a killed one."""

    def __init__(self, count: int, pictures: Iterable[tuple[int, Any]]) -> None:
        """Write (index, bytes) of some of `count` pictures. Raises OSError when the disk is full."""
        self._starts = np.full(count, -1, dtype=np.int64)
        self._lengths = np.zeros(count, dtype=np.int64)
        self._file = tempfile.TemporaryFile(dir=temporary_folder())  # noqa: SIM115  # closed by `close`
        end = 0
        try:
            for index, data in pictures:
                self._starts[index], self._lengths[index] = end, len(data)
                end += self._file.write(data)
            self._file.flush()
        except BaseException:
            self.close()
            raise

    def read(self, index: int) -> bytes | None:
        """The bytes of a picture, or None for one that was not written. Processes that were forked may read at once."""
        if self._starts[index] < 0:
            return None
        return os.pread(self._file.fileno(), int(self._lengths[index]), int(self._starts[index]))

    def close(self) -> None:
        self._file.close()


def temporary_folder() -> str:
    """Where large temporary files belong: TMPDIR, else /var/tmp, which unlike /tmp is never kept in memory."""
    found = os.environ.get("TMPDIR"), "/var/tmp", tempfile.gettempdir()
    return next(folder for folder in found if folder and os.path.isdir(folder) and os.access(folder, os.W_OK))


def room_for(size: int) -> bool:
    """Whether so many bytes fit beside a reserve; says what is done, or what it would take to do it."""
    folder = temporary_folder()
    free = shutil.disk_usage(folder).free
    if size > 0.9 * free:
        logger.warning(
            "Pictures in parquet are read whole row groups at a time, which is slow: %s has %.1f GB free, and %.1f GB are "
            "needed to lay them out for a shuffled order. Set TMPDIR to a folder with more.",
            folder,
            free / 1e9,
            size / 0.9 / 1e9,
        )
        return False
    if size > TOLD_BYTES:
        logger.warning(
            "Laying out up to %.1f GB of pictures for a shuffled order, in a temporary file in %s.",
            size / 1e9,
            folder,
        )
    return True
