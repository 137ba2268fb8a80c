"""Bootstrap Your Own Latent (Grill et al. 2020, §3.1, Algorithm 1; official code: byol_experiment.py).

Two views of every image. The online network (encoder, projector, predictor) predicts, from one view, the
projection that the target network (encoder, projector) gives of the other view. Only the online network is
trained; after each optimizer step the target's parameters move a little towards the online ones.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from byol.errors import ConfigError
from byol.method.byol_pytorch import (
    NetWrapper,
    TargetUpdater,
    refuse_simplicial_embeddings,
    tell_of_torchvision,
)
from byol.method.extra import TARGET
from byol.method.heads import linear, mlp, simsiam_mlp
from byol.method.hidden import HiddenLayer
from byol.method.loss import average, regression_loss
from byol.method.probe import probe
from byol.method.shared_norm import several_processes, share_statistics, statistics_kept
from byol.method.views import ViewConfig, Views, height_and_width

logger = logging.getLogger("byol")


class Network(nn.Module):
    """View to projection (B, projection_size); the online and the target network are one each."""

    def __init__(self, encoder: HiddenLayer, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, view: Any) -> Tensor:
        projection: Tensor = self.projector(self.encoder(view))
        return projection


class BYOL(nn.Module):
    """Learn a network's representation from unlabelled images.

    `net` is any module; it is trained in place and stays yours. `image_size` is the side (or height and
    width) of the views. `hidden_layer` says where the representation comes out: a layer's dotted name or a
    child's index, "input of NAME" for what a layer is fed, or "output" for the network's own output. By
    default it is what the network itself feeds its classifier, or the output of one without. Maps and token
    sequences are pooled.

    `forward(images)` draws two views per image of (B, C, H, W) uint8, or float in [0, 1], and returns the
    loss. `forward(view1, view2)` takes views of your own, of any shape; tuples hold the network's positional
    arguments, dicts its keyword arguments.

    `augment_fn`, `augment_fn2` replace the built-in views by functions of a batch; the first alone makes both
    views, the second alone view 2. `example`, a small batch of inputs, stands in for `image_size` when the
    inputs are not images. `use_momentum=False` is SimSiam: the online network itself is the target, behind a
    stop-gradient, and the projector is SimSiam's. `target_net` starts the target from
    another network of the same architecture, as the official code does, instead of a copy. `joint_batchnorm`
    lets both views share their BatchNorm statistics, which the paper does not. `sync_batchnorm` shares them
    over the processes of a distributed run, as the paper does; None does so in a process group, on GPUs
    (NCCL) even if the network is moved there only afterwards. On CPUs the group has to come first. `extra`
    names kinds of views beside the two: each gets a predictor of its own (MULAN, arXiv 2602.05845; not the
    paper's), and `forward` takes them.

    Variants of other papers, off by default: `linear_predictor` (Tian et al., arXiv 2102.06810); heads
    without BatchNorm, `head_batchnorm=False` (Richemond et al., arXiv 2010.10241); `ema_statistics`, a target
    that is normalised by an average of the online network's running statistics, kept as its weights are, and
    not by its batch's (EMAN: Cai et al., arXiv 2101.08482; its dropout is off too). Raises ConfigError for a
    layer or network that cannot serve.
    """

    def __init__(
        self,
        net: nn.Module,
        image_size: int | tuple[int, int] | None = None,
        hidden_layer: str | int | None = None,
        projection_size: int = 256,
        projection_hidden_size: int = 4096,
        augment_fn: Callable[[Tensor], Tensor] | None = None,
        augment_fn2: Callable[[Tensor], Tensor] | None = None,
        moving_average_decay: float = 0.99,
        use_momentum: bool = True,
        sync_batchnorm: bool | None = None,
        use_simplicial_embeddings: bool = False,
        sem_num_simplices: int | None = None,
        sem_simplex_dim: int | None = None,
        sem_temperature: float | None = None,
        *,
        channels: int | None = None,
        views: ViewConfig | None = None,
        example: Any = None,
        target_net: nn.Module | None = None,
        joint_batchnorm: bool = False,
        extra: Sequence[str] = (),
        linear_predictor: bool = False,
        head_batchnorm: bool = True,
        ema_statistics: bool = False,
    ) -> None:
        super().__init__()
        sizes_of_sem = sem_num_simplices, sem_simplex_dim, sem_temperature
        refuse_simplicial_embeddings(use_simplicial_embeddings, *sizes_of_sem)
        _check_tau(moving_average_decay, "moving_average_decay")
        if min(projection_size, projection_hidden_size) < 1:
            raise ConfigError(f"{projection_size=} and {projection_hidden_size=}; both start at 1.")
        if image_size is None and example is None:
            raise ConfigError("Give image_size, or example=: a small batch of inputs that are not images.")
        if augment_fn is None and augment_fn2 is not None and image_size is None:
            raise ConfigError("augment_fn2 came alone, and view 1 needs an image_size. Give augment_fn too.")
        if target_net is not None and not use_momentum:
            raise ConfigError("Without momentum the online network is the target. Leave target_net out.")
        if not use_momentum and (ema_statistics or not head_batchnorm):
            raise ConfigError(
                "Without momentum the target has no statistics of its own, and the projector is SimSiam's, "
                "with its BatchNorm. Leave ema_statistics and head_batchnorm out."
            )
        _check_network(net)
        size = None if image_size is None else height_and_width(image_size)
        found = probe(net, hidden_layer, example, image_size=size, channels=channels)
        self.views = None if size is None else Views(size, views, found.channels)
        self.augment_fn, self.augment_fn2 = augment_fn, augment_fn if augment_fn2 is None else augment_fn2
        tell_of_torchvision(augment_fn, augment_fn2)
        self.moving_average_decay, self.joint_batchnorm = moving_average_decay, joint_batchnorm
        self.use_momentum, self.ema_statistics = use_momentum, ema_statistics
        # Of the last training pass, for who wants to measure: representation and prediction of view 1, the
        # target's projection of view 2.
        self.outputs: tuple[Tensor, Tensor, Tensor] | None = None
        self._fed_views = False  # views of the user's own, which no function of this learner made
        self.representation_size, self.frozen = found.features, found.unreached
        for name in self.frozen:  # they get no gradient; left trainable, DDP would wait for it
            net.get_parameter(name).requires_grad_(False)
        if self.frozen:
            logger.warning(
                f"{len(self.frozen)} parameters that the representation does not depend on are frozen "
                f"({', '.join(self.frozen[:2])}, ...). To train them afterwards: requires_grad_(True)."
            )
            logger.info("Frozen: %s.", ", ".join(self.frozen))
        device = next(p.device for p in net.parameters() if p.requires_grad)

        usual = partial(mlp, batchnorm=head_batchnorm)

        def head(features: int, kind: Callable[[int, int, int], nn.Module] = usual) -> nn.Module:
            return kind(features, projection_hidden_size, projection_size).to(device)

        self.online = Network(found.encoder, head(found.features, usual if use_momentum else simsiam_mlp))
        self.predictor = head(projection_size, linear if linear_predictor else usual)
        self.extra_predictors = nn.ModuleDict({name: head(projection_size) for name in extra})
        if target_net is not None:
            _check_same_architecture(net, target_net)
            self.target = Network(copy.deepcopy(found.encoder, {id(net): target_net}), head(found.features))
        elif use_momentum:
            self.target = copy.deepcopy(self.online)
        if use_momentum:
            self.target.train(not ema_statistics)
        if not net.training:
            logger.warning("%s is in eval mode; call learner.train() before training it.", type(net).__name__)
        self._before_meeting = bool(sync_batchnorm) and not several_processes()
        if several_processes() if sync_batchnorm is None else sync_batchnorm:
            parts = ("online", "predictor", "extra_predictors", "target")
            for name in parts if use_momentum else parts[:3]:
                if _on_gpus(device):
                    setattr(self, name, nn.SyncBatchNorm.convert_sync_batchnorm(getattr(self, name)))
                else:
                    share_statistics(getattr(self, name))
        if use_momentum:
            self.target.requires_grad_(False)
        else:  # the same network, and no part of its own: its parameters and its names are there once
            object.__setattr__(self, "target", self.online)

    @property
    def net(self) -> nn.Module:
        """The network you gave: the online encoder, the only part that is kept after training."""
        return self.online.encoder.net

    def forward(
        self,
        view1: Any,
        view2: Any = None,
        *,
        extra: Mapping[str, Sequence[Any]] | None = None,
        return_embedding: bool = False,
        return_projection: bool = True,
        return_representation: bool = False,
    ) -> Any:
        """The loss, a float32 scalar: mean over the batch of both directions, 0 to 8.

        It is NaN, without gradient, when a pixel is not finite; statistics and weights are unharmed. Views
        that are tuples or dicts go to the network as they are: in them NaN may stand for what is missing.

        `extra` holds further views of the same images, by their kind. The target sees none of them but those
        of the kind "target": then what is predicted is the mean of its projections of all other views. The
        loss is the mean over the kinds, each of them from 0 to 8: of both directions, and twice the mean over
        the views of a kind and the projections. BatchNorm's running statistics are of views 1 and 2 alone.

        With return_representation (loss, representation): view 1's, (B, D) without gradient, for a classifier
        that learns beside. With return_embedding (projection, representation) of unaugmented images.
        """
        if isinstance(view2, bool):  # byol-pytorch's second argument
            view2, return_embedding = None, view2
        if return_embedding:
            representation = self.online.encoder(self.prepare(view1))
            if not return_projection:
                return representation
            self._check_counts(len(representation))
            return self.online.projector(representation), representation
        if self._before_meeting and self.training and several_processes():
            self._check_shared()
        if view2 is None:
            view1, view2 = self.draw_views(view1)
        elif self.views is not None and not self.views.drawn:
            self._fed_views = True
        extra = self._check_extra(extra or {})
        sound = None
        every = [view1, view2, *(view for views in extra.values() for view in views)]
        if all(isinstance(view, Tensor) for view in every):  # before BatchNorm sees them
            self._check_counts(*map(len, every))
            if self.training and all(view.is_floating_point() for view in every):
                # One NaN would stay in BatchNorm's statistics for good. The device is not waited for.
                sound = torch.isfinite(sum(view.sum(dtype=torch.float32) for view in every))
                every = [torch.where(sound, view, 0) for view in every]
        view1, view2, *rest = every
        extra = {name: [rest.pop(0) for _ in views] for name, views in extra.items()}
        representation1, representation2 = self._both(self.online.encoder, view1, view2)
        self._check_counts(len(representation1), len(representation2))
        online1, online2 = self._both(self.online.projector, representation1, representation2)
        prediction1, prediction2 = self._both(self.predictor, online1, online2)
        if self.use_momentum:
            with torch.no_grad():  # the target teaches, it is not taught
                projection1, projection2 = self._both(self.target, view1, view2)
        else:
            projection1, projection2 = online1.detach(), online2.detach()
        self.outputs = representation1.detach(), prediction1.detach(), projection2
        if not extra:
            both = regression_loss(prediction1, projection2) + regression_loss(prediction2, projection1)
            loss = both.mean()
        else:
            loss = self._loss_with((prediction1, prediction2), (projection1, projection2), extra)
        if sound is not None:
            loss = torch.where(sound, loss, torch.nan)
        return (loss, representation1.detach()) if return_representation else loss

    def predict(self, view: Any) -> Tensor:
        """The online network's prediction (B, projection_size) of the other view's projection."""
        prediction: Tensor = self.predictor(self.online(view))
        return prediction

    def draw_views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Two views of each image, from torch's own random state: torch.manual_seed repeats them.

        Of several processes each draws its own ones, whatever its seed; functions of your own (`augment_fn`)
        draw as they do.
        """
        if self.augment_fn is not None and self.augment_fn2 is not None:
            return self.augment_fn(images), self.augment_fn2(images)
        if self.views is None:
            raise ConfigError("Without image_size a learner draws no views: give it two views.")
        view1, view2 = self.views(images)
        return view1, view2 if self.augment_fn2 is None else self.augment_fn2(images)

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """target = tau * target + (1 - tau) * online, for each parameter. Call it after the optimizer's step.

        Parameters only: the target's BatchNorm buffers are its own (official byol_experiment.py), but with
        `ema_statistics`.
        """
        _check_tau(tau, "tau")
        if not self.use_momentum:
            return  # the target is the online network
        targets, onlines = (  # a complex number moves as its two parts do; integers stay
            [
                torch.view_as_real(p) if p.is_complex() else p
                for p in network.parameters()
                if p.is_floating_point() or p.is_complex()
            ]
            for network in (self.target, self.online)
        )
        torch._foreach_lerp_(targets, onlines, 1.0 - tau)
        for ours, theirs in zip(self.target.buffers(), self.online.buffers(), strict=True):
            if self.ema_statistics and ours.is_floating_point():
                ours.lerp_(theirs, 1.0 - tau)

    def train(self, mode: bool = True) -> "BYOL":
        """Train mode, or eval mode; with `ema_statistics` the target stays in eval mode."""
        super().train(mode)
        if self.ema_statistics:
            self.target.eval()
        return self

    def update_moving_average(self) -> None:
        """`update_target` with the constant `moving_average_decay`, for code written for byol-pytorch."""
        self.update_target(self.moving_average_decay)

    def reset_moving_average(self) -> None:
        """Start the target anew as a copy of the online network, BatchNorm's statistics too."""
        self.target.load_state_dict(self.online.state_dict())

    # The parts by their names in byol-pytorch.

    @property
    def online_encoder(self) -> NetWrapper:
        """The online network, which called gives (projection, representation) as in byol-pytorch."""
        return NetWrapper(self.online.encoder, self.online.projector)

    @property
    def target_encoder(self) -> NetWrapper:
        """The target network, likewise; there from the start."""
        return NetWrapper(self.target.encoder, self.target.projector)

    @property
    def online_predictor(self) -> nn.Module:
        """The predictor."""
        return self.predictor

    @property
    def target_ema_updater(self) -> TargetUpdater:
        """Its `beta` is `moving_average_decay`, which may be set at any step."""
        return TargetUpdater(self)

    def augment1(self, images: Tensor) -> Tensor:
        """View 1 of a batch of images, as `draw_views` makes it."""
        return self.draw_views(images)[0]

    def augment2(self, images: Tensor) -> Tensor:
        """View 2."""
        return self.draw_views(images)[1]

    @torch.no_grad()
    def embed(self, images: Any) -> Tensor:
        """The representation (B, D) float32 of images after `prepare`, in eval mode, without gradient."""
        with evaluating(self.online.encoder):
            representation: Tensor = self.online.encoder(self.prepare(images))
        return representation.float()

    def prepare(self, images: Any) -> Any:
        """Images as evaluation feeds them to the network: with built-in views resized and normalised.

        With views of your own, by `augment_fn` or passed as view1 and view2, they stay as they are.
        """
        if self.views is None or self.augment_fn is not None or not isinstance(images, Tensor):
            return images
        return images if self._fed_views and not self.views.drawn else self.views.prepare(images)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the networks in place, by torch.compile's options; the views differ with every step."""
        predictors = self.predictor, *self.extra_predictors.values()
        for part in (self.online.encoder, self.online.projector, *predictors, self.target):
            part.compile(*args, **options)

    def extra_repr(self) -> str:
        return f"frozen={', '.join(self.frozen)}" if self.frozen else ""

    def _check_shared(self) -> None:
        """Raise ConfigError for torch's shared BatchNorm on a CPU: it was chosen before there were others."""
        shared = any(isinstance(part, nn.SyncBatchNorm) for part in self.modules())
        if shared and next(self.parameters()).device.type == "cpu":
            raise ConfigError(
                "sync_batchnorm was set before there was a process group, and on CPUs torch's SyncBatchNorm "
                "does not work. Call torch.distributed.init_process_group first, then build the learner."
            )

    def _check_counts(self, *counts: int) -> None:
        if len(set(counts)) > 1:
            held = " and ".join(map(str, counts))
            raise ConfigError(f"The views hold {held} samples; expected as many.")
        if self.training and counts[0] < 2:
            raise ConfigError(f"A batch of {counts[0]} cannot be trained on: BatchNorm needs two samples.")

    def _loss_with(
        self, predictions: Sequence[Tensor], projections: Sequence[Tensor], extra: Mapping[str, Sequence[Any]]
    ) -> Tensor:
        """The loss, of both directions and of the extra views by their kinds, as `forward` tells."""
        of_1, of_2, every = *projections, [*projections]
        if TARGET in extra:
            with torch.no_grad(), statistics_kept(self.target):
                more = [self.target(view) for view in extra[TARGET]]
            of_1, of_2, every = average([of_1, *more]), average([of_2, *more]), [average([*every, *more])]
        loss = (regression_loss(predictions[0], of_2) + regression_loss(predictions[1], of_1)).mean()
        for name, predictor in self.extra_predictors.items():
            with statistics_kept(self.online):
                own = [predictor(self.online(view)) for view in extra[name]]
            pairs = [regression_loss(ours, theirs) for ours in own for theirs in every]
            loss = loss + 2 * torch.stack(pairs).mean()
        return loss / (1 + len(self.extra_predictors))

    def _check_extra(self, extra: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """The kinds of which there are views. Raises ConfigError unless those are this learner's."""
        extra = {name: views for name, views in extra.items() if len(views)}
        expected = {*self.extra_predictors}
        if extra.keys() - {TARGET} != expected:
            kinds = f"Extra views came of the kinds {sorted(extra)}, predictors are there for"
            raise ConfigError(f"{kinds} {sorted(expected)}. Give those that BYOL(extra=...) names.")
        return extra

    def _both(self, network: Callable[[Any], Tensor], view1: Any, view2: Any) -> tuple[Tensor, Tensor]:
        """One pass per view, with its own BatchNorm statistics as in the official code; or one joint pass."""
        if not self.joint_batchnorm:
            return network(view1), network(view2)
        if not (isinstance(view1, Tensor) and isinstance(view2, Tensor)):
            raise ConfigError("joint_batchnorm joins two tensors, and these views are not. Leave it False.")
        first, second = network(torch.cat([view1, view2])).chunk(2)
        return first, second


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards each submodule is back in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _check_network(net: nn.Module) -> None:
    """Raise ConfigError for a network that cannot be trained as it is."""
    kind = type(net).__name__
    parallel = isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel)
    wrapped = "module" if parallel else "_orig_mod"  # torch.compile's
    if isinstance(getattr(net, wrapped, None), nn.Module):
        raise ConfigError(
            f"The network came inside {kind}, which gives its weights other names. Give net.{wrapped}. "
            "Compile in place with learner.compile(), or net.compile() for the network alone; distribute the "
            "learner, DistributedDataParallel(learner)."
        )
    for name, p in net.named_parameters():
        if nn.parameter.is_lazy(p):
            raise ConfigError(
                f"{kind} has lazy layers, without weights yet ({name}). Run a batch through it: net(batch)."
            )
        if p.requires_grad and p.dtype not in (torch.float32, torch.complex64):
            raise ConfigError(
                f"{kind} has weights of {p.dtype} ({name}); expected torch.float32. Call net.float(): the "
                "arithmetic may be bf16 (torch.autocast), the weights may not."
            )


def _check_same_architecture(net: nn.Module, target_net: nn.Module) -> None:
    ours, theirs = ({name: p.shape for name, p in one.named_parameters()} for one in (net, target_net))
    tensors, others = ({id(t) for t in (*one.parameters(), *one.buffers())} for one in (net, target_net))
    if ours != theirs or tensors & others:
        raise ConfigError(
            "target_net must be another network of the same architecture as net: the same parameters with "
            f"the same shapes, and none of its own shared with net ({len(tensors & others)} are)."
        )


def _on_gpus(device: torch.device) -> bool:
    """Whether the network will be trained on GPUs, or alone: then torch's own layer shares the statistics.

    Where the network lies now does not tell, because most programs build the learner first and move it then.
    """
    if device.type == "cuda" or not several_processes():
        return True
    return torch.cuda.is_available() and "nccl" in torch.distributed.get_backend_config()


def _check_tau(value: float, name: str) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} is {value}; expected from 0 (the target follows at once) to 1 (it stays).")
