"""From a name to an encoder: "resnet50x2", "convnet", "torchvision:NAME", "timm:NAME", "module:function"."""

import inspect
import re
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, get_type_hints

from torch import nn

from byol.errors import ConfigError, did_you_mean
from byol.models.convnet import convnet
from byol.models.resnet import BLOCKS, DEPTHS, ResNet, resnet

WIDTHS = (1, 2, 3, 4)  # of the paper, Table 1
LIBRARIES = ("torchvision:", "timm:")  # how the names of other libraries' networks begin
LOADING = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # timm's
HEADS = ("fc", "classifier", "heads", "head")  # what torchvision calls the classifier at a network's end
OPTIONS = ("stem", "padding", "last_gamma")  # of every ResNet of this package


def build_encoder(
    name: str, *, channels: int = 3, image_size: int | tuple[int, int] | None = None, **options: Any
) -> nn.Module:
    """A network with fresh weights whose forward gives the representation of float images (B, channels,
    H, W).

    - "resnet18" ... "resnet200", with "x2", "x3" or "x4" for a width of the paper; options stem, padding,
      last_gamma.
    - "resnet": any other; also takes block ("basic", "bottleneck"), blocks, stem_channels, stage_channels.
    - "convnet": the small encoder for CPUs; option width.
    - "torchvision:NAME", "timm:NAME": an image classification model without its classifier; its own options.
    - "package.module:function": your own code, imported and called with the options, and with `channels` and
      `image_size` if it has parameters of these names. Building such a name runs that code.

    `image_size` is the side, or height and width, of the views, for models whose weights depend on it,
    such as ViTs. The representation is (B, D), or a map or tokens of a timm model or your own, which
    `BYOL` pools. Nothing is downloaded. Raises ConfigError for an unknown name or option, a missing
    library, or a network that cannot be.
    """
    if not isinstance(channels, int) or channels < 1:
        raise ConfigError(f"channels is {channels!r}; expected a whole number of at least 1.")
    if is_own_code(name):
        return imported_encoder(name, {"channels": channels, "image_size": image_size}, options)
    source, colon, model = name.partition(":")
    if not colon:
        return own_encoder(name, channels, options)
    build = torchvision_encoder if source == "torchvision" else timm_encoder
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return build(model, channels, tuple(size) if size else None, options)


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
    if name == "convnet":
        check_options(name, options, ("width",))
        return convnet(channels=channels, **options)
    if name in known_encoders():
        check_options(name, options, OPTIONS)
        depth, _, width = name.removeprefix("resnet").partition("x")
        return resnet(int(depth), int(width or 1), channels=channels, **options)
    if name != "resnet":
        raise ConfigError(
            f"There is no encoder {name!r}.{did_you_mean(name, known_encoders())} Expected convnet, "
            f"resnet{'|'.join(map(str, DEPTHS))} with x2, x3 or x4 if you like, torchvision:NAME, timm:NAME "
            "or package.module:function."
        )
    check_options(name, options, ("block", "blocks", "stem_channels", "stage_channels", *OPTIONS))
    given = {"block": "bottleneck", "blocks": DEPTHS[50][1], **options}
    block = BLOCKS.get(str(given.pop("block")))
    if block is None:
        raise ConfigError(f"block is {options['block']!r}; expected {' or '.join(map(repr, BLOCKS))}.")
    for option in ("blocks", "stage_channels"):
        if not isinstance(given.get(option, []), list | tuple):
            raise ConfigError(f"{option} is {given[option]!r}; expected four whole numbers.")
    return ResNet(block, given.pop("blocks"), channels=channels, **given)


def torchvision_encoder(
    name: str, channels: int, size: tuple[int, ...] | None, options: dict[str, Any]
) -> nn.Module:
    """A classification model of torchvision without the last layer of its classifier."""
    models = library("torchvision").models
    check_model("torchvision", name)
    builder = models.get_model_builder(name)
    takes = inspect.signature(get_type_hints(builder)["return"]).parameters
    # GoogLeNet and Inception: one output instead of three, and no warning about how the weights start.
    given: dict[str, Any] = {"aux_logits": False, "init_weights": True}
    if size is not None:
        given |= {"input_size": size, "image_size": size[0]}
        if "image_size" in takes and len(set(size)) > 1:
            raise ConfigError(f"torchvision:{name} needs square images; image_size is {size}.")
    given = {key: value for key, value in given.items() if key in takes}
    net = construct(f"torchvision:{name}", builder, {**given, **options}, takes, weights=None)
    remove_head(net)
    if channels != 3:
        adapt_channels(f"torchvision:{name}", net, channels)
    return net


