"""Trial passes of a network: which layer gives the representation, how it is pooled, what it depends on."""

import copy
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from byol.errors import ConfigError
from byol.method.hidden import (
    HEAD,
    INPUT,
    OUTPUT,
    HiddenLayer,
    Pooling,
    Reached,
    described,
    layer_name,
    never_run,
    pool,
    run,
    run_whole,
    single_tensor,
    tensors_in,
)  # fmt: skip

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
    """Run a throw-away copy of a network on an example or on noise of this size: it and the random state stay.

    Without a hidden layer it is what the network itself says comes before its classifier. Raises ConfigError when the
    layer does not exist, is not reached, or gives nothing that can be a representation.
    """
    layer = None if hidden_layer is None else layer_name(net, hidden_layer)
    try:
        with torch.random.fork_rng([]):  # a network's own __deepcopy__ may draw fresh weights
            trial = copy.deepcopy(net)
    except (RuntimeError, TypeError, NotImplementedError) as failure:
        hooks = {
            type(hook).__name__ for module in net.modules() for hook in module._forward_pre_hooks.values()
        }
        advice = "Build the parts that cannot be copied inside the module's __init__, as plain parameters."
        for old, name in (("WeightNorm", "weight_norm"), ("SpectralNorm", "spectral_norm")):
            if old in hooks:
                advice = f"Use torch.nn.utils.parametrizations.{name} in place of torch.nn.utils.{name}."
        raise ConfigError(
            f"{type(net).__name__} cannot be copied ({failure}), and BYOL needs a copy of it as its target. "
            + advice
        ) from failure
    device = next((p.device for p in trial.parameters()), torch.device("cpu"))
    gpus = sorted({p.device.index for p in trial.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(gpus), torch.enable_grad():
        # torch.manual_seed would reseed every GPU, even one that is not in use yet, and only these are put back.
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in gpus)):
            generator.manual_seed(0)
        if image_size is not None and channels is None:
            channels = _channels(trial, image_size, device)
        if example is None:
            assert image_size is not None
            assert channels is not None
            example = _noise((2, channels, *image_size), device)
        # Compiled parts run as written here: their compiler cannot follow what a probe watches.
        compiled = any(name.endswith("_orig_mod") for name, _ in net.named_modules())
        try:
            with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
                return _probed(net, trial, layer, example, channels or 3, gpus)
        except ConfigError:
            raise
        except Exception as failure:  # a foreign network: whatever it raises, it cannot take such a batch
            came = (
                tuple(example.shape) if isinstance(example, Tensor) else f"of type {type(example).__name__}"
            )
            raise ConfigError(
                f"{type(net).__name__} fails on a trial batch {came}: "
                f"{(str(failure) or type(failure).__name__).splitlines()[0]}. "
                "Check image_size, channels or example against what the network expects."
            ) from failure


def _probed(
    net: nn.Module, trial: nn.Module, layer: str | None, example: Any, channels: int, gpus: list[int]
) -> Probe:
    """What passes of the throw-away copy tell: a whole one in each mode, and one with gradients."""
    evaluated = _Pass(trial.eval(), layer or OUTPUT, example)
    if layer is None:
        layer = _before_classifier(trial, example, evaluated)
        evaluated.layer = layer
        if layer == HEAD:
            evaluated = _Pass(trial, layer, example)
    else:
        _warn_of_classifier(net, evaluated)
    with torch.random.fork_rng(gpus):
        trained = _Pass(trial.train(), layer, example)
    # The same pass with gradients. It stops at the layer: later ones may write into its output in place.
    output = HiddenLayer(trial, layer, calls=trained.calls).read(example)
    pooling, skip = _pooling(trial, output, trained)
    representation = pool(output, pooling, skip)
    _check_representation(representation, output, example, layer)
    if representation.requires_grad:
        representation.sum().backward()
    unreached = _unreached(trial, example, evaluated, trained)
    if len(unreached) == sum(p.requires_grad for p in trial.parameters()):
        raise ConfigError(
            f"The representation of {type(net).__name__} depends on no trainable parameter, so there is nothing to "
            "learn. Choose a layer behind a trainable one, or unfreeze the network (requires_grad_(True))."
        )
    _warn_of_constant(net, representation.detach(), example)
    encoder = HiddenLayer(net, layer, pooling, skip, trained.calls, evaluated.calls)
    return Probe(encoder, representation.shape[1], channels, unreached)


