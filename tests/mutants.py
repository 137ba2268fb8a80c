"""Wrong changes that the tests must notice: `make mutants` makes each of mutations.txt and runs its tests.

Prints a line for each and ends with 1 when one survives, or when its text no longer stands once in the file:
then the list has to follow the code.
"""

import argparse
import gc
import importlib
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
COPIED = ("byol", "tests", "benchmarks", "examples", "docs", "README.md", "pyproject.toml")
LOADED = ("torch._dynamo", "torchvision", "sklearn.linear_model", "yaml", "PIL.Image", "safetensors.torch")
OUTPUT = "output.txt"  # of the tests
SECONDS = 600  # for the guards of one change; what takes longer counts as not noticed


@dataclass(frozen=True)
class Mutation:
    """One wrong change: `old`, which stands once in byol/`file`, becomes `new`."""

    file: str
    name: str  # what goes wrong
    old: str
    new: str
    guards: tuple[str, ...]  # arguments of pytest


@dataclass(frozen=True)
class Outcome:
    mutation: Mutation
    noticed: bool
    words: str  # by which test, or what happened instead
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="changes whose file or name holds this word")
    parser.add_argument("--part", default="1/1", help="2/4: the second quarter of the changes")
    parser.add_argument("--jobs", type=int, default=2, help="how many are tried at once")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    for name in ("CI", "BUILD_NUMBER"):
        os.environ.pop(name, None)  # by which pytest shows whole differences: minutes for files of a megabyte
    for name in LOADED:  # once, for all the children
        importlib.import_module(name)
    gc.freeze()
    part, parts = map(int, options.part.split("/"))
    chosen = [one for one in mutations() if options.only in f"{one.file} {one.name}"][part - 1 :: parts]
    with tempfile.TemporaryDirectory(prefix="byol-mutants-") as folder:
        outcomes = try_all(chosen, Path(folder), options.jobs)
    survivors = [one for one in outcomes if not one.noticed]
    print(f"\n{len(outcomes)} wrong changes, {len(survivors)} not noticed")
    for one in survivors:
        print(f"  {one.mutation.file}: {one.mutation.name} ({one.words})")
    return 1 if survivors or not outcomes else 0


def mutations() -> list[Mutation]:
    """Those of mutations.txt."""
    found: list[Mutation] = []
    file, guards = "", ()
    for block in (ROOT / "tests" / "mutations.txt").read_text(encoding="utf-8").split("\n\n"):
        lines = block.strip("\n").split("\n")
        if lines[0].startswith("@ "):
            file, _, rest = lines[0].removeprefix("@ ").partition(": ")
            guards = tuple(shlex.split(rest))
        elif lines[0].startswith("# "):
            old, new = ("\n".join(line[2:] for line in lines if line[:1] == mark) for mark in "-+")
            found.append(Mutation(file, lines[0].removeprefix("# "), old, new, guards))
    return found


def try_all(chosen: list[Mutation], folder: Path, jobs: int) -> list[Outcome]:
    """Every change in a copy of the project, `jobs` at once, each in a process forked with torch loaded."""
    copies = [copy_of_the_project(folder / str(number)) for number in range(jobs)]
    waiting, running, outcomes, again = list(chosen), {}, [], set[Mutation]()
    while waiting or running:
        while waiting and copies:
            mutation, copy = waiting.pop(0), copies.pop()
            count = (copy / "byol" / mutation.file).read_text(encoding="utf-8").count(mutation.old)
            if count == 1:
                running[start(mutation, copy)] = mutation, copy, time.monotonic()
            else:
                words = f"its text stands {count} times in the file, expected once"
                outcomes.append(told(Outcome(mutation, False, words, 0.0)))
                copies.append(copy)
        for child, (mutation, copy, started) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            seconds = time.monotonic() - started
            if not done and seconds < SECONDS:
                continue
            if not done:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status) if done else None
            found = re.findall(
                r"^FAILED \S+::(\w+)", (copy / OUTPUT).read_text(errors="replace"), re.MULTILINE
            )
            words = found[0] if code == 1 and found else f"pytest ended with {code}" if done else "no end"
            if code not in (0, 1) and mutation not in again:
                # A machine that stands still for minutes has ended such a try; two in a row it has not.
                again.add(mutation)
                waiting.append(mutation)
            else:
                outcomes.append(told(Outcome(mutation, code == 1, words, seconds)))
            shutil.copy(ROOT / "byol" / mutation.file, copy / "byol" / mutation.file)
            copies.append(copy)
            del running[child]
        time.sleep(0.05)
    return outcomes


def told(outcome: Outcome) -> Outcome:
    mark = "noticed " if outcome.noticed else "SURVIVED"
    what = f"{outcome.mutation.file}: {outcome.mutation.name} ({outcome.words})"
    print(f"{mark} {outcome.seconds:5.0f}s  {what}", flush=True)
    return outcome


def copy_of_the_project(folder: Path) -> Path:
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def start(mutation: Mutation, copy: Path) -> int:
    """Make the change and run its guards in a child of its own. Returns the child's number.

    The child ends with pytest's exit code: 1 when a test failed. Anything else but 0 is a fault of the list.
    """
    file = copy / "byol" / mutation.file
    file.write_text(file.read_text(encoding="utf-8").replace(mutation.old, mutation.new), encoding="utf-8")
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    with (copy / OUTPUT).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    plugins = ["-p", "no:cacheprovider", "-p", "pytest_timeout"]  # those that come by themselves cost seconds
    quick = ["-m", "not slow"]  # unless the guards say otherwise
    code = pytest.main(["-x", "-q", "--no-header", *quick, *plugins, *mutation.guards])
    os._exit(int(code))


if __name__ == "__main__":
    sys.exit(main())
