"""From a name to an encoder: "resnet50x2", "convnet", "torchvision:NAME", "timm:NAME", "module:function"."""

import inspect
import re
import traceback
from importlib import import_module
from typing import Any, get_type_hints

from torch import nn

from byol.errors import ConfigError, did_you_mean, library
from byol.models.convnet import ConvNet
from byol.models.resnet import BLOCKS, DEPTHS, ResNet, resnet

WIDTHS = (1, 2, 3, 4)  # of the paper, Table 1
LIBRARIES = ("torchvision:", "timm:")  # how the names of other libraries' networks begin
# The options by which these libraries load weights, or have others load them.
LOADING = (
    "weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"
)  # fmt: skip
HEADS = ("fc", "classifier", "heads", "head")  # what torchvision calls the classifier at a network's end
OPTIONS = ("stem", "padding", "last_gamma")  # of every ResNet of this package


def build_encoder(
    name: str, *, channels: int = 3, image_size: int | tuple[int, int] | None = None, **options: Any
) -> nn.Module:
    """A network with fresh weights that turns float images (B, channels, H, W) into representations.

    - "resnet18" ... "resnet200", with "x2", "x3" or "x4" for a width of the paper; options stem, padding,
      last_gamma.
    - "resnet": any other; also takes block ("basic", "bottleneck"), blocks, stem_channels, stage_channels.
    - "convnet": the small encoder for CPUs; options width, whiten, convolutions, grids.
    - "torchvision:NAME", "timm:NAME": an image classification model without its classifier; its own options.
    - "package.module:function": your own code, imported and called with the options, and with `channels` and
      `image_size` if it has parameters of these names. Building such a name runs that code.

    `image_size` is the side, or height and width, of the views, for models whose weights depend on it, such
    as ViTs. The representation is (B, D), or a map or tokens of a timm model or your own, which `BYOL` pools.
    Nothing is downloaded. Raises ConfigError for what does not exist, is not installed or cannot be built.
    """
    if not isinstance(channels, int) or channels < 1:
        raise ConfigError(f"channels is {channels!r}; expected a whole number of at least 1.")
    if is_own_code(name):
        return imported_encoder(name, {"channels": channels, "image_size": image_size}, options)
    source, colon, model = name.partition(":")
    if not colon:
        return own_encoder(name, channels, options)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return library_encoder(source, model, channels, tuple(size) if size else None, options)


def is_own_code(name: str) -> bool:
    """Whether building the encoder of this name imports code of the user's own, "package.module:function".

    No file may make the program do that: such a name counts only when the caller gives it in the same call.
    """
    return ":" in name and not name.startswith(LIBRARIES)


def known_encoders() -> list[str]:
    """The names of this package's own encoders."""
    widths = ["", *(f"x{width}" for width in WIDTHS[1:])]
    return ["convnet", *(f"resnet{depth}{width}" for depth in DEPTHS for width in widths)]


def own_encoder(name: str, channels: int, options: dict[str, Any]) -> nn.Module:
    """One of `known_encoders()`, or "resnet": of any blocks and channels, by default ResNet-50's."""
    if name not in ("resnet", *known_encoders()):
        raise ConfigError(
            f"There is no encoder {name!r}.{did_you_mean(name, known_encoders())} Expected convnet, "
            f"resnet{'|'.join(map(str, DEPTHS))} with x2, x3 or x4 if you like, torchvision:NAME, timm:NAME "
            "or package.module:function."
        )
    known: tuple[str, ...] = ("width", "whiten", "convolutions", "grids") if name == "convnet" else OPTIONS
    known = (*known, "block", "blocks", "stem_channels", "stage_channels") if name == "resnet" else known
    for option in options:
        if option not in known:
            raise ConfigError(
                f"The encoder {name} has no option {option!r}.{did_you_mean(option, known)} "
                f"Its options: {', '.join(known)}."
            )
    if name == "convnet":
        return ConvNet(channels=channels, **options)
    if name != "resnet":
        depth, _, width = name.removeprefix("resnet").partition("x")
        return resnet(int(depth), int(width or 1), channels=channels, **options)
    chosen = {"block": "bottleneck", "blocks": DEPTHS[50][1], **options}
    block = BLOCKS.get(str(chosen.pop("block")))
    if block is None:
        raise ConfigError(f"block is {options['block']!r}; expected {' or '.join(map(repr, BLOCKS))}.")
    return ResNet(block, chosen.pop("blocks"), channels=channels, **chosen)


