"""Trial passes of a network: which layer gives the representation, how it is pooled, what it depends on."""

import copy
import logging
import re
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from byol.errors import ConfigError
from byol.method import hidden
from byol.method.hidden import HEAD, INPUT, OUTPUT, HiddenLayer, Pooling, Reached, layer_name

logger = logging.getLogger("byol")
CLASSIFIER = re.compile(r"fc|head|class|logit|score", re.IGNORECASE)
CLASS_TOKEN = re.compile(r"(cls|class)_?(token|embed|embedding)")


@dataclass(frozen=True)
class Probe:
    """What trial passes tell about a network."""

    encoder: HiddenLayer
    features: int  # D of the representation
    channels: int  # of the images it takes; 3 when nothing tells
    unreached: tuple[str, ...]  # parameters that get no gradient from the representation


def probe(
    net: nn.Module,
    hidden_layer: str | int | None = None,
    example: Any = None,
    *,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Probe:
    """Run a throw-away copy of a network on an example, or on noise of this size; random states stay.

    Without a hidden layer it is what the network itself says comes before its classifier. Raises ConfigError
    when the layer does not exist, is not run, or gives nothing that can be a representation.
    """
    layer = None if hidden_layer is None else layer_name(net, hidden_layer)
    kind = type(net).__name__
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    gpus = sorted({p.device.index for p in net.parameters() if p.is_cuda})
    # Compiled parts run as written here: their compiler cannot follow what a probe watches.
    compiled = any(name.endswith("_orig_mod") for name, _ in net.named_modules())
    with torch.random.fork_rng(gpus), torch.enable_grad():
        # torch.manual_seed would reseed every GPU, even those not in use yet; only these are put back.
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in gpus)):
            generator.manual_seed(0)
        try:
            trial = copy.deepcopy(net)  # its own __deepcopy__ may draw fresh weights
        except (RuntimeError, TypeError, NotImplementedError) as failure:
            raise ConfigError(
                f"{kind} cannot be copied ({failure}), and BYOL needs a copy of it as its target. Build such "
                "parts in the module's __init__, as plain parameters. Old norms have successors that can be: "
                "torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm."
            ) from failure
        if image_size is not None:
            channels = _channels(trial, image_size, device) if channels is None else channels
            example = torch.randn(2, channels, *image_size).to(device) if example is None else example
        try:
            with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
                return _probed(net, trial, layer, example, channels or 3, gpus)
        except ConfigError:
            raise
        except Exception as failure:  # a foreign network: whatever it raises, it cannot take such a batch
            came = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
            reason = (str(failure) or type(failure).__name__).splitlines()[0]
            raise ConfigError(
                f"{kind} fails on a trial batch {came}: {reason}. "
                "Check image_size, channels or example against what the network expects."
            ) from failure


def _probed(
    net: nn.Module, trial: nn.Module, layer: str | None, example: Any, channels: int, gpus: list[int]
) -> Probe:
    """What passes of the throw-away copy tell: a whole one in each mode, and one with gradients."""
    evaluated = _Pass(trial.eval(), layer or OUTPUT, example)
    if layer is None:
        layer = _before_classifier(trial, example, evaluated)
        evaluated = evaluated if layer == OUTPUT else _Pass(trial, layer, example)
    elif evaluated.source is not None and evaluated.gives_classes():
        _tell_of_classifier(net, evaluated.source, "what it gives")
    with torch.random.fork_rng(gpus):
        trained = _Pass(trial.train(), layer, example)
    # The same pass with gradients. It stops at the layer: later ones may write into its output in place.
    output = HiddenLayer(trial, layer, calls=trained.calls if evaluated.calls else 0).read(example)
    pooling, skip = _pooling(trial, output, trained)
    representation = hidden.pool(output, pooling, skip)
    batch = len(example) if isinstance(example, Tensor) else len(output) if output.ndim else 0
    if representation.shape[:1] != (batch,) or representation.ndim != 2 or not output.is_floating_point():
        raise ConfigError(
            f"hidden_layer={layer!r} gave {tuple(output.shape)} {output.dtype}; expected floating point "
            f"({batch}, D), a map ({batch}, D, H, W) or tokens ({batch}, T, D). Choose another hidden_layer."
        )
    if representation.requires_grad:
        representation.sum().backward()
    unreached = _unreached(trial, example, evaluated, trained)
    if len(unreached) == sum(p.requires_grad for p in trial.parameters()):
        raise ConfigError(
            f"The representation of {type(net).__name__} depends on no trainable parameter. Choose a layer "
            "behind a trainable one, or unfreeze the network (requires_grad_(True))."
        )
    varied = isinstance(example, Tensor) and bool((example != example[:1]).any())
    if varied and bool((representation == representation[:1]).all()):
        logger.warning(
            f"The representation of {type(net).__name__} is the same for different inputs: nothing can be "
            "learned, even if the loss is 0. Does its last layer start at 0? Draw it, or read an earlier one."
        )
    encoder = HiddenLayer(net, layer, pooling, skip, trained.calls, evaluated.calls)
    return Probe(encoder, representation.shape[1], channels, unreached)


