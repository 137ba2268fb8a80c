"""`byol convert`"""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from byol.encoders.convert import Conversion, Preprocessing, convert as converted
from byol.encoders.encoder import FILE, save_encoder
from byol.errors import ConfigError
from byol.models.resnet import Padding
from byol.settings import parse


@dataclass(frozen=True)
class Convert:
    file: tyro.conf.Positional[str]
    """Official checkpoint (.pkl), or a torch checkpoint (.pt, .pth, .ckpt) of byol-pytorch, lightly or solo-learn."""
    out: str
    """Folder for encoder.safetensors and encoder.json."""
    preprocessing: Annotated[Preprocessing, tyro.conf.arg(name="")]
    padding: Padding | None = None
    """same (official checkpoints' default) or symmetric (others'), which a plain torchvision network has."""
    encoder: str | None = None
    """A torch checkpoint's network: torchvision:NAME, timm:NAME, package.module:function. By default a recognised ResNet."""
    prefix: str | None = None
    """Where the encoder is in a torch checkpoint. By default where the three libraries keep it."""
    hidden_layer: str | None = None
    """Layer of a network of your own that gives the representation, by name or index. By default what
    it feeds its classifier, or its output.
    """


def convert(arguments: Sequence[str]) -> int:
    """Write the encoder in another program's checkpoint as an encoder file; nothing in the checkpoint is executed."""
    description = (
        "Make an encoder file of another program's checkpoint. Nothing in the checkpoint is executed."
    )
    command = parse(Convert, arguments, prog="byol convert", description=description)
    out = Path(command.out)
    with new_folder(out):
        found = converted(
            command.file,
            encoder=command.encoder,
            prefix=command.prefix,
            hidden_layer=command.hidden_layer,
            padding=command.padding,
            preprocessing=command.preprocessing,
        )
        report(found)
        file = save_encoder(found.encoder, out)
    print(f"written    {file}")
    print(f"next       byol embed {shlex.quote(command.out)} --data photos/ --out features.npz")
    return 0


@contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """A folder to write an encoder to, made before the long work; what was made goes again when that fails."""
    if os.path.exists(out / FILE):
        raise ConfigError(f"--out is {out}, which holds an encoder. Give another folder.")
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise ConfigError(
                f"--out is {out}, which cannot be made: {failure.strerror}. Give another folder."
            ) from failure
        yield
    except BaseException:
        for folder in made:
            if os.path.isdir(folder) and not any(folder.iterdir()):
                folder.rmdir()
        raise


def report(found: Conversion) -> None:
    """What was found, and what was done with it."""
    info = found.encoder.info
    options = "".join(f", {name} {value}" for name, value in info.options.items())
    height, width = info.image_size
    resize = (
        f"{info.interpolation} resize ({'' if info.antialias else 'not '}antialiased) to {height} x {width}"
    )
    print(f"read       {found.source}")
    print(f"matched    {found.matched} tensors: {info.architecture}{options}, {info.features} features")
    print(
        f"left out   {', '.join(f'{name} ({count})' for name, count in found.left_out.items()) or 'nothing'}"
    )
    for assumption in found.assumed:
        print(f"assumed    {assumption}; the file does not say")
    print(f"images     central square of {info.crop_ratio} x the shorter side, {resize},")
    print(f"           mean {spaced(info.mean)}, std {spaced(info.std)}")


def spaced(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)
