"""Any network, read at one of its layers: where the representation comes out and how it is pooled."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from byol.errors import ConfigError, did_you_mean

Pooling = Literal["none", "channels first", "channels last", "first token", "mean of tokens"]
OUTPUT = "output"  # the network's own output
INPUT = "input of "  # in front of a layer's name: what the layer is fed, not what it gives
HEAD = "forward_head"  # timm's method, which leaves the classifier out when told to


class Reached(BaseException):
    """Leaves a network at its hidden layer, so that the layers behind are not run."""


class HiddenLayer(nn.Module):
    """A network whose forward gives the representation (B, D) at one of its layers, float32 without autocast.

    The layers behind the hidden layer are not run: they cost nothing and keep their buffers.
    """

    def __init__(
        self,
        net: nn.Module,
        layer: str = OUTPUT,  # as `layer_name` gives it
        pooling: Pooling = "none",
        skip: int = 0,  # class and register tokens in front of those that are averaged
        calls: int = 1,  # how often a pass in train mode runs the layer; the last time counts
        eval_calls: int | None = None,
    ) -> None:
        super().__init__()
        self.net, self.layer, self.pooling, self.skip, self.calls = net, layer, pooling, skip, calls
        self.eval_calls = calls if eval_calls is None else eval_calls
        self.stops = True  # a trace for export sets this to False: it cannot be left in the middle

    def forward(self, view: Any) -> Tensor:
        x = pool(self.read(view), self.pooling, self.skip)
        if x.dtype == torch.float32:
            return x
        halved = x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
        return x if halved else x.float()

    def read(self, view: Any) -> Tensor:
        """What the hidden layer gives of a view, not pooled yet."""
        net: Any = self.net
        if self.layer == OUTPUT:
            return single_tensor(run(net, view), self.layer)
        if self.layer == HEAD:
            features = run(net.forward_features, view)
            return single_tensor(net.forward_head(features, pre_logits=True), self.layer)
        fed = self.layer.startswith(INPUT)
        left = self.calls if net.training else self.eval_calls
        found: Tensor | None = None

        def reached(module: nn.Module, inputs: Any, output: Any = None) -> None:
            nonlocal left, found
            left -= 1
            if left == 0:
                found = single_tensor(inputs[0] if fed else output, self.layer)
                if self.stops:
                    raise Reached
                found = found.clone()  # the layers behind may write into it

        # A hook for this pass alone: between passes the network is as it was. It is put in place by hand
        # because torch.compile takes the pass as one graph then, and cannot follow register_forward_hook.
        attributes = net.get_submodule(self.layer.removeprefix(INPUT)).__dict__
        kind = "_forward_pre_hooks" if fed else "_forward_hooks"
        hooks = attributes[kind]
        attributes[kind] = OrderedDict([*hooks.items(), (-1, reached)])
        try:
            run(net, view)
        except Reached:
            pass
        finally:
            attributes[kind] = hooks
        if found is None:
            raise ConfigError(
                f"The network has a layer {self.layer!r}, but never runs it. Choose another one."
            )
        return found

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, pooling={self.pooling!r}"


def run(net: Callable[..., Any], view: Any) -> Any:
    """Call a network: a tuple holds its positional arguments, a mapping its keyword arguments."""
    if isinstance(view, tuple):
        return net(*view)
    return net(**view) if isinstance(view, Mapping) else net(view)


def layer_name(net: nn.Module, hidden_layer: str | int) -> str:
    """The name of a hidden layer that is chosen by name or by a child's index (negative counts from the end).

    That is a dotted name, "input of NAME", "output" for the network's own output, for which -1 stands as
    well, or "forward_head" for what this method of timm's networks gives without their classifier.
    """
    name = OUTPUT if str(hidden_layer) == "-1" else str(hidden_layer)
    bare = name.removeprefix(INPUT)
    children = [child for child, _ in net.named_children()]
    names = [layer for layer, _ in net.named_modules(remove_duplicate=False) if layer]
    if name == OUTPUT or (name == HEAD and hasattr(net, HEAD)):
        return name
    if isinstance(hidden_layer, str) and bare in names:
        return name
    if bare.removeprefix("-").isdecimal() and -len(children) <= int(bare) < len(children):
        return name.removesuffix(bare) + children[int(bare)]
    raise ConfigError(
        f"{type(net).__name__} has no layer {hidden_layer!r}.{did_you_mean(bare, names)} Expected a dotted "
        f"name, an index of its {len(children)} outermost layers ({', '.join(children) or 'none'}), or "
        f"{OUTPUT!r} for the network's own output."
    )


def pool(output: Tensor, pooling: Pooling, skip: int = 0) -> Tensor:
    """A layer's output as a representation (B, D): an average of maps or tokens, or the class token."""
    if pooling == "channels first":
        return output.flatten(2).mean(2)
    if pooling == "channels last":
        return output.flatten(1, -2).mean(1)
    if pooling == "first token":
        return output[:, 0]
    return output[:, skip:].mean(1) if pooling == "mean of tokens" else output


def tensors_in(output: Any) -> dict[str, Tensor]:
    """The tensors in what a module returns, by key or place."""
    if isinstance(output, Tensor):
        return {"0": output}
    parts = dict(enumerate(output)) if isinstance(output, list | tuple) else output
    pairs = parts.items() if isinstance(parts, Mapping) else ()
    return {str(key): value for key, value in pairs if isinstance(value, Tensor)}


def single_tensor(output: Any, layer: str) -> Tensor:
    """The one tensor in a layer's output; of several only the user knows which is meant."""
    parts = tensors_in(output)
    for known in ("pooler_output", "last_hidden_state"):  # transformers' names for an encoder's result
        if known in parts:
            return parts[known]
    if len(parts) == 1:
        return next(iter(parts.values()))
    shapes = ", ".join(f"{key}: {tuple(value.shape)}" for key, value in parts.items())
    raise ConfigError(
        f"hidden_layer={layer!r} holds {len(parts)} tensors ({shapes or type(output).__name__}), not one. "
        "Name the layer that gives the representation, or wrap the network so that it returns one tensor."
    )
