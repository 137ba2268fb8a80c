"""`byol convert`"""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from byol.disk import check_writable, writing
from byol.encoders.convert import Conversion, Preprocessing, convert as converted
from byol.encoders.encoder import FILE, save_encoder
from byol.errors import ConfigError, show
from byol.models.resnet import Padding
from byol.settings import parse


@dataclass(frozen=True)
class Convert:
    file: tyro.conf.Positional[str]
    """Official checkpoint (.pkl), or torch checkpoint (.pt, .pth, .ckpt) of another library."""
    out: str
    """Folder for encoder.safetensors and encoder.json."""
    preprocessing: Annotated[Preprocessing, tyro.conf.arg(name="")]
    padding: Padding | None = None
    """same (official checkpoints' default) or symmetric (others'), which a plain torchvision network has."""
    encoder: str | None = None
    """A torch checkpoint's network: torchvision:NAME, timm:NAME, package.module:function. Else a ResNet."""
    prefix: str | None = None
    """Where the encoder is in a torch checkpoint. By default where the three libraries keep it."""
    hidden_layer: str | None = None
    """Layer that gives the representation, by name or index. By default what the classifier is fed, or the
    output."""


def convert(arguments: Sequence[str]) -> int:
    """Write the encoder in another program's checkpoint as an encoder file."""
    description = "Make an encoder file of another program's checkpoint; nothing in that is executed."
    command = parse(Convert, arguments, prog="byol convert", description=description)
    out = Path(command.out)
    if os.path.exists(out / FILE):
        raise ConfigError(f"--out is {out}, which holds an encoder. Give another folder.")
    check_writable(out, "Give another --out.")
    found = converted(
        command.file,
        encoder=command.encoder,
        prefix=command.prefix,
        hidden_layer=command.hidden_layer,
        padding=command.padding,
        preprocessing=command.preprocessing,
    )
    report(found)
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    try:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        show(f"written    {save_encoder(found.encoder, out)}")
    except BaseException:
        for folder in made:
            with suppress(OSError):  # what holds something stays
                folder.rmdir()
        raise
    show(f"next       byol embed {shlex.quote(command.out)} --data photos/ --out features.npz")
    return 0


def report(found: Conversion) -> None:
    """What was found, and what was done with it."""
    info = found.encoder.info
    options = "".join(f", {name} {value}" for name, value in info.options.items())
    left = ", ".join(f"{name} ({count})" for name, count in found.left_out.items())
    size = "{} x {}".format(*info.image_size)
    mean, std = (" ".join(f"{number:.4g}" for number in numbers) for numbers in (info.mean, info.std))
    show(f"read       {found.source}")
    show(f"matched    {found.matched} tensors: {info.architecture}{options}, {info.features} features")
    show(f"left out   {left or 'nothing'}")
    for assumption in found.assumed:
        show(f"assumed    {assumption}; the file does not say")
    how = f"{info.interpolation} resize ({'' if info.antialias else 'not '}antialiased)"
    show(f"images     central square of {info.crop_ratio} x the shorter side, {how} to {size},")
    show(f"           mean {mean}, std {std}")