class _Pass:
    """One whole pass of a network without gradients: what it runs, and where the hidden layer is read in it."""

    def __init__(self, net: nn.Module, layer: str, view: Any) -> None:
        names = {module: name for name, module in net.named_modules()}
        self.layer = layer
        if layer not in (OUTPUT, HEAD):  # a layer may have several names
            bare = layer.removeprefix(INPUT)
            self.layer = layer.removesuffix(bare) + names[net.get_submodule(bare)]
        self.log: list[str] = []  # "input of NAME" for each module that starts, NAME for each that ends
        self.leaf: nn.Module | None = None  # the last module without parts to end; Identity does not count
        self.sources: list[nn.Module] = []  # in the order in which they run
        self.newest: _Source | None = None
        self.source: _Source | None = None  # the newest when the layer is read
        self.direct = False  # whether the layer gives just what the source gave
        self.read_behind = 0  # how many of the sources

        def starts(module: nn.Module, inputs: Any) -> None:
            self._note(INPUT + names[module], inputs)

        def ends(module: nn.Module, inputs: Any, output: Any) -> None:
            if not any(True for _ in module.children()) and not isinstance(module, nn.Identity):
                self.leaf = module
            source = _source(names[module], module, output)
            if source is not None:
                self.newest = source
                self.sources.append(module)
            self._note(names[module], output)

        handles = [module.register_forward_pre_hook(starts) for module in names]
        handles += [module.register_forward_hook(ends) for module in names]
        with torch.no_grad():
            self.output = run_whole(net, layer, view)
        for handle in handles:
            handle.remove()
        if layer in (OUTPUT, HEAD):
            self._read(self.output)
        elif self.layer not in self.log:
            raise never_run(layer)

    def _note(self, entry: str, value: Any) -> None:
        self.log.append(entry)
        if entry == self.layer:
            self._read(value)

    def _read(self, value: Any) -> None:
        self.source, self.read_behind = self.newest, len(self.sources)
        self.direct = self.source is not None and self.source.gave_among(tensors_in(value).values())

    @property
    def calls(self) -> int:
        """How often the hidden layer is read."""
        return max(1, self.log.count(self.layer))

    def reached(self) -> set[str]:
        """The modules that run before the last time the layer is read."""
        last = self.log[::-1].index(self.layer) if self.layer in self.log else 0
        return {entry.removeprefix(INPUT) for entry in self.log[: len(self.log) - last]}


@dataclass(frozen=True)
class _Source:
    """One run of a layer that shows which axis of its output is the channels'."""

    name: str
    module: nn.Module
    gave: Tensor
    last: bool  # the last axis, not the one behind the batch

    def gave_among(self, tensors: Iterable[Tensor]) -> bool:
        """Whether its output is one of these, as it is."""
        same = (x for x in tensors if x.data_ptr() == self.gave.data_ptr())
        return any(x.shape == self.gave.shape and x.stride() == self.gave.stride() for x in same)


