"""The command line: words in, one call, words out."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from byol import __version__
from byol.errors import ByolError, ConfigError, did_you_mean

OVERVIEW = f"""byol {__version__}: learn an encoder from unlabelled images (Bootstrap Your Own Latent)

usage: byol COMMAND ...

  demo        train on photographs that are already here and see that it learns; about two minutes
  train       images in, encoder out:       byol train photos/ --out runs/a
  evaluate    how good is an encoder:       byol evaluate runs/a --train train/ --test test/
  embed       features of every image:      byol embed runs/a --data photos/ --out features.npz
  search      find images by likeness:      byol search features.npz --query photo.jpg --run runs/a

`byol COMMAND --help` lists a command's flags.
Exit codes: 0 done, 2 usage or settings, 3 images, 4 diverged, 70 a bug, 75 stopped by a signal and saved, 130 Ctrl-C and saved.
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
        print(f"byol {words[0]}: {failure}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        print("byol: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # the outermost door: whatever comes here was not foreseen
        traceback.print_exc()
        print("byol: this is a bug. Please report it with the lines above.", file=sys.stderr)
        return 70


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
    elif name == "search":
        from byol.commands.search import search as command
    else:
        commands = ("demo", "train", "evaluate", "embed", "search")
        raise ConfigError(
            f"There is no command {name!r}.{did_you_mean(name, commands)} The commands are {', '.join(commands)}."
        )
    return command