@dataclass(frozen=True)
class _Source:
    """One run of a layer that shows which axis of its output is the channels'."""

    name: str
    module: nn.Module
    gave: Tensor
    axis: int  # 1, behind the batch, or -1


class _Pass:
    """One whole pass of a network without gradients: what it runs, and where the hidden layer is read."""

    def __init__(self, net: nn.Module, layer: str, view: Any) -> None:
        names = {module: name for name, module in net.named_modules()}  # of several names the first
        bare, whole = layer.removeprefix(INPUT), layer in (OUTPUT, HEAD)
        layer = layer if whole else layer.removesuffix(bare) + names[net.get_submodule(bare)]
        log: list[str] = []  # "input of NAME" for each module that starts, NAME for each that ends
        self.leaf: nn.Module | None = None  # the last without parts to end; Identity does not count
        self.newest: _Source | None = None
        self.source: _Source | None = None  # the newest when the layer is read
        self.direct = False  # whether the layer gives just what the source gave
        self.sources: set[str] = set()

        def note(entry: str, value: Any) -> None:
            log.append(entry)
            if entry == layer:
                self.source, tensors = self.newest, hidden.tensors_in(value).values()
                self.direct = self.source is not None and any(self.source.gave.is_set_to(x) for x in tensors)

        def ends(module: nn.Module, inputs: Any, output: Any) -> None:
            if not [*module.children()] and not isinstance(module, nn.Identity):
                self.leaf = module
            for gave in list(hidden.tensors_in(output).values())[:1]:
                axis = _channel_axis(module, gave)
                if axis is not None:
                    self.newest = _Source(names[module], module, gave, axis)
                    self.sources.add(names[module])
            note(names[module], output)

        handles = [
            m.register_forward_pre_hook(lambda m, inputs: note(INPUT + names[m], inputs)) for m in names
        ]
        handles += [m.register_forward_hook(ends) for m in names]
        with torch.no_grad():
            self.output = HiddenLayer(net, HEAD).read(view) if layer == HEAD else hidden.run(net, view)
        for handle in handles:
            handle.remove()
        if whole:
            note(layer, self.output)
        last = max((place for place, entry in enumerate(log, 1) if entry == layer), default=0)
        self.layer, self.calls = layer, log.count(layer)
        self.ran = {entry.removeprefix(INPUT) for entry in log}
        self.reached = {entry.removeprefix(INPUT) for entry in log[:last]}

    def gives_classes(self) -> bool:
        """Whether the hidden layer looks like a classifier: a Linear as wide as the network's output."""
        last = self.source
        if last is None or not self.direct or not f"{last.name}.".startswith(f"{self.layer}."):
            return False
        wide = any(x.shape[-1:] == last.gave.shape[-1:] for x in hidden.tensors_in(self.output).values())
        named = last is self.newest or CLASSIFIER.search(last.name) is not None
        return isinstance(last.module, nn.Linear) and wide and named


def _channel_axis(module: nn.Module, gave: Tensor) -> int | None:
    """The axis of a layer's output that holds the channels, 1 or -1; None when the layer does not show it."""
    known = isinstance(module, nn.Linear | nn.Embedding | nn.RNNBase | nn.MultiheadAttention)
    if gave.ndim < 2 or ([*module.children()] and not known):
        return None
    if any(hasattr(module, size) for size in ("out_channels", "num_features", "num_channels")):
        return 1  # a convolution, a batch or group norm
    if known or type(module) in (nn.LayerNorm, nn.RMSNorm):
        return -1
    # A norm or scale of somebody's own shows it by the size of its weights.
    sizes = {size for p in module.parameters() for size in p.shape if size > 1}
    fitting = [axis for axis in (1, -1) if gave.shape[axis] in sizes]
    return fitting[0] if len(fitting) == 1 else None