def _source(name: str, module: nn.Module, output: Any) -> _Source | None:
    gave = next(iter(tensors_in(output).values()), None)
    known = isinstance(module, nn.Linear | nn.Embedding | nn.RNNBase | nn.MultiheadAttention)
    if gave is None or gave.ndim < 2 or (any(True for _ in module.children()) and not known):
        return None
    if any(hasattr(module, size) for size in ("out_channels", "num_features", "num_channels")):
        return _Source(name, module, gave, last=False)  # a convolution, a batch or group norm
    if known or type(module) in (nn.LayerNorm, nn.RMSNorm):
        return _Source(name, module, gave, last=True)
    # A norm or scale of somebody's own shows it by the size of its weights.
    sizes = {size for p in module.parameters(recurse=False) for size in p.shape if size > 1}
    first, last = (gave.shape[axis] in sizes for axis in (1, -1))
    return None if first == last else _Source(name, module, gave, last)


def _before_classifier(net: Any, view: Any, passed: _Pass) -> str:
    """The hidden layer that gives what comes before the network's classifier; its output when it has none that shows."""
    if all(hasattr(net, name) for name in ("forward_features", HEAD, "num_classes")):  # as in timm
        if net.num_classes == 0:
            return OUTPUT
        with torch.no_grad():
            whole = net.forward_head(run(net.forward_features, view))
        if torch.equal(single_tensor(whole, HEAD), single_tensor(passed.output, OUTPUT)):
            return HEAD
    last = passed.source
    if last is None or not any(m is not last.module for m in passed.sources):  # the network is this layer
        return OUTPUT
    kind, named = type(net).__name__, CLASSIFIER.search(last.name)
    linear, ends = isinstance(last.module, nn.Linear), passed.leaf is last.module
    if (linear and ends and passed.direct) or (hasattr(last.module, "out_channels") and named):
        logger.log(
            logging.INFO if named else logging.WARNING,
            "The last layer of %s, %r, looks like a classifier, so the representation is what this layer is fed. "
            "hidden_layer=%r takes the network's output.",
            kind, last.name, OUTPUT,
        )  # fmt: skip
        return INPUT + last.name
    if linear and (ends or isinstance(passed.leaf, nn.Softmax | nn.LogSoftmax)):
        logger.warning(
            "The last layer of %s, %r, looks like a classifier, but the representation is the network's output. If it "
            "is one, give hidden_layer=%r or another layer before it; if not, hidden_layer=%r.",
            kind, last.name, INPUT + last.name, OUTPUT,
        )  # fmt: skip
    return OUTPUT


def _warn_of_classifier(net: nn.Module, passed: _Pass) -> None:
    """Tell when the chosen hidden layer looks like a classifier: the last layer, or a Linear beside the last ones."""
    last, layer = passed.source, passed.layer
    if layer in (OUTPUT, HEAD) or layer.startswith(INPUT) or last is None or not passed.direct:
        return
    behind = passed.sources[passed.read_behind :]
    heads = all(isinstance(m, nn.Linear) or hasattr(m, "num_features") for m in behind)
    beside = not behind or (heads and CLASSIFIER.search(last.name))
    if isinstance(last.module, nn.Linear) and beside and f"{last.name}.".startswith(f"{layer}."):
        logger.warning(
            "hidden_layer=%r of %s looks like a classifier (%s). Without hidden_layer the representation is what comes "
            "before the classifier; %r is what this layer is fed.",
            layer, type(net).__name__, last.module, INPUT + last.name,
        )  # fmt: skip


def _pooling(net: nn.Module, output: Tensor, passed: _Pass) -> tuple[Pooling, int]:
    """How this network's own head would pool a hidden layer's output, and how many leading tokens it leaves out."""
    if output.ndim <= 2:
        return "none", 0
    last = _channels_last(output, passed)
    if output.ndim > 3:
        return ("channels last" if last else "channels first"), 0
    named = getattr(net, "global_pool", None)  # timm's word for it
    if named == "token":
        return "first token", 0
    if isinstance(named, str) and named.startswith("avg"):
        return "mean of tokens", int(getattr(net, "num_prefix_tokens", 0))
    tokens = (p for name, p in net.named_parameters() if CLASS_TOKEN.fullmatch(name.rpartition(".")[2]))
    if any(p.shape[-1] == output.shape[-1] for p in tokens):
        return "first token", 0
    return ("mean of tokens" if last else "channels first"), 0


