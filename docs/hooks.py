"""Pages that are made when the site is built: the README as its first, the command line's, and Python's."""

import io
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import byol
from byol.cli import COMMANDS, OVERVIEW, main

ROOMS = {  # the rooms of the package that hold public names, as the reference calls them
    "method": "The method",
    "models": "Networks",
    "data": "Images",
    "encoders": "Encoders",
    "features": "Features",
    "evaluation": "Evaluation",
    "train": "Training",
    "exports": "Exports",
    "report": "Reports",
    "world": "Processes",
    "errors": "Errors",
}


def on_files(files: Files, config: Any) -> Files:
    pages = {"index.md": index(), "reference/commands.md": commands(), "reference/python.md": python()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def index() -> str:
    """The README; its links to other files than pages and pictures are names only."""
    text = Path("README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(r"(?<!!)\[([^]]*)\]\((?!http|[\w/-]+\.md)[^)]*\)", r"\1", text)


def commands() -> str:
    """What every command says of itself."""
    os.environ["COLUMNS"] = "80"  # what fits beside the navigation
    parts = ["# Commands", "", "```text", OVERVIEW.rstrip(), "```"]
    for command in COMMANDS:
        said = io.StringIO()
        with redirect_stdout(said), suppress(SystemExit):
            main([command, "--help-all" if command == "train" else "--help"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
        parts += ["", f"## byol {command}", "", "```text", text.rstrip(), "```"]
    return "\n".join(parts)


def python() -> str:
    """Every public name by the room it lives in, with its signature and docstring."""
    parts = ["# Python", "", "Everything here is an attribute of `byol`."]
    homes = {name: getattr(byol, name).__module__ for name in byol.__all__}
    for room, title in ROOMS.items():
        names = [name for name in byol.__all__ if homes[name].split(".")[1] == room]
        parts += ["", f"## {title}"] if names else []
        parts += [f"\n::: {homes[name]}.{name}\n    options:\n      heading: byol.{name}" for name in names]
    left_out = set(byol.__all__) - {name for name in byol.__all__ if homes[name].split(".")[1] in ROOMS}
    if left_out:
        raise ValueError(f"docs/hooks.py: ROOMS lacks the room of {', '.join(sorted(left_out))}.")
    return "\n".join(parts)
