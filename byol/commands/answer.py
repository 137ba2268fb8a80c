"""How `byol search` says what it found: a table, JSON, a picture sheet."""

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
    """Rows that belong together: the neighbours of a query, near-duplicates, a cluster; or all that was found."""

    title: str  # the query, or the group's number; empty for all that was found
    rows: Rows  # (n,)
    values: Values | None = None  # (n,) similarity or distance of each
    query: Image.Image | int | None = None  # the picture, or the row, that they are the neighbours of


@dataclass(frozen=True)
class Answer:
    """What was found, and what it is called."""

    groups: list[Group]
    kind: str = ""  # what a group is: query, group, cluster
    measure: str = ""  # what a value is: similarity, distance


def name_of(features: Features, row: int) -> str:
    """An image's name; its row when the features have no names."""
    return features.names[row] if features.names else str(row)


def as_json(answer: Answer, features: Features) -> str:
    """A list of groups with all their images; of images alone when there are no groups."""

    def image(group: Group, place: int) -> dict[str, Any]:
        row = int(group.rows[place])
        value = {} if group.values is None else {answer.measure: round(float(group.values[place]), 6)}
        return {"row": row, "name": name_of(features, row), **value}

    lists = [[image(group, place) for place in range(len(group.rows))] for group in answer.groups]
    if not answer.kind:
        return json.dumps(lists[0], indent=1)
    heads: list[dict[str, Any]] = [
        {answer.kind: g.title if answer.kind == "query" else int(g.title)} for g in answer.groups
    ]
    return json.dumps(
        [{**head, "images": images} for head, images in zip(heads, lists, strict=True)], indent=1
    )


def as_table(answer: Answer, features: Features, k: int) -> str:
    """A line for each image; of a cluster the k nearest to its centre."""
    lines = [[answer.kind, "row", answer.measure, "name"]]
    for group in answer.groups:
        title = (
            f"{group.title} ({len(group.rows):,} images)"
            if answer.kind == "cluster"
            else printable(group.title)
        )
        for place in range(shown(answer, group, k)):
            row = int(group.rows[place])
            value = "" if group.values is None else f"{group.values[place]:.4f}"
            lines.append([title, str(row), value, printable(name_of(features, row))])
    columns = [
        column for column in range(4) if any(line[column] for line in lines)
    ]  # not those that this answer lacks
    width = {column: max(len(line[column]) for line in lines) for column in columns}
    align = {0: "<", 1: ">", 2: ">", 3: ""}
    return "\n".join(
        "  ".join(f"{line[c]:{align[c]}{width[c] if c < 3 else ''}}" for c in columns) for line in lines
    )


def draw(answer: Answer, features: Features, k: int, images: Images, path: Path) -> None:
    """A line of pictures, or several, for each group; what does not fit on one sheet is left out and told."""
    counts = list(accumulate(shown(answer, group, k) for group in answer.groups))
    groups = [
        group for group, count in zip(answer.groups, counts, strict=True) if count <= MOST_PICTURES
    ] or answer.groups[:1]
    chosen = [(group, group.rows[: min(shown(answer, group, k), MOST_PICTURES)].tolist()) for group in groups]
    drawn = sum(len(members) for _, members in chosen)
    if drawn < counts[-1]:
        print(f"shortened  {path} shows the first {drawn:,} of {counts[-1]:,} images", file=sys.stderr)
    rows = {row for group, members in chosen for row in members} | {
        g.query for g in groups if isinstance(g.query, int)
    }
    found = pictures(images, features, rows)
    lines = []
    for group, members in chosen:
        cells = []
        if group.query is not None:
            picture = found.get(group.query) if isinstance(group.query, int) else group.query
            cells.append(Cell(picture, ("query", group.title), framed=True))
        for place, row in enumerate(members):
            prefix = f"{answer.kind} {group.title}  " if answer.kind in ("group", "cluster") else ""
            value = f"{place + 1}" if group.values is None else f"{group.values[place]:.4f}"
            cells.append(Cell(found.get(row), (prefix + value, name_of(features, row))))
        lines.append(cells)
    write_sheet(lines, path)


def shown(answer: Answer, group: Group, k: int) -> int:
    """How many of a group's images people are shown: of a cluster the k most typical ones, else all."""
    return min(k, len(group.rows)) if answer.kind == "cluster" else len(group.rows)