def _before_classifier(net: Any, view: Any, passed: _Pass) -> str:
    """The hidden layer before the network's classifier; its output when it has none that shows."""
    if all(hasattr(net, name) for name in ("forward_features", HEAD, "num_classes")):  # as timm's have
        with torch.no_grad():
            whole = net.forward_head(hidden.run(net.forward_features, view))
        if torch.equal(hidden.single_tensor(whole, HEAD), hidden.single_tensor(passed.output, OUTPUT)):
            return HEAD if net.num_classes else OUTPUT
    last = passed.source
    if last is None or passed.sources == {last.name}:  # the network is this layer
        return OUTPUT
    named = CLASSIFIER.search(last.name) is not None
    linear, ends = isinstance(last.module, nn.Linear), passed.leaf is last.module
    if (linear and ends and passed.direct) or (hasattr(last.module, "out_channels") and named):
        _tell_of_classifier(net, last, "what it is fed", logging.INFO if named else logging.WARNING)
        return INPUT + last.name
    if linear and (ends or isinstance(passed.leaf, nn.Softmax | nn.LogSoftmax)):
        _tell_of_classifier(net, last, "the network's output all the same")
    return OUTPUT


def _tell_of_classifier(net: nn.Module, layer: _Source, what: str, level: int = logging.WARNING) -> None:
    logger.log(
        level,
        f"The layer {layer.name!r} of {type(net).__name__} looks like a classifier ({layer.module}), and the "
        f"representation is {what}. hidden_layer={INPUT + layer.name!r} takes what it is fed, {OUTPUT!r} the "
        "network's output.",
    )


def _pooling(net: nn.Module, output: Tensor, passed: _Pass) -> tuple[Pooling, int]:
    """How this network's own head would pool an output, and how many leading tokens it leaves out."""
    if output.ndim <= 2:
        return "none", 0
    axis, source = -1 if output.ndim == 3 else 1, passed.source
    if source is not None:
        fitting = [one for one in (1, -1) if output.shape[one] == source.gave.shape[source.axis]]
        if len(fitting) == 1:
            axis = fitting[0]
        elif passed.direct or output.ndim == 3:
            axis = source.axis
    if output.ndim > 3:
        return ("channels last" if axis == -1 else "channels first"), 0
    named = getattr(net, "global_pool", None)  # timm's word for it
    if isinstance(named, str) and named.startswith("avg"):
        return "mean of tokens", int(getattr(net, "num_prefix_tokens", 0))
    tokens = (p for name, p in net.named_parameters() if CLASS_TOKEN.fullmatch(name.rpartition(".")[2]))
    if named == "token" or any(p.shape[-1] == output.shape[-1] for p in tokens):
        return "first token", 0
    return ("mean of tokens" if axis == -1 else "channels first"), 0


def _unreached(net: nn.Module, example: Any, evaluated: _Pass, trained: _Pass) -> tuple[str, ...]:
    """The trainable parameters that got no gradient, but for those of modules that another pass would run.

    A pass may leave out what another one runs: layers dropped in training, an expert that no input chose.
    """
    missing = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    seen = evaluated.reached
    idle = {name.rpartition(".")[0] for name in missing} - evaluated.ran - trained.ran
    if idle and isinstance(example, Tensor) and example.is_floating_point():
        many = torch.randn(16, *example.shape[1:]).to(example)
        seen = seen | _Pass(net.eval(), trained.layer, many).reached
    left_out = tuple(f"{name}." for name in seen - trained.reached)
    return tuple(name for name in missing if not name.startswith(left_out))


def _channels(net: nn.Module, size: tuple[int, int], device: torch.device) -> int:
    """The channels of images that fit the first convolution that runs; 3 without any."""
    convolutions: list[Any] = [m for m in net.modules() if hasattr(m, "in_channels") and not [*m.children()]]
    met: list[tuple[int, int]] = []  # the channels that a convolution was fed, and takes

    def starts(module: Any, inputs: Any) -> None:
        met.append((inputs[0].shape[1], module.in_channels))
        raise Reached

    handles = [m.register_forward_pre_hook(starts) for m in convolutions]
    found = next((m.in_channels for m in convolutions), 3)
    for guess in dict.fromkeys([3, *(m.in_channels for m in convolutions)]):
        # A foreign network may not take so many channels, and raise anything.
        with torch.no_grad(), suppress(Reached, Exception):
            net.eval()(torch.randn(2, guess, *size).to(device))
        # It may feed a multiple of the image's channels: patches, or an image that it repeats.
        fitting = [guess * takes // fed for fed, takes in met if guess * takes % fed == 0]
        if fitting:
            found = fitting[0]
            break
        met.clear()
    for handle in handles:
        handle.remove()
    return found
