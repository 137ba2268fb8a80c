"""Any network, read at one of its layers: where the representation comes out, how it is pooled, which parameters it needs."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from byol.errors import ConfigError, did_you_mean

Pooling = Literal["none", "channels first", "channels last", "first token", "mean of tokens"]


class _Reached(BaseException):
    """Carries the hidden layer's output out of a network whose later layers are not needed."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class HiddenLayer(nn.Module):
    """A network whose forward gives the representation (B, D) at one of its layers.

    The layers behind the hidden layer are not run: they cost nothing and keep their buffers.
    """

    def __init__(
        self,
        net: nn.Module,
        layer: str | None,
        pooling: Pooling,
        skip: int,
        calls: int,
        eval_calls: int | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.layer = layer
        self.pooling = pooling
        self.skip = skip  # class and register tokens in front of the ones that are averaged
        self.calls = (
            calls  # how often the network runs the layer in one pass of training; the last output counts
        )
        self.eval_calls = calls if eval_calls is None else eval_calls  # and in eval mode

    def forward(self, view: Any) -> Tensor:
        return pool(single_tensor(self._output(view), self.layer), self.pooling, self.skip)

    def _output(self, view: Any) -> Any:
        if self.layer is None:
            return run(self.net, view)
        left = self.calls if self.net.training else self.eval_calls

        def reached(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise _Reached(output)

        # Registered for this pass alone, so that the user's network stays as it was between passes.
        handle = self.net.get_submodule(self.layer).register_forward_hook(reached)
        try:
            run(self.net, view)
        except _Reached as stop:
            return stop.output
        finally:
            handle.remove()
        raise ConfigError(_not_reached(self.layer))

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, pooling={self.pooling!r}"


@dataclass(frozen=True)
class Probe:
    """What one trial pass tells about a network."""

    encoder: HiddenLayer
    features: int  # D of the representation
    unreached: tuple[str, ...]  # parameters that get no gradient from the representation


def run(net: nn.Module, view: Any) -> Any:
    """Call a network: a tuple is spread over its positional arguments, a mapping over its keyword arguments."""
    if isinstance(view, tuple):
        return net(*view)
    if isinstance(view, Mapping):
        return net(**view)
    return net(view)


def batch_of(view: Any) -> int:
    """The number of samples in a view: the first dimension of its first tensor."""
    if isinstance(view, Tensor):
        if view.ndim == 0:
            raise ConfigError(
                "A view is a scalar; expected a batch whose first dimension counts the samples."
            )
        return view.shape[0]
    parts = view.values() if isinstance(view, Mapping) else view if isinstance(view, list | tuple) else ()
    for part in parts:
        if isinstance(part, Tensor | Mapping | list | tuple):
            return batch_of(part)
    raise ConfigError(
        f"A view is a {type(view).__name__} without a tensor in it; expected a tensor, a tuple or a dict of tensors."
    )


def probe(net: nn.Module, hidden_layer: str | int | None, example: Any) -> Probe:
    """Run a throw-away copy of the network in train mode: the network itself, its buffers and the random state stay.

    Raises ConfigError when the layer does not exist, is not reached, or gives nothing that can be a representation.
    """
    layer = layer_name(net, hidden_layer)
    try:
        with torch.random.fork_rng(
            []
        ):  # a copy that the network's own __deepcopy__ makes may draw fresh weights
            trial = copy.deepcopy(net).train()
    except (RuntimeError, TypeError, NotImplementedError) as failure:
        raise ConfigError(
            f"{type(net).__name__} cannot be copied ({failure}), and BYOL needs a copy of it as its target. "
            "Build the parts that cannot be copied inside the module's __init__, as plain parameters."
        ) from failure
    devices = sorted({p.device.index for p in trial.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.enable_grad():
        # torch.manual_seed would reseed every GPU, even one that is not in use yet, and only these are put back.
        for generator in (
            torch.default_generator,
            *(torch.cuda.default_generators[index] for index in devices),
        ):
            generator.manual_seed(0)
        try:
            return _tried(net, trial, layer, example)
        except ConfigError:
            raise
        except Exception as failure:  # a foreign network: whatever it raises, it cannot take such a batch
            reason = (str(failure) or type(failure).__name__).splitlines()[0]
            raise ConfigError(
                f"{type(net).__name__} fails on a trial batch {_shapes(example)}: {reason}. "
                "Check image_size, channels or example against what the network expects."
            ) from failure


def _tried(net: nn.Module, trial: nn.Module, layer: str | None, example: Any) -> Probe:
    """What passes of the throw-away copy tell."""
    (eval_calls, _), (calls, behind) = (_calls(trial.train(mode), layer, example) for mode in (False, True))
    # A pass of its own, which stops at the layer: later layers may write into its output in place (a residual block).
    reader = HiddenLayer(trial, layer, "none", 0, calls)
    output = single_tensor(reader._output(example), layer)
    pooling, skip = pooling_of(trial, output)
    representation = pool(output, pooling, skip)
    _check_representation(representation, output, batch_of(example), layer)
    unreached = _unreached(reader, example, behind)
    if len(unreached) == sum(p.requires_grad for p in trial.parameters()):
        raise ConfigError(
            f"The representation of {type(net).__name__} depends on no trainable parameter, so there is nothing to learn. "
            "Choose a layer behind a trainable one, or unfreeze the network (requires_grad_(True))."
        )
    return Probe(
        HiddenLayer(net, layer, pooling, skip, calls, eval_calls), representation.shape[1], unreached
    )


def _calls(trial: nn.Module, layer: str | None, example: Any) -> tuple[int, set[Tensor]]:
    """How often a pass runs the layer, and the parameters of the modules that run after its last output."""
    calls, behind = 0, set[Tensor]()
    if layer is None:
        return calls, behind
    read = trial.get_submodule(layer)

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal calls
        calls += module is read
        behind.clear() if module is read else behind.update(module.parameters(recurse=False))

    handles = [module.register_forward_hook(count) for module in trial.modules()]
    with torch.no_grad():
        run(trial, example)
    for handle in handles:
        handle.remove()
    if not calls:
        raise ConfigError(_not_reached(layer))
    return calls, behind


def _unreached(reader: HiddenLayer, example: Any, behind: set[Tensor]) -> tuple[str, ...]:
    """The trainable parameters that get no gradient from the representation.

    A pass may leave out parts that another one runs (layer drop, experts), so while some are missed that are not known to
    come behind the layer, passes of noise are made until eight in a row reach nothing new.
    """
    missing = {name: p for name, p in reader.net.named_parameters() if p.requires_grad}
    view, quiet = example, 0
    while quiet < 8:
        before = len(missing)
        output = single_tensor(reader._output(view), reader.layer)
        if output.requires_grad:
            output.sum().backward()
        missing = {name: p for name, p in missing.items() if p.grad is None}
        if behind.issuperset(missing.values()):
            break
        quiet = 0 if len(missing) < before else quiet + 1
        if isinstance(example, Tensor) and example.is_floating_point():
            view = torch.randn_like(example)
    return tuple(missing)


def _shapes(example: Any) -> str:
    """The shape of a trial batch, for people."""
    return str(tuple(example.shape)) if isinstance(example, Tensor) else f"of type {type(example).__name__}"


def layer_name(net: nn.Module, hidden_layer: str | int | None) -> str | None:
    """The dotted name of a hidden layer given by name or by child index (negative counts from the end); None is the output."""
    if hidden_layer is None:
        return None
    children = [name for name, _ in net.named_children()]
    if isinstance(hidden_layer, str):
        names = [name for name, _ in net.named_modules() if name]
        if (
            hidden_layer not in names and hidden_layer.removeprefix("-").isdecimal()
        ):  # an index, as a command line gives it
            return layer_name(net, int(hidden_layer))
        if hidden_layer not in names:
            shown = ", ".join(children) or "none"
            raise ConfigError(
                f"{type(net).__name__} has no layer {hidden_layer!r}.{did_you_mean(hidden_layer, names)} "
                f"Its outermost layers are: {shown}. None takes the network's own output."
            )
        return hidden_layer
    if isinstance(hidden_layer, bool) or not isinstance(hidden_layer, int):
        raise ConfigError(
            f"hidden_layer is {hidden_layer!r}; expected a layer's name, a child's index, or None for the output."
        )
    if not -len(children) <= hidden_layer < len(children):
        raise ConfigError(
            f"hidden_layer={hidden_layer} does not exist: {type(net).__name__} has {len(children)} child layers"
            f"{' (' + ', '.join(children) + ')' if children else ''}. Give a name, another index, or None for the output."
        )
    return children[hidden_layer]


def pool(output: Tensor, pooling: Pooling, skip: int = 0) -> Tensor:
    """A layer's output as a representation (B, D): maps and token sequences are averaged, or the class token is taken."""
    if pooling == "channels first":
        return output.flatten(2).mean(2)
    if pooling == "channels last":
        return output.flatten(1, -2).mean(1)
    if pooling == "first token":
        return output[:, 0]
    if pooling == "mean of tokens":
        return output[:, skip:].mean(1)
    return output


def pooling_of(net: nn.Module, output: Tensor) -> tuple[Pooling, int]:
    """How this network's own head would pool such an output, and how many leading tokens it leaves out of an average."""
    if output.ndim <= 2:
        return "none", 0
    width = output.shape[-1]
    normalised = {m.normalized_shape[-1] for m in net.modules() if isinstance(m, nn.LayerNorm)}
    if output.ndim > 3:
        # (B, H, W, C) of Swin-like networks shows by a LayerNorm over C; a network without one has (B, C, spatial...).
        square = output.shape[1] == output.shape[2] != width
        last = output.ndim == 4 and width in normalised and (square or output.shape[1] not in normalised)
        return ("channels last" if last else "channels first"), 0
    named = getattr(net, "global_pool", None)  # timm's word for it
    if named == "token":
        return "first token", 0
    if isinstance(named, str) and named.startswith("avg"):
        return "mean of tokens", int(getattr(net, "num_prefix_tokens", 0))
    if any(
        name.rpartition(".")[2] in ("cls_token", "class_token") and p.shape[-1] == width
        for name, p in net.named_parameters()
    ):
        return "first token", 0
    if any(isinstance(m, nn.Conv1d) for m in net.modules()) and width not in normalised:
        return "channels first", 0
    return "mean of tokens", 0


def single_tensor(output: Any, layer: str | None) -> Tensor:
    """The one tensor in a layer's output; several are refused, because only the user knows which is meant."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        parts = {str(key): value for key, value in output.items() if isinstance(value, Tensor)}
        for known in ("pooler_output", "last_hidden_state"):  # transformers' names for an encoder's result
            if known in parts:
                return parts[known]
    elif isinstance(output, list | tuple):
        parts = {str(i): value for i, value in enumerate(output) if isinstance(value, Tensor)}
    else:
        parts = {}
    if len(parts) == 1:
        return next(iter(parts.values()))
    what = "the network" if layer is None else f"layer {layer!r}"
    shapes = (
        ", ".join(f"{key}: {tuple(value.shape)}" for key, value in parts.items()) or type(output).__name__
    )
    raise ConfigError(
        f"The output of {what} holds {len(parts)} tensors ({shapes}); expected one. "
        "Name the layer that gives the representation with hidden_layer, or wrap the network so that it returns one tensor."
    )


def _check_representation(representation: Tensor, output: Tensor, batch: int, layer: str | None) -> None:
    if representation.ndim == 2 and representation.shape[0] == batch and representation.is_floating_point():
        return
    what = "The network's output" if layer is None else f"Layer {layer!r}"
    raise ConfigError(
        f"{what} gave {tuple(output.shape)} {output.dtype} for a batch of {batch}; expected floating point "
        f"({batch}, D), a map ({batch}, D, H, W) or tokens ({batch}, T, D). Choose another hidden_layer."
    )


def _not_reached(layer: str | None) -> str:
    return (
        f"Layer {layer!r} exists, but the network's forward pass never runs it. Choose a layer that it runs."
    )
