"""An encoder ready to use, and its file: the network's tensors and everything needed to use them.

`encoder.safetensors` carries its description and a checksum in its header, so the file alone is enough;
`encoder.json` beside it is the same description for people and other programs.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from byol.data.images import Images, open_images
from byol.disk import parse_json, read_safetensors, replacing, write_text
from byol.errors import CheckpointError, ConfigError, DataError, complaint, damaged
from byol.method.byol import evaluating
from byol.method.cpu import laid_out
from byol.method.crops import Interpolation
from byol.method.hidden import INPUT, OUTPUT, HiddenLayer, Pooling, layer_name
from byol.method.pixels import ImageCheck, normalise_, prepare
from byol.models.build import build_encoder, is_own_code

# Format 1 called the architecture "encoder"; up to 2 the convnet had five convolutions and gave the last map,
# in 3 the last two, each in quarters.
FORMAT = 4
FILE, DESCRIPTION = "encoder.safetensors", "encoder.json"
PART = "classifier:"  # in front of the names of a classifier's tensors
PLAN = "plan.json"  # of the run that an encoder comes from
PIXELS = 2**24  # the most that an image fed to a network may have: 4096 x 4096


@dataclass(frozen=True)
class EncoderInfo:
    """How an encoder is built and what it expects. Raises ConfigError for values that cannot be."""

    architecture: str | None  # name for `build_encoder`; None for a module of the user's own
    options: dict[str, Any]  # of `build_encoder`
    image_size: tuple[int, int]  # height, width in pixels of what the network is fed; (0, 0) of no image
    channels: int  # 0 of a network that takes other samples than images, which are fed to it as they are
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    features: int  # D of the representation
    hidden_layer: str | None  # dotted name of the layer that gives it; None is the network's output
    pooling: Pooling
    skip: int  # tokens left out of an average
    calls: int  # how often a forward pass runs the hidden layer
    crop_ratio: float = 0.875  # side of the central square that is resized, as a share of the shorter side
    interpolation: Interpolation = "bicubic"  # of that resize
    antialias: bool = True
    levels: tuple[float, float] | None = None  # samples of more than 8 bits that are black and white

    def __post_init__(self) -> None:
        levels = self.levels or (0, 1)
        numbers = (*self.mean, *self.std, self.crop_ratio, *levels)
        finite = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        fed = (*self.image_size, self.channels) if self.takes_images else ()
        counts = (*fed, self.features, self.skip + 1, self.calls + 1)
        whole = all(type(count) is int and count > 0 for count in counts)
        right = {
            "architecture": isinstance(self.architecture, str | None),
            "options": isinstance(self.options, dict),
            "image_size": whole and len(self.image_size) == 2 and math.prod(self.image_size) <= PIXELS,
            "features": whole and self.features <= PIXELS,
            "mean": finite and len(self.mean) == self.channels,
            "std": finite and len(self.std) == self.channels and min(self.std, default=1) > 0,
            "hidden_layer": isinstance(self.hidden_layer, str | None),
            "pooling": self.pooling in get_args(Pooling),
            "crop_ratio": finite and 0 < self.crop_ratio <= 1,
            "interpolation": self.interpolation in get_args(Interpolation),
            "antialias": isinstance(self.antialias, bool),
            "levels": finite and len(levels) == 2 and levels[0] < levels[1],
        }
        for name, good in right.items():
            if not good:
                value = f"{getattr(self, name)!r:.80}"
                raise ConfigError(f"An encoder of {self.channels} channels cannot have {name} {value}.")

    @classmethod
    def of(
        cls, encoder: HiddenLayer, architecture: str | None, options: dict[str, Any], **expected: Any
    ) -> "EncoderInfo":
        """The description of a network that is read at a hidden layer; `expected` gives the other fields."""
        layer = plain_name(encoder.net, encoder.layer)
        read = {"pooling": encoder.pooling, "skip": encoder.skip, "calls": encoder.eval_calls, **expected}
        return cls(architecture, options, hidden_layer=None if layer in ("", OUTPUT) else layer, **read)

    @property
    def takes_images(self) -> bool:
        """Whether it is fed images, which are prepared for it; other samples are not."""
        return (self.image_size, self.channels) != ((0, 0), 0)

    @property
    def from_a_library(self) -> bool:
        """Whether its name is enough to build the network: one of this package, of torchvision or of timm."""
        return self.architecture is not None and not is_own_code(self.architecture)

    def build(self, name: str) -> nn.Module:
        """The network of this name, with fresh weights, for these images."""
        return build_encoder(name, channels=self.channels, image_size=self.image_size, **self.options)

    def preprocessing(self) -> dict[str, Any]:
        """What is done to an image before the network sees it, as plain values for other programs."""
        names = ["image_size", "channels", "crop_ratio", "interpolation", "antialias", "mean", "std"]
        names += [] if self.levels is None else ["levels"]
        return {name: getattr(self, name) for name in names}


class Encoder(nn.Module):
    """An encoder ready to use: images (B, C, H, W) uint8, or float in [0, 1], of any size give (B, D).

    One that was trained with views of the user's own takes a batch of what its network takes, as it is.
    Always in eval mode and without gradients. `net` is the network itself.
    """

    def __init__(self, network: HiddenLayer, info: EncoderInfo) -> None:
        super().__init__()
        self.network = network
        self.info = info
        self._check = ImageCheck(info.channels)

    @property
    def net(self) -> nn.Module:
        """The network that was trained."""
        return self.network.net

    def with_crop(self, share: float | None) -> "Encoder":
        """This encoder for the central square of another share of the shorter side; it shares the network.

        None leaves the crop as it is.
        """
        return self if share is None else Encoder(self.network, replace(self.info, crop_ratio=share))

    def tensors(self) -> dict[str, Tensor]:
        """The network's tensors by their plain names. Raises ConfigError for state that is not a tensor."""
        check_savable(self.net)
        return {plain_name(self.net, name): tensor for name, tensor in self.net.state_dict().items()}

    def checksum(self) -> str:
        """Hexadecimal, of the network's tensors and the description; the `blake2b` of the encoder's file."""
        return digest(self.tensors(), {"format": FORMAT, **asdict(self.info)})

    def open(self, images: Any) -> Images:
        """Anything `open_images` takes, read as those that the encoder was trained on. Raises DataError."""
        if not self.info.takes_images:
            raise DataError(
                "The encoder was trained with views of its user's own, on samples that only Python reads: "
                "byol.embed(encoder, data), byol.evaluate(encoder, train=data, ...)."
            )
        if isinstance(images, Images):
            return open_images(images.with_levels(self.info.levels), channels=self.info.channels)
        black, white = self.info.levels or (None, None)
        return open_images(images, channels=self.info.channels, black=black, white=white)

    def prepare(self, images: Any, *, normalised: bool = False) -> Any:
        """Images as the network is fed them, by default not normalised: float32 (B, C, h, w) in [0, 1].

        Other samples stay as they are.
        """
        info = self.info
        if not info.takes_images:
            return images
        self._check(images)
        x = prepare(images, info.image_size, info.crop_ratio, info.antialias, info.interpolation)
        return normalise_(x, info.mean, info.std) if normalised else x

    @torch.no_grad()
    def forward(self, images: Any) -> Tensor:
        """The representation (B, D) of images."""
        with evaluating(self.network):
            representation: Tensor = self.network(self.prepare(images, normalised=True))
        if representation.shape[1:] != (self.info.features,):
            raise CheckpointError(
                f"The encoder gives features {tuple(representation.shape)}, and its description says "
                f"{self.info.features} for each image: they do not belong together."
            )
        return representation.float()


