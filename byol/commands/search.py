"""`byol search`"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from byol.data.images import Images, open_images
from byol.encoders.load import load_encoder
from byol.errors import ConfigError, DataError, complaint, printable, show
from byol.features import neighbours, select
from byol.features.embed import embed
from byol.features.features import Features, Rows, Values
from byol.features.sheet import Cell, check_sheet, pictures, tile, write_sheet
from byol.settings import parse

MOST_PICTURES = 500  # on a sheet


@dataclass(frozen=True)
class Search:
    features: tyro.conf.Positional[str]
    """What `byol embed` wrote. Of .npy and .safetensors only a block is in memory at a time."""
    query: tuple[str, ...] | None = None
    """Pictures: find the images most similar to each. Needs --run."""
    row: tuple[int, ...] | None = None
    """Rows of the features, from 0: find the images most similar to each."""
    duplicates: float | None = None
    """Find groups of images whose cosine similarity is at least this, such as 0.97. Compares all with all."""
    outliers: int | None = None
    """Find so many images that are least like their k nearest. Compares all with all."""
    pick: int | None = None
    """Choose so many images to label first: each the farthest from those chosen before."""
    clusters: int | None = None
    """Divide the images into so many clusters (k-means), the most typical images of each first."""
    k: int = 10
    """Neighbours of each query; neighbours an outlier is judged by; images that are shown of each cluster."""
    run: str | None = None
    """What gave the features, as `byol embed` took it; it embeds --query."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    weights: str | None = None
    """File of a torchvision: or timm: network's tensors; by default what the library has downloaded."""
    eval_crop: float | None = None
    """That of `byol embed`, where it was given there."""
    labelled: str | None = None
    """Text file of the names of images that are labelled already: --pick looks for images unlike them."""
    uncertainty: str | None = None
    """.npy of numbers (N,), or class probabilities (N, C): --pick prefers uncertain images."""
    json: bool = False
    """Print JSON instead of a table."""
    sheet: str | None = None
    """Draw the images found into this file (.png, .jpg, .webp). Needs --data."""
    data: str | None = None
    """The images that were embedded, for --sheet."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""


WAYS = ("query", "row", "duplicates", "outliers", "pick", "clusters")
NEEDS = {
    "query": "run", "run": "query", "encoder": "query", "weights": "query",
    "labelled": "pick", "uncertainty": "pick", "sheet": "data", "data": "sheet",
}  # fmt: skip


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
    shown: int | None = None  # the first images of each group that people are shown; None is all


def name_of(features: Features, row: int) -> str:
    """An image's name; its row when the features have no names."""
    return features.names[row] if features.names else str(row)


def search(arguments: Sequence[str]) -> int:
    """Find images by their features, in one of six ways."""
    what = "Find similar images, near-duplicates, outliers, clusters or what to label, by their features."
    command = parse(Search, arguments, prog="byol search", description=what, switches=True)
    check(command)
    features = Features.load(command.features, mapped=True)
    images = None if command.data is None else open_images(command.data)
    results = found(command, features)
    counts = [len(group.rows) for group in results.groups]
    if results.wanted > min(counts, default=results.wanted):
        show(f"note       there are no more than these {min(counts):,} images", file=sys.stderr)
    if images is not None and command.sheet is not None and any(counts):
        draw(results, features, images, Path(command.sheet))
        show(f"written    {command.sheet}", file=sys.stderr)
    if command.json:
        print(as_json(results, features))
    elif counts:
        show(*as_table(results, features).splitlines())
    else:
        show("nothing    no two images are that similar", file=sys.stderr)
    return 0


def check(command: Search) -> None:
    """Raise ConfigError for flags that do not go together."""
    flags = [f"--{name}" for name in WAYS if getattr(command, name) is not None]
    if len(flags) != 1:
        came, expected = ", ".join(flags) or "Nothing", ", ".join(f"--{name}" for name in WAYS)
        raise ConfigError(f"{came} was given; expected one of {expected}.")
    if () in (command.query, command.row):
        raise ConfigError(f"{flags[0]} came alone; expected pictures, or numbers of rows, behind it.")
    for flag, other in NEEDS.items():
        if getattr(command, flag) is not None and getattr(command, other) is None:
            raise ConfigError(f"--{flag} was given without --{other}; they go together.")
    neighbours.check_at_least_one("k", command.k)
    if command.sheet is not None and command.data is not None:
        sheet = Path(command.sheet).resolve()
        check_sheet(sheet)
        sources = {Path(word).resolve() for word in (command.data, *(command.query or ()))}
        if os.path.exists(sheet) and sources & {sheet, *sheet.parents}:
            there = f"--sheet is {command.sheet}, which is there already among the images"
            raise ConfigError(f"{there}. Give another name.")


