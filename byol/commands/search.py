"""`byol search`"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from byol.commands.results import Group, Results, as_json, as_table, draw, name_of
from byol.data.images import open_images
from byol.encoders.load import load_encoder
from byol.errors import ConfigError, DataError, complaint, printable
from byol.features import neighbours, select
from byol.features.embed import embed
from byol.features.features import Features
from byol.features.sheet import check_sheet, tile
from byol.settings import parse


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


def search(arguments: Sequence[str]) -> int:
    """Find images by their features, in one of six ways."""
    description = (
        "Find similar images, near-duplicates, outliers, clusters or what to label, by their features."
    )
    command = parse(Search, arguments, prog="byol search", description=description, switches=True)
    way = checked(command)
    features = Features.load(command.features, mapped=True)
    images = None if command.data is None else open_images(command.data)
    results = WAYS[way](command, features)
    most = {"query": command.k, "row": command.k, "outliers": command.outliers, "pick": command.pick}.get(
        way
    ) or 0
    found = min((len(group.rows) for group in results.groups), default=0)
    if found < most:
        print(f"note       there are no more than these {found:,} images", file=sys.stderr)
    if images is not None and command.sheet is not None and any(len(group.rows) for group in results.groups):
        draw(results, features, command.k, images, Path(command.sheet))
        print(f"written    {command.sheet}", file=sys.stderr)
    if command.json:
        print(as_json(results, features))
    elif results.groups:
        print(as_table(results, features, command.k))
    else:
        print("nothing    no two images are that similar", file=sys.stderr)
    return 0


def checked(command: Search) -> str:
    """The one way to search that was given. Raises ConfigError for flags that do not go together."""
    given = [name for name in WAYS if getattr(command, name) is not None]
    if len(given) != 1:
        flags = ", ".join(f"--{name}" for name in WAYS)
        raise ConfigError(
            f"{', '.join(f'--{name}' for name in given) or 'Nothing'} was given; expected one of {flags}."
        )
    if () in (command.query, command.row):
        raise ConfigError(
            f"--{given[0]} came alone; expected {'pictures' if command.query == () else 'rows'} behind it."
        )
    for flag, other in TOGETHER:
        if getattr(command, flag) is not None and getattr(command, other) is None:
            raise ConfigError(f"--{flag} was given without --{other}; they go together.")
    neighbours.check_at_least_one("k", command.k)
    if command.sheet is not None:
        sheet = Path(command.sheet)
        check_sheet(sheet)
        sources = [
            Path(word).resolve() for word in (command.data, *(command.query or ())) if word is not None
        ]
        if os.path.exists(sheet) and {sheet.resolve(), *sheet.resolve().parents} & {*sources}:
            raise ConfigError(
                f"--sheet is {sheet}, which is there already among the images. Give another name."
            )
    return given[0]


def by_query(command: Search, features: Features) -> Results:
    """The images most similar to pictures."""
    assert command.query is not None
    assert command.run is not None
    for path in command.query:
        if not os.path.isfile(path):
            what = "a folder" if os.path.isdir(path) else "not there"
            raise DataError(f"--query '{printable(path)}' is {what}; expected pictures.")
    encoder = load_encoder(command.run, net=command.encoder, weights=command.weights, device=command.device)
    width = features.x.shape[1]
    if encoder.info.features != width or features.encoder_checksum not in (None, encoder.checksum()):
        raise ConfigError(
            f"{command.run} is not the encoder that gave {command.features}, so their features cannot be "
            "compared. Name that one, or embed the images again with this one."
        )
    images = encoder.open([*command.query])
    queries = embed(encoder, images, strict=True)
    found = neighbours.search(features, queries, k=command.k, device=command.device)
    heads = [tile(images[index]) if command.sheet else None for index in range(len(images))]
    return Results([*map(Group, queries.names, found.rows, found.similarities, heads)], "query", "similarity")


def by_row(command: Search, features: Features) -> Results:
    """The images most similar to images of the features."""
    assert command.row is not None
    found = neighbours.search(features, rows=command.row, k=command.k, device=command.device)
    titles = [name_of(features, row) for row in command.row]
    return Results([*map(Group, titles, found.rows, found.similarities, command.row)], "query", "similarity")


def duplicates(command: Search, features: Features) -> Results:
    """Near-duplicates; the similarity of each is to the one of its group that is nearest."""
    assert command.duplicates is not None
    groups: list[Group] = []
    for rows in neighbours.near_duplicates(features, command.duplicates, device=command.device):
        found = neighbours.search(features.x[rows], rows=range(len(rows)), k=1, device=command.device)
        groups.append(Group(str(len(groups)), rows, found.similarities[:, 0]))
    return Results(groups, "group", "similarity")


def outliers(command: Search, features: Features) -> Results:
    """The images least like others."""
    assert command.outliers is not None
    found = neighbours.outliers(features, command.outliers, k=command.k, device=command.device)
    return Results([Group("", found.rows, found.distances)], measure="distance")


def pick(command: Search, features: Features) -> Results:
    """The images to label first."""
    assert command.pick is not None
    labelled = None if command.labelled is None else labelled_rows(Path(command.labelled), features)
    uncertainty = None if command.uncertainty is None else numbers(Path(command.uncertainty))
    return Results(
        [Group("", select.pick(features, command.pick, labelled=labelled, uncertainty=uncertainty))]
    )


def clusters(command: Search, features: Features) -> Results:
    """Clusters, the largest first, and in each the images nearest to its centre first."""
    assert command.clusters is not None
    found = select.clusters(features, command.clusters)
    order = np.lexsort((found.distances, found.labels))
    members = np.split(order, np.flatnonzero(np.diff(found.labels[order])) + 1)
    groups = [Group(str(number), rows, found.distances[rows]) for number, rows in enumerate(members)]
    return Results(groups, "cluster", "distance")


WAYS: dict[str, Callable[[Search, Features], Results]] = {
    "query": by_query,
    "row": by_row,
    "duplicates": duplicates,
    "outliers": outliers,
    "pick": pick,
    "clusters": clusters,
}
TOGETHER = (
    *(("query", "run"), ("run", "query"), ("encoder", "query"), ("weights", "query")),
    *(("labelled", "pick"), ("uncertainty", "pick"), ("sheet", "data"), ("data", "sheet")),
)


def labelled_rows(path: Path, features: Features) -> list[int]:
    """The rows whose names, as the table prints them, are in a text file."""
    try:
        lines = [
            line
            for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
            if line.strip()
        ]
    except OSError as failure:
        raise DataError(
            f"{path} cannot be read: {failure.strerror}. Expected image names, one a line."
        ) from failure
    row_of = {printable(name_of(features, row)): row for row in range(len(features.x))}
    unknown = [line for line in lines if line not in row_of]
    if unknown:
        advice = "" if features.names else " These features have no names: give the numbers of rows, from 0."
        found = f"{len(unknown)} of {len(lines)} names in {path} are not among the features"
        raise DataError(f"{found}, such as {unknown[0]!r}.{advice}")
    return [row_of[line] for line in lines]


def numbers(path: Path) -> Any:
    """The array in a .npy file."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as failure:  # damaged files end in nearly every exception there is
        reason = printable(complaint(failure))
        raise DataError(f"{path} cannot be read ({reason}); expected numbers in a .npy file.") from failure