def save_encoder(encoder: Encoder, folder: str | Path) -> Path:
    """Write encoder.safetensors and encoder.json into a folder, each whole. Returns the former's path."""
    folder = Path(folder)
    with replacing(folder / FILE) as temporary:
        description = write(encoder, temporary)
        write_text(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return folder / FILE


def write(
    encoder: Encoder,
    file: Path,
    classifier: Mapping[str, Any] | None = None,
    parts: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write an encoder file, perhaps with a classifier's description and tensors. Returns its description."""
    tensors = unshared({**encoder.tensors(), **{PART + name: tensor for name, tensor in parts.items()}})
    description = {"format": FORMAT, **asdict(encoder.info)}
    description |= {} if classifier is None else {"classifier": classifier}
    description["blake2b"] = digest(tensors, description)
    metadata = {"byol": json.dumps(description)}  # one entry: their order is not fixed
    save_file(tensors, file, metadata=metadata)
    return description


class EncoderFile(NamedTuple):
    """What an encoder file holds."""

    tensors: dict[str, Tensor]  # of the network
    info: EncoderInfo
    classifier: Any = None  # its description, whatever the file says; None for an encoder alone
    parts: Mapping[str, Tensor] = MappingProxyType({})  # the classifier's tensors


def read(file: Path) -> EncoderFile:
    """What an encoder file holds, checked against its checksum."""
    try:
        tensors, metadata = read_safetensors(file)
    except (SafetensorError, OSError, ValueError) as failure:
        raise CheckpointError(
            f"{file} cannot be read as safetensors ({failure}). Write it again or take another copy."
        ) from failure
    if "byol" not in metadata:
        raise CheckpointError(f"{file} is not an encoder of this project: it has no description.")
    try:
        description = parse_json(metadata["byol"])
        written = description["format"]
        if isinstance(written, int) and written > FORMAT:  # whose checksum may be another one
            raise CheckpointError(f"{file} was written by a newer version of byol. Upgrade byol to read it.")
        if description.pop("blake2b") != digest(tensors, description):
            raise ValueError("it has another checksum")
        if description.pop("format") == 1:
            description["architecture"] = description.pop("encoder")
        if written < 4 and description["architecture"] == "convnet":
            five = written < 3 or description["options"].get("convolutions") == 5
            before = {"convolutions": 5, "grids": [2]} if five else {"grids": [2, 2]}
            description["options"] = before | description["options"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
        raise damaged(file, "is damaged: what it holds does not match its checksum") from failure
    classifier, parts = description.pop("classifier", None), dict[str, Tensor]()
    if classifier is not None:
        parts = {name.removeprefix(PART): tensors.pop(name) for name in [*tensors] if name.startswith(PART)}
    try:
        for name in ("image_size", "mean", "std", *(["levels"] if description.get("levels") else [])):
            description[name] = tuple(description[name])
        return EncoderFile(tensors, EncoderInfo(**description), classifier, parts)
    except (TypeError, ValueError, KeyError, OverflowError) as failure:
        raise CheckpointError(
            f"{file} does not describe an encoder as this version of byol does ({failure}). "
            "Write it again with this version."
        ) from failure


def is_sound(file: Path) -> bool:
    """Whether an encoder file is there and undamaged."""
    try:
        read(file)
    except CheckpointError:
        return False
    return True


def fill(net: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Fill a network with the tensors in a file. Raises CheckpointError unless all fit and none is missing.

    A network on the meta device takes the tensors as they are, without a copy.
    """
    names = {plain_name(net, name): name for name in net.state_dict()}
    # Files of format 1 may hold the names of a compiled or parallel network.
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    if not names.keys() & plain.keys():
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items()}
    state = OrderedDict((names.get(name, name), tensor) for name, tensor in plain.items())
    state._metadata = net.state_dict()._metadata  # type: ignore[attr-defined]  # MNASNet asks for its version
    try:
        net.load_state_dict(state, assign=any(p.is_meta for p in net.parameters()))
    except RuntimeError as failure:
        raise CheckpointError(
            f"The tensors in {path} do not fit the network {type(net).__name__}: {complaint(failure)}"
        ) from failure


def filled(
    net: nn.Module, tensors: Mapping[str, Tensor], info: EncoderInfo, path: str | Path, device: torch.device
) -> Encoder:
    """An encoder of a network and the tensors that fill it, read from `path`."""
    fill(net, tensors, path)
    modules = [name for name, _ in net.named_modules(remove_duplicate=False)]
    layers = {plain_name(net, start + name): start + name for name in modules for start in ("", INPUT)}
    layer = info.hidden_layer or OUTPUT
    return ready(net, layer_name(net, layers.get(layer, layer)), info, device)


def ready(net: nn.Module, layer: str, info: EncoderInfo, device: torch.device) -> Encoder:
    """An encoder on a device, in the memory format that is fast there for images, in eval mode."""
    encoder = Encoder(HiddenLayer(net, layer, info.pooling, info.skip, info.calls), info).to(device).eval()
    return laid_out(encoder) if info.takes_images else encoder


def plain_name(net: nn.Module, name: str) -> str:
    """A name in a network without `_orig_mod.` of torch.compile and `module.` of DataParallel and DDP."""
    start, words = INPUT if name.startswith(INPUT) else "", list[str]()
    part: Any = net
    for word in name.removeprefix(start).split("."):
        if word != "_orig_mod" and not isinstance(part, nn.DataParallel | DistributedDataParallel):
            words.append(word)
        part = getattr(part, word, None)
    return start + ".".join(words)


def check_savable(net: nn.Module) -> None:
    """Raise ConfigError for a network with state that is not a tensor: an encoder file could not hold it."""
    strange = [name for name, value in net.state_dict().items() if not isinstance(value, Tensor)]
    if strange:
        raise ConfigError(
            f"{type(net).__name__} keeps state that is not a tensor ({', '.join(strange[:3])}), and an "
            "encoder file holds tensors only. Keep it as a buffer, or leave it out (get_extra_state)."
        )


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, contiguous, and none in the memory of another one.

    A network may use a tensor under several names (tied weights, a block that runs twice).
    """
    found, memory = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in memory else tensor
        memory.add(place)
    return found


def digest(tensors: Mapping[str, Tensor], description: dict[str, Any]) -> str:
    """BLAKE2b of the description, and of every tensor's name, type, shape and bytes."""
    state = blake2b(json.dumps(description).encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def device_of(encoder: Encoder) -> torch.device:
    """Where an encoder's tensors are; the CPU for one without any, such as raw pixels."""
    return next((tensor.device for tensor in encoder.state_dict().values()), torch.device("cpu"))
