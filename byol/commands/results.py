"""How `byol search` shows what it found: a table, JSON, a picture sheet."""

import json
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from byol.data.images import Images
from byol.errors import printable
from byol.features.features import Features, Rows, Values
from byol.features.sheet import Cell, pictures, write_sheet

MOST_PICTURES = 500  # on a sheet


@dataclass(frozen=True)
class Group:
    """Rows that belong together: the neighbours of a query, near-duplicates, a cluster; or all results."""

    title: str  # the query, or the group's number; empty for all that was found
    rows: Rows  # (n,)
    values: Values | None = None  # (n,) similarity or distance of each
    query: Image.Image | int | None = None  # the picture, or the row, that they are the neighbours of


@dataclass(frozen=True)
class Results:
    """What was found, and what it is called."""

    groups: list[Group]
    kind: str = ""  # what a group is: query, group, cluster
    measure: str = ""  # what a value is: similarity, distance
    wanted: int = 0  # images of each group, where a number was requested

    def shown(self, group: Group, k: int) -> list[int]:
        """The rows of a group that people are shown: of a cluster the k most typical ones, else all."""
        rows: list[int] = group.rows[: k if self.kind == "cluster" else None].tolist()
        return rows


def name_of(features: Features, row: int) -> str:
    """An image's name; its row when the features have no names."""
    return features.names[row] if features.names else str(row)


def as_json(results: Results, features: Features) -> str:
    """A list of groups with all their images; of images alone when there are no groups."""
    found: list[dict[str, Any]] = []
    for group in results.groups:
        images = [{"row": row, "name": name_of(features, row)} for row in group.rows.tolist()]
        for image, value in zip(images, [] if group.values is None else group.values.tolist(), strict=False):
            image[results.measure] = round(value, 6)
        title = group.title if results.kind == "query" else int(group.title or 0)
        found.append({results.kind: title, "images": images})
    return json.dumps(found if results.kind else found[0]["images"], indent=1)


def as_table(results: Results, features: Features, k: int) -> str:
    """A line for each image that is shown, numbers to the right."""
    lines = [[results.kind, "row", results.measure, "name"]]
    for group in results.groups:
        size = f" ({len(group.rows):,} images)" if results.kind == "cluster" else ""
        for place, row in enumerate(results.shown(group, k)):
            value = "" if group.values is None else f"{group.values[place]:.4f}"
            lines.append([printable(group.title) + size, str(row), value, printable(name_of(features, row))])
    columns = [[*column] for column in zip(*lines, strict=True) if any(column)]
    for column in columns[:-1]:
        width, numbers = max(map(len, column)), column[0] in ("row", results.measure)
        column[:] = [word.rjust(width) if numbers else word.ljust(width) for word in column]
    return "\n".join(map("  ".join, zip(*columns, strict=True)))


def draw(results: Results, features: Features, k: int, images: Images, path: Path) -> None:
    """A line of pictures, or several, for each group; what does not fit on one sheet is left out and told."""
    counts = list(accumulate(len(results.shown(group, k)) for group in results.groups))
    fitting = sum(count <= MOST_PICTURES for count in counts) or 1
    chosen = [(group, results.shown(group, k)[:MOST_PICTURES]) for group in results.groups[:fitting]]
    drawn = sum(len(rows) for _, rows in chosen)
    if drawn < counts[-1]:
        print(f"shortened  {path} shows the first {drawn:,} of {counts[-1]:,} images", file=sys.stderr)
    wanted = {row for _, rows in chosen for row in rows}
    found = pictures(images, features, wanted | {g.query for g, _ in chosen if isinstance(g.query, int)})
    lines = []
    for group, rows in chosen:
        cells = []
        if group.query is not None:
            picture = found.get(group.query) if isinstance(group.query, int) else group.query
            cells.append(Cell(picture, ("query", group.title), framed=True))
        for place, row in enumerate(rows):
            prefix = f"{results.kind} {group.title}  " if results.kind in ("group", "cluster") else ""
            value = f"{place + 1}" if group.values is None else f"{group.values[place]:.4f}"
            cells.append(Cell(found.get(row), (prefix + value, name_of(features, row))))
        lines.append(cells)
    write_sheet(lines, path)
