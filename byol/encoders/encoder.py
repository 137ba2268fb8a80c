"""Encoder files: the network's tensors and everything needed to use them, in one safetensors file.

`encoder.safetensors` carries its description and a checksum in its header, so the file alone is enough;
`encoder.json` beside it is the same description for people and other programs.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from byol.data.images import Images, open_images
from byol.disk import parse_json, replacing, write_text
from byol.errors import CheckpointError, ConfigError, complaint
from byol.method.byol import evaluating
from byol.method.crops import Interpolation
from byol.method.hidden import OUTPUT, HiddenLayer, Pooling, layer_name
from byol.method.pixels import check_images, prepare

FORMAT = 1
FILE = "encoder.safetensors"
PLAN = "plan.json"  # of the run that an encoder comes from


@dataclass(frozen=True)
class EncoderInfo:
    """How an encoder is built and what it expects."""

    encoder: str | None  # name for `build_encoder`; None for a module of the user's own
    options: dict[str, Any]  # of `build_encoder`
    image_size: tuple[int, int]  # height, width in pixels of what the network is fed
    channels: int
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    features: int  # D of the representation
    hidden_layer: (
        str | None
    )  # dotted name of the layer that gives the representation; None is the network's output
    pooling: Pooling
    skip: int  # tokens left out of an average
    calls: int  # how often a forward pass runs the hidden layer
    crop_ratio: float = (
        0.875  # side of the central square that is resized to image_size, as a share of the shorter side
    )
    interpolation: Interpolation = "bicubic"  # of that resize
    antialias: bool = True
    levels: tuple[float, float] | None = None  # samples of more than 8 bits that are black and white

    @classmethod
    def of(
        cls, encoder: HiddenLayer, name: str | None, options: dict[str, Any], **expected: Any
    ) -> "EncoderInfo":
        """The description of a network that is read at a hidden layer; `expected` gives the other fields."""
        layer = None if encoder.layer == OUTPUT else encoder.layer
        return cls(name, options, hidden_layer=layer, pooling=encoder.pooling, skip=encoder.skip,
                   calls=encoder.eval_calls, **expected)  # fmt: skip

    @classmethod
    def read(cls, values: dict[str, Any]) -> "EncoderInfo":
        """The inverse of `asdict` behind JSON. Raises ValueError or TypeError for anything else."""
        names = ("image_size", "mean", "std", *(["levels"] if values.get("levels") else []))
        values = {**values, **{name: tuple(values[name]) for name in names}}
        info = cls(**values)
        whole = (*info.image_size, info.channels, info.features)
        right = (
            all(type(number) is int and number > 0 for number in whole)
            and len(info.image_size) == 2
            and len(info.mean) == len(info.std) == info.channels
            and all(isinstance(number, int | float) for number in (*info.mean, *info.std))
            and all(number > 0 for number in info.std)
            and info.pooling in get_args(Pooling)
            and all(type(number) is int and number >= 0 for number in (info.skip, info.calls))
            and isinstance(info.options, dict)
            and isinstance(info.crop_ratio, int | float)
            and 0 < info.crop_ratio <= 1
            and info.interpolation in get_args(Interpolation)
            and isinstance(info.antialias, bool)
            and (info.levels is None or (len(info.levels) == 2 and info.levels[0] < info.levels[1]))
            and all(isinstance(name, str | None) for name in (info.encoder, info.hidden_layer))
        )
        if not right:
            raise ValueError("values of other kinds")
        return info

    def preprocessing(self) -> dict[str, Any]:
        """What is done to an image before the network sees it, as plain values for other programs."""
        values = asdict(self)
        names = ("image_size", "channels", "crop_ratio", "interpolation", "antialias", "mean", "std")
        levels = {} if self.levels is None else {"levels": self.levels}
        return {name: values[name] for name in names} | levels


class Encoder(nn.Module):
    """An encoder ready to use: images (B, C, H, W) uint8, or float in [0, 1], of any size give (B, D) float32.

    Always in eval mode and without gradients. `net` is the network itself.
    """

    def __init__(self, network: HiddenLayer, info: EncoderInfo) -> None:
        super().__init__()
        self.network = network
        self.info = info

    @property
    def net(self) -> nn.Module:
        """The network that was trained."""
        return self.network.net

    def checksum(self) -> str:
        """Hexadecimal, of the network's tensors and the description; the `blake2b` of the encoder's file."""
        check_savable(self.net)
        return digest(self.net.state_dict(), {"format": FORMAT, **asdict(self.info)})

    def open(self, images: Any) -> Images:
        """Anything `open_images` takes, read as those that the encoder was trained on. Raises DataError."""
        if isinstance(images, Images):
            return open_images(images.with_levels(self.info.levels), channels=self.info.channels)
        black, white = self.info.levels or (None, None)
        return open_images(images, channels=self.info.channels, black=black, white=white)

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the network is fed them, but not normalised: float32 (B, C, h, w) in [0, 1]."""
        return self._prepare(images)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The representation (B, D) of images."""
        x = self._prepare(images, mean=self.info.mean, std=self.info.std)
        with evaluating(self.network):
            representation: Tensor = self.network(x)
        return representation.float()

    def _prepare(self, images: Tensor, **normalisation: tuple[float, ...]) -> Tensor:
        info = self.info
        check_images(images, info.channels)
        return prepare(
            images,
            info.image_size,
            crop_ratio=info.crop_ratio,
            interpolation=info.interpolation,
            antialias=info.antialias,
            **normalisation,
        )


def save_encoder(encoder: Encoder, folder: str | Path) -> Path:
    """Write encoder.safetensors and encoder.json into a folder; each is replaced as a whole. Returns the former's path."""
    folder = Path(folder)
    with replacing(folder / FILE) as temporary:
        description = write(encoder, temporary)
        write_text(folder / "encoder.json", json.dumps(description, indent=1) + "\n")
    return folder / FILE


