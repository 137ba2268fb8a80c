"""The weights that a run starts from, `init`: read, checked against the run's settings, and put in place."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from byol.data.images import Images
from byol.encoders.encoder import Encoder, EncoderInfo, fill
from byol.encoders.load import holds_encoder, load_encoder
from byol.errors import CheckpointError, ConfigError
from byol.method.byol import BYOL
from byol.method.views import ViewConfig
from byol.models.build import LIBRARIES, is_own_code
from byol.settings import to_plain
from byol.train.config import ModelConfig, TrainConfig
from byol.train.plan import Plan


def read_source(config: TrainConfig, own: nn.Module | None) -> Encoder:
    """The encoder that `config.init` means; of a network of the user's own, a copy is filled."""
    init, name = config.init or "", config.encoder or ""
    if own is not None:
        return load_encoder(init, net=copy.deepcopy(own))
    if is_own_code(name):
        return load_encoder(init, net=name)
    if name.startswith(LIBRARIES) and Path(init).is_file() and not holds_encoder(Path(init)):
        return load_encoder(name, weights=init)
    source = load_encoder(init)
    if name not in ("", init, source.info.architecture):
        other = f"init is {init}, whose encoder is {source.info.architecture}; the encoder here is {name}"
        raise ConfigError(f"{other}. Leave out --encoder, or --init.")
    return source


def adopted(config: TrainConfig, info: EncoderInfo, images: Images) -> TrainConfig:
    """The config with the source's network and image size. Raises ConfigError for what cannot apply."""
    usual, views, given = ViewConfig(), config.views, config.model.encoder_options()
    fixed = {f"model.{name}": value != info.options.get(name) for name, value in given.items()}
    fixed |= {"hidden_layer": config.hidden_layer not in (None, info.hidden_layer)}
    fixed |= {"model.target_init": config.model.target_init != ModelConfig().target_init}
    fixed |= {"views.mean": views.mean != usual.mean, "views.std": views.std != usual.std}
    unused = [name for name, differs in fixed.items() if differs]
    if unused:
        raise ConfigError(f"{' and '.join(unused)} cannot apply: {config.init} settles that. Leave it out.")
    if images.channels != info.channels:
        takes = f"The encoder of {config.init} takes {info.channels} channels, the images have"
        raise ConfigError(
            f"{takes} {images.channels}. Give --data.channels {info.channels}, or other images."
        )
    side, name = info.image_size[0], info.architecture or config.encoder
    # The small encoder takes any size: its views follow from the size at which images are scored.
    shown = config.image_size or (None if name == "convnet" else side)
    return replace(config, encoder=name, image_size=shown, eval_size=config.eval_size or shown or side)


def started_from(plan: Plan, config: TrainConfig, source: Encoder) -> Plan:
    """A plan for the source's network, which says what the run was started from."""
    init = {"weights": config.init, "checksum": source.checksum(), "info": to_plain(source.info)}
    name = source.info.architecture or plan.encoder
    name = config.encoder if config.encoder and is_own_code(config.encoder) else name
    crop, options = config.eval_crop or source.info.crop_ratio, source.info.options
    whiten = plan.whiten and source.info.hidden_layer is None  # what is read before that layer never sees it
    if options.get("whiten") and config.model.whiten is False:
        options = options | {"whiten": False}
    return replace(plan, encoder=name, encoder_options=options, init=init, eval_crop=crop, whiten=whiten)


def source_views(plan: Plan, views: ViewConfig) -> ViewConfig:
    """The views with the source's normalisation."""
    if not plan.init:
        return views
    info = plan.init["info"]
    return replace(views, mean=tuple(info["mean"]), std=tuple(info["std"]))


def preprocessing(plan: Plan) -> dict[str, Any]:
    """How the run's encoder prepares whole images: resized as the source does."""
    names = ("interpolation", "antialias")
    resized = {name: plan.init["info"][name] for name in names} if plan.init else {}
    return {"crop_ratio": plan.eval_crop, **resized}


def put_in_place(learner: BYOL, plan: Plan, source: Encoder) -> None:
    """Fill both networks with the source's weights and BatchNorm statistics; the heads stay fresh."""
    init = plan.init["weights"]
    if source.checksum() != plan.init["checksum"]:
        raise CheckpointError(
            f"{init} has changed since this run was planned. Restore it, or choose another --out."
        )
    tensors = source.tensors()
    if source.info.options.get("whiten") and not plan.encoder_options["whiten"]:
        tensors = {name: one for name, one in tensors.items() if not name.startswith("whitening.")}
    for network in (learner.online, learner.target):
        fill(network.encoder.net, tensors, init)
