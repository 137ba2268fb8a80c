"""The command line: words in, one call, words out."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TextIO

from byol import __version__
from byol.errors import ByolError, ConfigError, did_you_mean

OVERVIEW = f"""byol {__version__}: learn an encoder from unlabelled images (Bootstrap Your Own Latent)

usage: byol COMMAND ...

  demo        train on photographs that are already here and see that it learns; about two minutes
  train       images in, encoder out:       byol train photos/ --out runs/a
  evaluate    how good is an encoder:       byol evaluate runs/a --train train/ --test test/
  embed       features of every image:      byol embed runs/a --data photos/ --out features.npz
  convert     other programs' checkpoints:  byol convert pretrain_res50x1.pkl --out encoders/res50x1
  search      find images by likeness:      byol search features.npz --query photo.jpg --run runs/a
  export      the encoder for other tools:  byol export runs/a --out encoder.onnx

`byol COMMAND --help` lists a command's flags.
Exit codes: 0 done, 2 usage or settings, 3 images, 4 diverged, 70 no memory, no disk space or a bug,
75 stopped by a signal and saved, 130 Ctrl-C and saved.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; a failure that was foreseen is one sentence on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"byol {__version__}")
        return 0
    try:
        return command_named(words[0])(words[1:])
    except ByolError as failure:
        say(f"byol {words[0]}: {failure}")
        return failure.exit_code
    except KeyboardInterrupt:
        say("byol: interrupted")
        return 130
    except BrokenPipeError:
        hush(sys.stdout)
        return 0
    except (
        OSError
    ) as failure:  # of a file nobody foresaw: a full disk, a folder that was taken away meanwhile
        where = f"{failure.filename}: " if failure.filename is not None else ""
        say(
            f"byol {words[0]}: {where}{failure.strerror or failure}. Make room, or look after that file, and try again."
        )
        return 70
    except Exception:  # the outermost door: whatever comes here was not foreseen
        traceback.print_exc()
        print("byol: this is a bug. Please report it with the lines above.", file=sys.stderr)
        return 70


def say(line: str) -> None:
    """A line on stderr; when nobody listens any more, the exit code has to do."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        hush(sys.stderr)


def hush(stream: TextIO) -> None:
    """Lead a stream whose reader has gone to nowhere, so that Python's own exit does not stumble over it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def command_named(name: str) -> Callable[[Sequence[str]], int]:
    """A command's function; its imports are made when it is chosen, so that `byol --help` is instant."""
    if name == "demo":
        from byol.commands.demo import demo as command
    elif name == "train":
        from byol.commands.train import train as command
    elif name == "evaluate":
        from byol.commands.evaluate import evaluate as command
    elif name == "embed":
        from byol.commands.embed import embed as command
    elif name == "convert":
        from byol.commands.convert import convert as command
    elif name == "search":
        from byol.commands.search import search as command
    elif name == "export":
        from byol.commands.export import export as command
    else:
        commands = ("demo", "train", "evaluate", "embed", "search", "export", "convert")
        raise ConfigError(
            f"There is no command {name!r}.{did_you_mean(name, commands)} The commands are {', '.join(commands)}."
        )
    return command
