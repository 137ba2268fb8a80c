"""Labels in a CSV or TSV file beside the image files: columns path and label, perhaps a header."""

import csv
import logging
import os
import re
from array import array
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np

from byol.data.labels import LONGEST, MOST_CLASSES, Labels
from byol.data.readers.folder import FileReader
from byol.errors import DataError, printable

MOST_CELLS = 2**25  # of images times labels, beyond 500 for each label of an image: each takes 8 bytes
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
LABELS = ("label", "labels", "class", "classes", "category", "tags", "target")
logger = logging.getLogger("byol")


class TableReader(FileReader):
    """Image files named in a table, in the order in which they first occur there, with their labels.

    Where some have no label none has, with a warning; only multi-label images may have none. The classes are
    in alphabetical order, or in that of the numbers that they are.
    """

    def __init__(self, path: Path, where: str = "") -> None:
        images, classes = dict[str, int](), dict[str, int]()  # in the order of the file
        owners, values, bare, several = array("q"), array("q"), array("q"), False
        where, root = where or str(path), Path(os.path.abspath(path.parent))
        for line, name, text in rows_of(path, where):
            if name not in images and not os.path.isfile(os.path.join(os.fsencode(root), name.encode())):
                raise DataError(
                    f"Line {line} of {where} names {printable(name[:200])!r}, which is not a file in "
                    f"{printable(str(root))}. Expected paths relative to the table; line 1 may name the "
                    "columns, path and label."
                )
            row = images.setdefault(name, len(images))
            words = [word for part in re.split("[;|]", text) if (word := part.strip())]
            bare.extend(() if words else (line,))
            several = several or len(words) > 1
            for word in words:
                if len(word) > LONGEST:
                    raise DataError(f"Line {line} of {where} has a label of over {LONGEST:,} letters.")
                owners.append(row)
                values.append(classes.setdefault(word, len(classes)))
        super().__init__(root, map(str.encode, images), where)
        pairs = np.unique(np.array([owners, values]), axis=1)  # each once
        several |= bool((np.diff(pairs[0]) == 0).any())
        if bare and not several:
            told = f"{len(bare):,} have no label, line {bare[0]} the first"
            logger.warning(f"The images in {where} count as unlabelled: {told}.")
            self.all_labels = None
            return
        if several and len(classes) > MOST_CLASSES:
            raise DataError(f"{where} has {len(classes):,} labels; expected at most {MOST_CLASSES:,}.")
        if several and (cells := len(images) * len(classes)) > MOST_CELLS + 500 * len(values):
            told = f"{where} has {len(values):,} labels, which as a matrix of {len(images):,} images and"
            raise DataError(
                f"{told} {len(classes):,} classes take {8 * cells / 2**30:,.1f} GiB. Give fewer classes, "
                "or labels=MATRIX to `open_images`."
            )
        known = tuple(classes)
        numbers = all(re.fullmatch("[0-9]{1,18}", word) for word in known)
        ordered = tuple(sorted(known, key=lambda word: (int(word) if numbers else 0, word)))
        labels = pairs[1]
        if several:
            labels = np.zeros((len(images), len(known)), dtype=np.int64)
            labels[pairs[0], pairs[1]] = 1
        self.all_labels = Labels(labels, known).renumbered(ordered)


def rows_of(path: Path, where: str) -> Iterator[tuple[int, str, str]]:
    """The line, the path and the label of every row. Raises DataError, with the line, for what is not one."""
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as failure:
        raise DataError(f"The table {where} cannot be read: {failure.strerror}.") from failure
    if b"\0" in data or data.startswith((b"\xff\xfe", b"\xfe\xff")):
        line = data[: max(data.find(b"\0"), 0)].count(b"\n") + 1
        raise DataError(f"Line {line} of {where} is UTF-16, or not text; save the table as UTF-8.")
    try:
        text = data.decode()
    except UnicodeDecodeError as failure:
        line = data[: failure.start].count(b"\n") + 1
        raise DataError(
            f"Line {line} of {where} is not UTF-8: its byte 0x{data[failure.start]:02x} may be of Latin-1. "
            "Save the table as UTF-8."
        ) from failure
    delimiter, columns, line = DELIMITERS[path.suffix.lower()], None, 1
    expected, count = f"expected path{delimiter if delimiter == ',' else ' TAB '}label", 0
    table = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in table:
            begin, line, cells = line, table.line_num + 1, [cell.strip() for cell in row]
            if not any(cells):
                continue
            if columns is None:
                columns, header = columns_of(cells, f"Line {begin} of {where}", expected)
                if header:
                    continue
            if len(cells) <= max(columns) or not cells[columns[0]]:
                held = "no path" if len(cells) > max(columns) else f"too few columns ({len(cells)})"
                raise DataError(f"Line {begin} of {where} has {held}; {expected}.")
            yield begin, cells[columns[0]], cells[columns[1]]
            count += 1
    except csv.Error as failure:
        raise DataError(f"Line {line} of {where} cannot be read ({failure}); {expected}.") from failure
    if not count:
        raise DataError(f"{where} names no image; {expected}, a row for every image.")


def columns_of(cells: list[str], line: str, expected: str) -> tuple[tuple[int, int], bool]:
    """Which columns of a table's first row are the path and the label, and whether that row is a header."""
    names = [cell.lower() for cell in cells]
    path, label = (
        next((names.index(name) for name in known if name in names), None) for known in (PATHS, LABELS)
    )
    if path is not None and label is not None:
        return (path, label), True
    if len(cells) == 2 and path is None:
        return (0, 1), False
    held = printable(" ".join(cells)[:100])
    raise DataError(
        f"{line} is {held!r}, which is not a path and a label, nor a header with both; {expected}."
    )