def write(encoder: Encoder, file: Path) -> dict[str, Any]:
    """Write an encoder file. Returns its description."""
    description = {"format": FORMAT, **asdict(encoder.info), "blake2b": encoder.checksum()}
    metadata = {"byol": json.dumps(description)}  # one entry: their order is not fixed
    save_file(unshared(encoder.net.state_dict()), file, metadata=metadata)
    return description


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, contiguous, and none in the memory of another one.

    A network may use a tensor under several names (tied weights, a block that runs twice); a file holds it under each.
    """
    found, memory = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in memory else tensor
        memory.add(place)
    return found


def filled(
    net: nn.Module,
    tensors: dict[str, Tensor],
    info: EncoderInfo,
    path: str | Path,
    device: torch.device | None = None,
) -> Encoder:
    """An encoder of a network and the tensors that fill it, read from `path`. Raises CheckpointError when they do not fit.

    A network on the meta device takes the tensors as they are, without a copy.
    """
    try:
        net.load_state_dict(tensors, assign=any(p.is_meta for p in net.parameters()))
    except RuntimeError as failure:
        raise CheckpointError(
            f"The tensors in {path} do not fit the network {type(net).__name__}: {complaint(failure)}"
        ) from failure
    network = HiddenLayer(
        net, layer_name(net, info.hidden_layer or OUTPUT), info.pooling, info.skip, info.calls
    )
    return ready(network, info, device or torch.device("cpu"))


def ready(network: HiddenLayer, info: EncoderInfo, device: torch.device) -> Encoder:
    """An encoder on a device, in the memory format that is fast there, in eval mode."""
    return Encoder(network, info).to(device).to(memory_format=torch.channels_last).eval()


def find(path: Path) -> Path:
    """The encoder file that a path means."""
    file = path / FILE if os.path.isdir(path) else path
    if os.path.isfile(file):
        return file
    if os.path.exists(path / PLAN):
        raise CheckpointError(
            f"The run in {path} has no encoder yet: it is not finished. Run the same `byol train` command again to continue it."
        )
    if os.path.exists(path / "config.json"):
        raise CheckpointError(
            f"{path} is a folder for timm or Hugging Face, without an {FILE}. Name the run or encoder file it was made of."
        )
    raise CheckpointError(
        f"There is no encoder at {path}; expected a run's folder, an {FILE} file, an official .pkl, or torchvision:NAME or "
        "timm:NAME."
    )


def read(file: Path) -> tuple[dict[str, Tensor], EncoderInfo]:
    """The tensors and the description in an encoder file, checked against its checksum."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as failure:
        raise CheckpointError(
            f"{file} cannot be read as safetensors ({failure}). Write it again or take another copy."
        ) from failure
    if "byol" not in metadata:
        raise CheckpointError(
            f"{file} is a safetensors file, but not an encoder of this project: it has no description."
        )
    damaged = f"{file} is damaged: what it holds does not match its checksum. Take another copy."
    try:
        description = parse_json(metadata["byol"])
        written = description["format"]
        if isinstance(written, int) and written > FORMAT:  # whose checksum may be another one
            raise CheckpointError(f"{file} was written by a newer version of byol. Upgrade byol to read it.")
        if description.pop("blake2b") != digest(tensors, description):
            raise CheckpointError(damaged)
        del description["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise CheckpointError(damaged) from failure
    try:
        return tensors, EncoderInfo.read(description)
    except (TypeError, ValueError, KeyError) as failure:
        raise CheckpointError(
            f"{file} does not describe an encoder as this version of byol does ({failure}). Write it again with this version."
        ) from failure


def check_savable(net: nn.Module) -> None:
    """Raise ConfigError for a network with state that is no tensor: an encoder file could not hold it."""
    strange = [name for name, value in net.state_dict().items() if not isinstance(value, Tensor)]
    if strange:
        raise ConfigError(
            f"{type(net).__name__} keeps state that is no tensor ({', '.join(strange[:3])}), and an encoder file holds tensors "
            "only. Keep it as a buffer, or leave it out of the state (get_extra_state)."
        )


def digest(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """BLAKE2b of the description, and of every tensor's name, type, shape and bytes. The same in every format."""
    state = blake2b(json.dumps(description).encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def device_of(encoder: Encoder) -> torch.device:
    """Where an encoder's tensors are; the CPU for one without any, such as raw pixels."""
    return next((tensor.device for tensor in encoder.state_dict().values()), torch.device("cpu"))