def _channels_last(output: Tensor, passed: _Pass) -> bool:
    """Whether the last axis of a map, or of tokens, is the channels', rather than the one behind the batch."""
    source = passed.source
    if source is None:
        return output.ndim == 3
    width = source.gave.shape[-1 if source.last else 1]
    first, last = (output.shape[axis] == width for axis in (1, -1))
    if first != last:
        return last
    return source.last if passed.direct or output.ndim == 3 else False


def _unreached(net: nn.Module, example: Any, evaluated: _Pass, trained: _Pass) -> tuple[str, ...]:
    """The trainable parameters that got no gradient, but for those of modules that another pass would run.

    A pass may leave out what another one runs: layers that are dropped in training, an expert that no input chose.
    """
    missing = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    seen = evaluated.reached()
    ran = {*evaluated.log, *trained.log}
    idle = any(name.rpartition(".")[0] not in ran for name in missing)
    if idle and isinstance(example, Tensor) and example.is_floating_point():
        seen |= _Pass(net.eval(), trained.layer, _noise((16, *example.shape[1:]), example.device)).reached()
    left_out = seen - trained.reached()

    def parts(name: str) -> Iterator[str]:
        while name := name.rpartition(".")[0]:
            yield name

    return tuple(name for name in missing if left_out.isdisjoint(parts(name)))


def _check_representation(representation: Tensor, output: Tensor, example: Any, layer: str) -> None:
    batch = len(example) if isinstance(example, Tensor) else len(representation) if representation.ndim else 0
    if representation.ndim == 2 and len(representation) == batch and representation.is_floating_point():
        return
    raise ConfigError(
        f"{described(layer)} gave {tuple(output.shape)} {output.dtype} for a batch of {batch}; expected floating point "
        f"({batch}, D), a map ({batch}, D, H, W) or tokens ({batch}, T, D). Choose another hidden_layer."
    )


def _warn_of_constant(net: nn.Module, rows: Tensor, example: Any) -> None:
    varied = isinstance(example, Tensor) and bool((example != example[:1]).any())
    if varied and bool((rows == rows[:1]).all()):
        logger.warning(
            "The representation of %s is the same for different inputs%s: the loss starts at 0 and there is little to "
            "learn from. Does its last layer start at zero? Draw its weights, or choose a hidden_layer before it.",
            type(net).__name__,
            "" if bool(rows.any()) else " (all zeros)",
        )


def _channels(net: nn.Module, size: tuple[int, int], device: torch.device) -> int:
    """The channels of images that fit the first layer that runs, as far as it shows; else those of the first convolution."""
    fed, takes = 0, 0

    def starts(module: Any, inputs: Any) -> None:
        nonlocal fed, takes
        convolution = hasattr(module, "in_channels")
        fed = inputs[0].shape[1 if convolution else -1]
        takes = module.in_channels if convolution else module.in_features
        raise Reached

    leaves = [m for m in net.modules() if not any(True for _ in m.children())]
    convolutions: list[Any] = [m for m in leaves if hasattr(m, "in_channels")]
    handles = [
        m.register_forward_pre_hook(starts) for m in leaves if isinstance(m, nn.Linear) or m in convolutions
    ]
    found = None
    for guess in dict.fromkeys([3, *(m.in_channels for m in convolutions)]):
        try:
            with torch.no_grad():
                net.eval()(_noise((2, guess, *size), device))
        except Reached:
            # The layer may be fed a multiple of the channels: patches, or an image that the network repeats.
            found, rest = divmod(guess * takes, fed)
            if found and not rest:
                break
            found = None
        except Exception:  # a foreign network, which may not take as many channels
            continue
    for handle in handles:
        handle.remove()
    return found or next((m.in_channels for m in convolutions), 3)


def _noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
