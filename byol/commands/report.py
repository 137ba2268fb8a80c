"""`byol report`"""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from byol.disk import check_writable
from byol.encoders.encoder import Encoder
from byol.encoders.load import load_encoder
from byol.errors import ByolError, ConfigError, show
from byol.report.figures import Figure
from byol.report.markup import Html
from byol.report.page import write_report
from byol.report.pictures import images_of, picture_sections
from byol.report.plots import write_figures
from byol.report.raster import check_installed
from byol.report.record import Record, read_record
from byol.settings import parse


@dataclass(frozen=True)
class Report:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs: one for its report, several to compare them. A run may be running."""
    out: str | None = None
    """File to write (.html). By default report.html, in the run's folder or of several runs here."""
    data: str | None = None
    """The images of the run, for its pictures; by default those where they were."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    figures: str | None = None
    """Folder that each figure is written to as SVG and PNG, for papers and slides; needs matplotlib."""


def report(arguments: Sequence[str]) -> int:
    """Write the report of a run, or of several beside one another."""
    description = (
        "See what became of a run: verdict, curves, scores, pictures and settings, in one HTML file."
    )
    command = parse(Report, arguments, prog="byol report", description=description)
    if not command.runs:
        raise ConfigError("No run was named; expected the folder of one, as `byol train --out` was given.")
    if len(set(command.runs)) < len(command.runs):
        raise ConfigError(f"{' '.join(command.runs)} names a run twice. Name each once.")
    if command.figures is not None:
        check_installed()
        check_writable(Path(command.figures), "Choose another folder with --figures.")
    records = [read_record(run) for run in command.runs]
    own = len(records) == 1 and command.out is None
    out = records[0].folder.report if own else Path(command.out or records[0].folder.report.name)
    if os.path.isdir(out):
        raise ConfigError(
            f"--out is {out}, which is a folder. Give the name of a file, such as {out}/report.html."
        )
    check_writable(out.parent, "Choose another place with --out.", out.name)
    for record in records:
        said = str(record.verdict or record.state)
        show(*textwrap.wrap(f"{record.name}: {said}", 110, subsequent_indent=" " * 11))
    sections, drawn = pictures(records[0], command) if len(records) == 1 else ([], [])
    write_report(records, out, sections)
    show(f"written    {out}")
    if command.figures is not None:
        folder = Path(command.figures)
        files = write_figures(records, folder, drawn)
        show(f"written    {len(files)} figures in {folder}/: {', '.join(path.name for path in files)}")
    return 0


def pictures(record: Record, command: Report) -> tuple[list[Html], list[Figure]]:
    """What can be shown of a run's images and by its encoder; why there is nothing is told on the page."""
    encoder: Encoder | str
    try:
        encoder = load_encoder(record.folder.path, net=command.encoder)
    except ByolError as failure:
        encoder = str(failure)
        if record.state == "running":
            encoder = "the run has no encoder yet. Make the report again when it has ended."
    return picture_sections(record, images_of(record, command.data), encoder)