def timm_encoder(
    name: str, channels: int, size: tuple[int, ...] | None, options: dict[str, Any]
) -> nn.Module:
    """A model of timm without its classifier."""
    timm = library("timm")
    check_model("timm", name)
    for option in LOADING:
        if option in options:
            raise ConfigError(
                f"timm:{name} is built with fresh weights, and {option} would load others. Leave it out."
            )
    settings = timm.get_pretrained_cfg(name)
    fixed = settings is not None and settings.fixed_input_size  # timm's sign that a model takes img_size
    given = {"img_size": size} if size is not None and fixed else {}
    model = get_type_hints(timm.model_entrypoint(name)).get("return")
    takes = inspect.signature(model).parameters if inspect.isclass(model) else ()

    def create(**arguments: Any) -> Any:
        return timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **arguments)

    return construct(f"timm:{name}", create, {**given, **options}, takes)


def imported_encoder(name: str, offered: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """What your own function returns, called with the options and the offered arguments that it names."""
    module, _, attribute = name.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*", module) or not attribute.isidentifier():
        raise ConfigError(
            f"The encoder {name!r} is not the name of a function; expected package.module:function."
        )
    try:
        home = import_module(module)
    except ImportError as failure:
        raise ConfigError(
            f"The encoder {name!r} cannot be imported: {failure}. "
            f"Install it, or put the folder that holds {module.partition('.')[0]} on PYTHONPATH."
        ) from failure
    except Exception as failure:  # code of the user's own, which is run by the import
        raise ConfigError(
            f"{module} failed while it was imported: {type(failure).__name__}: {failure}."
        ) from failure
    function = getattr(home, attribute, None)
    if not callable(function):
        raise ConfigError(f"{module} has no function {attribute!r}.{did_you_mean(attribute, vars(home))}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that does not tell
        signature = inspect.Signature()
    takes = signature.parameters
    given = {key: value for key, value in offered.items() if key in takes}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        check_options(name, options, takes)
    try:
        signature.bind(**given, **options)
    except TypeError as failure:
        raise ConfigError(f"{name} cannot be called with the options {options}: {failure}.") from failure
    try:
        net = function(**given, **options)
    except Exception as failure:  # code of the user's own
        last = traceback.extract_tb(failure.__traceback__)[-1]
        raise ConfigError(
            f"The encoder function {name} failed: {type(failure).__name__}: {failure} "
            f"({last.filename}:{last.lineno})."
        ) from failure
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{name} returned a {type(net).__name__}; expected a torch.nn.Module.")
    return net


def construct(
    name: str, builder: Callable[..., Any], given: dict[str, Any], takes: Iterable[str], **fixed: Any
) -> nn.Module:
    """Call a library's builder; what it says about an argument that cannot be becomes a ConfigError."""
    try:
        net: nn.Module = builder(**given, **fixed)
    except (TypeError, ValueError, AssertionError) as failure:
        shown = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "its defaults"
        known = list(takes)
        hint = "".join(did_you_mean(key, known) for key in given if known and key not in known)
        raise ConfigError(
            f"{name} cannot be built with {shown}: {str(failure).rstrip('.!')}.{hint}"
        ) from failure
    return net


def remove_head(net: nn.Module) -> None:
    """Put Identity in the place of a classifier's last layer: the network gives what that was given."""
    name = classifier_of(net)
    if name is not None:
        net.set_submodule(name, nn.Identity())


def classifier_of(net: nn.Module) -> str | None:
    """The name of a classifier's last layer."""
    for name in HEADS:
        head = getattr(net, name, None)
        if isinstance(head, nn.Module):
            # SqueezeNet classifies with a convolution.
            layers = [path for path, part in head.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
            return ".".join(filter(None, (name, layers[-1])))
    return None


def adapt_channels(name: str, net: nn.Module, channels: int) -> None:
    """Give a network's first convolution another number of input channels, with fresh weights."""
    first = next((part for part in net.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise ConfigError(
            f"{name} has no input convolution of 3 channels, so it cannot be built for {channels} channels."
        )
    first.in_channels = channels
    first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
    first.reset_parameters()


def library(name: str) -> Any:
    """An optional library, or a sentence that says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
        raise ConfigError(
            f"{name}: encoders need {name}, which is not installed: pip install 'byol[models]'"
        ) from missing


def model_names(source: str) -> list[str]:
    """The names of the image classification models of torchvision or timm."""
    found = library(source)
    names: list[str] = (
        found.list_models() if source == "timm" else found.models.list_models(module=found.models)
    )
    return names


def check_model(source: str, name: str) -> None:
    """Raise ConfigError unless torchvision or timm has a model of this name."""
    known = model_names(source)
    if name not in known:
        raise ConfigError(
            f"{source} has no image classification model {name!r}.{did_you_mean(name, known)} "
            f"Expected one of its {len(known)} names, without a weights tag, such as {source}:resnet50."
        )


def check_options(name: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for the first option that an encoder does not have."""
    names = list(known)
    for option in options:
        if option not in names:
            raise ConfigError(
                f"The encoder {name} has no option {option!r}.{did_you_mean(option, names)} "
                f"Its options: {', '.join(names) or 'none'}."
            )
