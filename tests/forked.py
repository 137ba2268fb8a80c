"""A command in a process of its own that need not load torch again: it is a fork of the tests' process."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from byol.cli import main


def command(words: Sequence[str], said: Path) -> BaseProcess:
    """`byol WORDS`, started; what it says on stderr goes into the file `said`."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(list(words), said))
    process.start()
    return process


def run(words: list[str], said: Path) -> None:
    torch.set_num_threads(1)  # the pool of more did not come along
    with said.open("w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
        os.dup2(sys.stderr.fileno(), 2)
        sys.argv = ["byol", *words]
        code = main()
    os._exit(code)  # without what pytest does at the end of its process
