"""The command line: words in, one call, words out."""

import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO, TextIOWrapper
from types import FrameType
from typing import NoReturn, TextIO

from byol import __version__
from byol.errors import ByolError, ConfigError, did_you_mean, is_first, printable, show

REPORT = 300.0  # seconds that a report takes at most
COMMANDS = (
    "demo",
    "check",
    "pack",
    "views",
    "train",
    "report",
    "evaluate",
    "predict",
    "embed",
    "convert",
    "search",
    "explore",
    "export",
    "push",
)
TOGETHER = ("train", "evaluate", "embed")  # what the processes of torchrun share; the others work alone
HELPING = ("-h", "--help", "--help-all")
OVERVIEW = f"""byol {__version__}: learn an encoder from unlabelled images (Bootstrap Your Own Latent)

usage: byol COMMAND ...

  demo        train on photographs that are already here and see that it learns; about two minutes
  check       what is wrong with images:    byol check photos/ --out found.json
  pack        images into tar shards:       byol pack photos/ --out shards/
  views       what a run would look at:    byol views photos/ --out views.png
  train       images in, encoder out:       byol train photos/ --out runs/a
  report      what became of runs:          byol report runs/a runs/b --out comparison.html
  evaluate    how good is an encoder:       byol evaluate runs/a --train train/ --test test/
  predict     the class of every image:     byol predict c.safetensors --data photos/ --out labels.csv
  embed       features of every image:      byol embed runs/a --data photos/ --out features.npz
  convert     other programs' checkpoints:  byol convert pretrain_res50x1.pkl --out encoders/res50x1
  search      find images by likeness:      byol search features.npz --query photo.jpg --run runs/a
  explore     walk through images:          byol explore features.npz --data photos/ --out map
  export      the encoder for other tools:  byol export runs/a --out encoder.onnx
  push        to the Hugging Face Hub:      byol push runs/a user/name

`byol COMMAND --help` lists a command's flags; `byol --completion` makes bash complete them.
Exit codes: 0 done, 1 `check` has found something, 2 usage or settings, 3 images, 4 diverged, 5 collapsed,
70 no memory, no disk space or a bug, 75 stopped by a signal and saved, 130 Ctrl-C and saved.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; a failure that was foreseen is one sentence on stderr."""
    words = [at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if arguments is None:  # a process of our own; a run answers in its own way, once its libraries are loaded
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, leave)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # whose encoding may lack the letters of a name
            stream.reconfigure(errors="backslashreplace")
    warnings, said = logging.getLogger("byol"), set[str]()

    def once_and_printably(record: logging.LogRecord) -> bool:
        """Without the escape sequences of a file's name; with several encoders the same may come for each."""
        record.msg, record.args = printable(record.getMessage()), None
        new = record.msg not in said
        said.add(record.msg)
        return new

    warnings.addFilter(once_and_printably)
    try:
        return done(words)
    finally:
        warnings.removeFilter(once_and_printably)


def done(words: list[str]) -> int:
    """Run a command, or tell what there is."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"byol {__version__}")
        return 0
    if words[0] == "--completion":
        print(completion(), end="")
        return 0
    try:
        command = command_named(words[0])
        if words[0] not in TOGETHER and "WORLD_SIZE" in os.environ and not {*HELPING} & {*words}:
            from byol.world import check_alone  # which loads torch

            check_alone()
        return command(words[1:])
    except ByolError as failure:
        if not failure.shared or is_first():
            say(f"byol {words[0]}: {failure}")
        elif failure.exit_code not in (75, 130):  # a signal ends all of them anyway
            leave_it_to_the_first()
        return failure.exit_code
    except KeyboardInterrupt:
        say("byol: interrupted")
        return 130
    except BrokenPipeError:
        hush(sys.stdout)
        return 0
    except OSError as failure:  # a full disk behind stdout, a folder that was taken away meanwhile
        where = f"{failure.filename}: " if failure.filename is not None else ""
        long = failure.errno == errno.ENAMETOOLONG
        say(
            f"byol {words[0]}: {where}{failure.strerror or failure}. "
            + ("Give a shorter one." if long else "Check that file or disk.")
        )
        return 2 if long else 70
    except Exception:  # the outermost door: whatever comes here was not foreseen
        for line in traceback.format_exc().splitlines():
            say(line)
        say("byol: this is a bug. Please report it with the lines above.")
        return 70


def at_home(word: str) -> str:
    """--out=~/runs/a with a user's home for ~, which a shell sees only at the beginning of a word."""
    flag, _, value = word.partition("=")
    if not flag.startswith("--") or not value.startswith("~") or os.path.exists(value):
        return word
    return f"{flag}={os.path.expanduser(value)}"  # a text: a Path would lose the slash of --out=~/features/


def leave_it_to_the_first() -> None:
    """Wait for the end of rank 0, which has the word: torchrun ends all processes of a machine as soon as
    one of them has ended, and rank 0 may be writing a report."""
    if os.environ.get("GROUP_RANK") == "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(REPORT)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End by a signal as by an exception, so that what is half written is taken away."""
    signal.signal(number, signal.SIG_DFL)  # the second one ends at once
    with suppress(OSError):  # not print, which may be at work below
        os.write(2, f"byol: stopped by {signal.Signals(number).name}\n".encode())
    sys.exit(75)


def say(line: str) -> None:
    """A line on stderr; when nobody listens any more, the exit code must do."""
    try:
        show(line, file=sys.stderr)
    except OSError:
        hush(sys.stderr)


def hush(stream: TextIO) -> None:
    """Lead a stream whose reader has gone to nowhere, so that Python's own exit does not stumble over it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def completion() -> str:
    """A script by which bash completes commands and their flags."""
    parts = []
    for name in COMMANDS:
        with redirect_stdout(StringIO()) as said, suppress(SystemExit):
            command_named(name)(["--tyro-print-completion", "bash"])
        parts.append(said.getvalue().partition("# Register completion")[0])  # which would be for one command
    return (
        "".join(parts)
        + f"""
_byol() {{
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "{" ".join(COMMANDS)}" -- "${{COMP_WORDS[1]}}"))
  elif declare -F "_tyro_byol_${{COMP_WORDS[1]}}" >/dev/null; then
    "_tyro_byol_${{COMP_WORDS[1]}}"
  fi
}}
complete -o default -F _byol byol
"""
    )


def command_named(name: str) -> Callable[[Sequence[str]], int]:
    """A command's function; its imports are made when it is chosen, so that `byol --help` is instant."""
    if name not in COMMANDS:
        raise ConfigError(
            f"There is no command {name!r}.{did_you_mean(name, COMMANDS)} "
            f"The commands are {', '.join(COMMANDS)}."
        )
    command: Callable[[Sequence[str]], int] = getattr(import_module(f"byol.commands.{name}"), name)
    return command