def found(command: Search, features: Features) -> Results:
    """What the command looks for."""
    k, device = command.k, command.device
    if command.query is not None and command.run is not None:
        return by_query(command.query, command.run, command, features)
    if command.row is not None:
        near = neighbours.search(features, rows=command.row, k=k, device=device)
        titles = [name_of(features, row) for row in command.row]
        groups = [*map(Group, titles, near.rows, near.similarities, command.row)]
        return Results(groups, "query", "similarity", k)
    if command.duplicates is not None:  # each with its similarity to the one of its group that is nearest
        groups = []
        for rows in neighbours.near_duplicates(features, command.duplicates, device=device):
            near = neighbours.search(features.x[rows], rows=range(len(rows)), k=1, device=device)
            groups.append(Group(str(len(groups)), rows, near.similarities[:, 0]))
        return Results(groups, "group", "similarity")
    if command.outliers is not None:
        far = neighbours.outliers(features, command.outliers, k=k, device=device)
        return Results([Group("", far.rows, far.distances)], measure="distance", wanted=command.outliers)
    if command.pick is not None:
        labelled = None if command.labelled is None else labelled_rows(Path(command.labelled), features)
        uncertainty = None if command.uncertainty is None else numbers(Path(command.uncertainty))
        rows = select.pick(features, command.pick, labelled=labelled, uncertainty=uncertainty)
        return Results([Group("", rows)], wanted=command.pick)
    assert command.clusters is not None
    clusters = select.clusters(features, command.clusters)
    order = np.lexsort((clusters.distances, clusters.labels))  # the most typical first: nearest to a centre
    members = np.split(order, np.flatnonzero(np.diff(clusters.labels[order])) + 1)
    groups = [Group(str(number), rows, clusters.distances[rows]) for number, rows in enumerate(members)]
    return Results(groups, "cluster", "distance", shown=k)


def by_query(queries: Sequence[str], run: str, command: Search, features: Features) -> Results:
    """The images most similar to pictures, which the run's encoder embeds."""
    for path in queries:
        if not os.path.isfile(path):
            what = "a folder" if os.path.isdir(path) else "not there"
            raise DataError(f"--query '{printable(path)}' is {what}; expected pictures.")
    encoder = load_encoder(run, net=command.encoder, weights=command.weights, device=command.device)
    encoder = encoder.with_crop(command.eval_crop)
    same = features.encoder_checksum in (None, encoder.checksum())
    if not same or encoder.info.features != features.x.shape[1]:
        raise ConfigError(
            f"{run} is not the encoder that gave {command.features}, so their features cannot be compared. "
            "Name that one, or embed the images again with this one."
        )
    images = encoder.open([*queries])
    embedded = embed(encoder, images, strict=True)
    near = neighbours.search(features, embedded, k=command.k, device=command.device)
    tiles = [tile(images[index]) if command.sheet else None for index in range(len(images))]
    groups = [*map(Group, embedded.names, near.rows, near.similarities, tiles)]
    return Results(groups, "query", "similarity", command.k)


def labelled_rows(path: Path, features: Features) -> list[int]:
    """The rows whose names, as the table prints them, are in a text file."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as failure:
        expected = "Expected image names, one a line."
        raise DataError(f"{path} cannot be read: {failure.strerror}. {expected}") from failure
    names = [line for line in lines if line.strip()]
    row_of = {printable(name_of(features, row)): row for row in range(len(features.x))}
    unknown = [name for name in names if name not in row_of]
    if unknown:
        advice = "" if features.names else " These features have no names: give the numbers of rows, from 0."
        which = f"{len(unknown)} of {len(names)} names in {path}"
        raise DataError(f"{which} are not among the features, such as {unknown[0]!r}.{advice}")
    return [row_of[name] for name in names]


def numbers(path: Path) -> Any:
    """The array in a .npy file."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as failure:  # damaged files end in nearly every exception there is
        said = f"{path} cannot be read ({complaint(failure)}); expected numbers in a .npy file."
        raise DataError(said) from failure


def as_json(results: Results, features: Features) -> str:
    """A list of groups with all their images; of images alone when there are no groups."""
    found: list[dict[str, Any]] = []
    for group in results.groups:
        images = [{"row": row, "name": name_of(features, row)} for row in group.rows.tolist()]
        for image, value in zip(images, () if group.values is None else group.values.tolist(), strict=False):
            image[results.measure] = round(value, 6)
        title = group.title if results.kind == "query" else int(group.title or 0)
        found.append({results.kind: title, "images": images})
    return json.dumps(found if results.kind else found[0]["images"], indent=1)


def as_table(results: Results, features: Features) -> str:
    """A line for each image that is shown, numbers to the right."""
    lines = [[results.kind, "row", results.measure, "name"]]
    for group in results.groups:
        size = f" ({len(group.rows):,} images)" if results.kind == "cluster" else ""
        for place, row in enumerate(group.rows[: results.shown].tolist()):
            value = "" if group.values is None else f"{group.values[place]:.4f}"
            lines.append([printable(group.title) + size, str(row), value, printable(name_of(features, row))])
    columns = [[*column] for column in zip(*lines, strict=True) if any(column)]
    for column in columns[:-1]:
        width, numbers = max(map(len, column)), column[0] in ("row", results.measure)
        column[:] = [word.rjust(width) if numbers else word.ljust(width) for word in column]
    return "\n".join(map("  ".join, zip(*columns, strict=True)))


def draw(results: Results, features: Features, images: Images, path: Path) -> None:
    """A line of pictures, or several, for each group; what does not fit on one sheet is left out and told."""
    every = [(group, group.rows[: results.shown].tolist()) for group in results.groups]
    counts = list(accumulate(len(rows) for _, rows in every))
    fitting = sum(count <= MOST_PICTURES for count in counts) or 1
    chosen = [(group, rows[:MOST_PICTURES]) for group, rows in every[:fitting]]
    drawn = sum(len(rows) for _, rows in chosen)
    if drawn < counts[-1]:
        show(f"shortened  {path} shows the first {drawn:,} of {counts[-1]:,} images", file=sys.stderr)
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