def library_encoder(
    source: str, model: str, channels: int, size: tuple[int, ...] | None, options: dict[str, Any]
) -> nn.Module:
    """A classification model of torchvision or timm without its classifier."""
    name, found = f"{source}:{model}", library(source)
    check_model(source, model)
    for option in LOADING:
        if option in options:
            raise ConfigError(f"{name} gets fresh weights, and {option} would load others. Leave it out.")
    if source == "timm":
        builder, kind = found.create_model, get_type_hints(found.model_entrypoint(model)).get("return")
        fixed = {"model_name": model, "pretrained": False, "num_classes": 0, "in_chans": channels}
        usual = found.get_pretrained_cfg(model)  # whose fixed_input_size tells that a model takes img_size
        offered: dict[str, Any] = {"img_size": size} if size and usual and usual.fixed_input_size else {}
        takes = taken_by_name(kind) if inspect.isclass(kind) else []
    else:
        builder, fixed = found.models.get_model_builder(model), {"weights": None}
        takes = taken_by_name(get_type_hints(builder)["return"])
        # GoogLeNet and Inception: one output instead of three, and no warning about how the weights start.
        offered = {"aux_logits": False, "init_weights": True}
        if size is not None:
            offered |= {"input_size": size, "image_size": size[0]}
            if "image_size" in takes and len(set(size)) > 1:
                raise ConfigError(f"{name} needs square images; image_size is {size}.")
        offered = {key: value for key, value in offered.items() if key in takes}
    chosen = {**offered, **options}
    try:
        net: nn.Module = builder(**chosen, **fixed)
    except (TypeError, ValueError, AssertionError) as failure:
        shown = ", ".join(f"{key}={value!r}" for key, value in chosen.items()) or "its defaults"
        hint = "".join(did_you_mean(key, takes) for key in chosen if takes and key not in takes)
        complaint = str(failure).rstrip(".!")
        raise ConfigError(f"{name} cannot be built with {shown}: {complaint}.{hint}") from failure
    if source == "torchvision":
        remove_head(net)
        if channels != 3:
            adapt_channels(name, net, channels)
    return net


def taken_by_name(kind: type) -> list[str]:
    """The names that a class itself has for what it can be given; **kwargs is none."""
    parameters = inspect.signature(kind).parameters.values()
    return [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]


def imported_encoder(name: str, offered: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """What your own function returns, called with the options and the offered arguments that it names."""
    module, _, attribute = name.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*", module) or not attribute.isidentifier():
        raise ConfigError(f"{name!r} is not the name of a function; expected package.module:function.")
    try:
        home = import_module(module)
    except Exception as failure:  # code of the user's own, which is run by the import
        raise ConfigError(
            f"{module} cannot be imported: {type(failure).__name__}: {failure}. If it is not found, install "
            f"it, or put the folder that holds {module.partition('.')[0]} on PYTHONPATH."
        ) from failure
    function = getattr(home, attribute, None)
    if not callable(function):
        raise ConfigError(f"{module} has no function {attribute!r}.{did_you_mean(attribute, vars(home))}")
    takes: Any = {}
    try:
        signature = inspect.signature(function)
        takes = signature.parameters
        offered = {key: value for key, value in offered.items() if key in takes}
        signature.bind(**offered, **options)
    except (TypeError, ValueError) as failure:
        hint = "".join(did_you_mean(option, takes) for option in options if option not in takes)
        raise ConfigError(f"{name} cannot be called with {options}: {failure}.{hint}") from failure
    try:
        net = function(**offered, **options)
    except Exception as failure:  # code of the user's own
        last = traceback.extract_tb(failure.__traceback__)[-1]
        raise ConfigError(
            f"The encoder function {name} failed: {type(failure).__name__}: {failure} "
            f"({last.filename}:{last.lineno})."
        ) from failure
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{name} returned a {type(net).__name__}; expected a torch.nn.Module.")
    return net


def remove_head(net: nn.Module) -> None:
    """Put Identity in the place of a classifier's last layer: the network gives what that was fed."""
    for name in HEADS:
        head = getattr(net, name, None)
        if isinstance(head, nn.Module):  # in SqueezeNet the last layer is a convolution
            layers = [path for path, part in head.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
            net.set_submodule(".".join(filter(None, (name, layers[-1]))), nn.Identity())
            return


def adapt_channels(name: str, net: nn.Module, channels: int) -> None:
    """Give a network's first convolution another number of input channels, with fresh weights."""
    first = next((part for part in net.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise ConfigError(f"{name} has no input convolution of 3 channels that could take {channels}.")
    first.in_channels = channels
    first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
    first.reset_parameters()


def model_names(source: str) -> list[str]:
    """The names of the image classification models of torchvision or timm."""
    lib = library(source)
    names: list[str] = lib.list_models() if source == "timm" else lib.models.list_models(module=lib.models)
    return names


def check_model(source: str, name: str) -> None:
    """Raise ConfigError unless torchvision or timm has a model of this name."""
    known = model_names(source)
    if name not in known:
        raise ConfigError(
            f"{source} has no image classification model {name!r}.{did_you_mean(name, known)} "
            f"Expected one of its {len(known)} names, without a weights tag, such as {source}:resnet50."
        )
