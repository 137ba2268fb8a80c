"""Every setting of a run does something: changed alone, it changes what the run leaves behind."""

import dataclasses
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from small_runs import small_config, untimed

import byol
from byol.errors import ByolError
from byol.train.config import KnnConfig, ModelConfig, OptimConfig, TrainConfig

BASE = {
    "encoder": "convnet",
    "epochs": 1,
    "model": ModelConfig(width=4, projection_size=8, projection_hidden_size=16),
    "optim": OptimConfig(name="sgd", base_lr=1.0, warmup_epochs=0.2),
    "knn": KnnConfig(hold_out_share=0.2, times=1, k=3),
    "log_every_steps": 3,
    "save_every_steps": 2,
}
RESNET: dict[str, Any] = {
    "encoder": "resnet18",
    "model.width": None,
    "epochs": 0.3,
    "optim.warmup_epochs": 0.0,
}
STREAMED = {"data.in_memory": False}
PAPER = {"kind": "paper"}  # small views are not blurred otherwise
# What each setting is changed to, what both runs share beside the base, and which part of `observed` tells.
CHANGES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "encoder": ("resnet18", {**RESNET, "encoder": "convnet"}, "weights"),
    "init": ("nowhere", {}, "failure"),
    "hidden_layer": ("layers", {}, "heads"),
    "kind": ("textures", {}, "weights"),
    "image_size": (24, {}, "weights"),
    "eval_size": (24, {}, "weights"),  # the encoder's file says how its images are prepared
    "eval_crop": (1.0, {}, "weights"),
    "epochs": (0.5, {}, "metrics"),
    "batch_size": (16, {}, "weights"),
    "budget": ("0.001s", {}, "failure"),  # in the place of epochs
    "seed": (1, {}, "weights"),
    "workers": (1, {**STREAMED, "workers": 0}, "processes"),
    "device": ("meta", {}, "failure"),
    "precision": ("bf16", {"precision": "fp32"}, "weights"),
    "save_every_steps": (5, {}, "checkpoints"),
    "keep_checkpoints": (3, {}, "checkpoints"),
    "log_every_steps": (2, {}, "metrics"),
    "log": (("tensorboard",), {}, "files"),
    "on_collapse": ("warn", {"images": "black"}, "failure"),
    "model.stem": ("imagenet", RESNET, "weights"),
    "model.padding": ("same", RESNET, "weights"),
    "model.last_gamma": (0.0, RESNET, "weights"),
    "model.width": (5, {}, "weights"),
    "model.options": (("width=5",), {"model.width": None}, "weights"),
    "model.projection_size": (6, {}, "heads"),
    "model.projection_hidden_size": (12, {}, "heads"),
    "model.target_init": ("independent", {}, "weights"),
    "model.joint_batchnorm": (True, {}, "weights"),
    "model.whiten": (False, {}, "weights"),
    "model.use_momentum": (False, {}, "heads"),
    "model.linear_predictor": (True, {}, "heads"),
    "model.head_batchnorm": (False, {}, "heads"),
    "model.ema_statistics": (True, {}, "weights"),
    "model.recompute": (True, {}, "failure"),  # a convnet has no blocks; elsewhere the numbers are the same
    "views.crop_area": ((0.5, 1.0), {}, "weights"),
    "views.crop_ratio": ((1.0, 1.0), {}, "weights"),
    "views.antialias": (False, {}, "weights"),
    "views.flip": (0.0, {}, "weights"),
    "views.vertical_flip": (0.5, {}, "weights"),
    "views.turn": (0.5, {}, "weights"),
    "views.jitter": (0.0, {}, "weights"),
    "views.brightness": (0.0, {}, "weights"),
    "views.contrast": (0.0, {}, "weights"),
    "views.saturation": (0.0, {}, "weights"),
    "views.hue": (0.0, {}, "weights"),
    "views.grayscale": (0.0, {}, "weights"),
    "views.blur": ((0.0, 0.0), {**PAPER, "views.blur_size": 0.2}, "weights"),
    "views.blur_sigma": ((2.0, 2.0), {**PAPER, "views.blur_size": 0.2}, "weights"),
    "views.blur_size": (0.4, PAPER, "weights"),
    "views.solarize": ((0.0, 0.0), {}, "weights"),
    "views.solarize_threshold": (0.1, {}, "weights"),
    "views.color": ("torchvision", {}, "weights"),
    "views.mean": ((0.0, 0.0, 0.0), {}, "weights"),
    "views.std": ((1.0, 1.0, 1.0), {}, "weights"),
    "optim.name": ("adamw", {}, "weights"),
    "optim.base_lr": (0.5, {}, "weights"),
    "optim.lr_scaling": ("sqrt", {}, "weights"),
    "optim.predictor_lr": (2.0, {}, "weights"),
    "optim.weight_decay": (0.1, {}, "weights"),
    "optim.momentum": (0.5, {}, "weights"),
    "optim.beta2": (0.5, {"optim.name": "adamw"}, "weights"),
    "optim.clip": (0.001, {}, "weights"),
    "optim.tau_batch": (64, {}, "weights"),
    "optim.warmup_epochs": (0.5, {}, "weights"),
    "optim.base_tau": (0.5, {}, "weights"),
    "optim.accumulation": (2, {}, "weights"),
    "extra.local": (1, {}, "heads"),
    "extra.cutout": (1, {}, "heads"),
    "extra.targets": (1, {}, "weights"),
    "data.channels": (1, {"images": "photos"}, "weights"),
    "data.in_memory": (False, {}, "weights"),  # crops of streamed images are rounded to uint8
    "data.max_bad": (0.0, {"images": "one bad"}, "failure"),
    "data.max_pixels": (100, {"images": "photos"}, "failure"),
    "data.min_side": (30, {"images": "photos"}, "failure"),
    "data.truncated": (True, {"images": "one cut off"}, "weights"),
    "data.black": (500.0, {"images": "deep"}, "metrics"),
    "data.white": (1000.0, {"images": "deep"}, "metrics"),
    "knn.hold_out_share": (0.1, {}, "weights"),
    "knn.times": (2, {}, "metrics"),
    "knn.k": (1, {}, "metrics"),
    "knn.temperature": (0.001, {"knn.k": 12}, "metrics"),
    "probe.online": (True, {}, "metrics"),
}
BEFORE: dict[str, dict[str, Any]] = {}  # what the runs of the unchanged settings left behind


def settings(owner: type = TrainConfig, prefix: str = "") -> list[str]:
    """The dotted names of all settings."""
    names = []
    for field in dataclasses.fields(owner):
        group = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        names += settings(group, f"{field.name}.") if group else [f"{prefix}{field.name}"]
    return names


def with_settings(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    for name, value in changes.items():
        group, _, field = name.rpartition(".")
        part = {field: value} if not group else {group: replace(getattr(config, group), **{field: value})}
        config = replace(config, **part)
    return config


class Watched:
    """A dataset of noise that notes which processes read it."""

    def __init__(self, log: Path, bad: int | None = None) -> None:
        generator = np.random.default_rng(1)
        self.targets = (np.arange(64) % 4).tolist()
        noise = generator.integers(0, 100, (64, 20, 20, 3)) + 3 * np.array(self.targets)[:, None, None, None]
        self.images, self.log, self.bad = noise.astype(np.uint8), log, bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if index == self.bad:
            raise OSError("torn off")
        return self.images[index], self.targets[index]


def observed(folder: Path, photos: Path, common: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """What a run of the base settings, the common and the changed ones leaves behind."""
    common = dict(common)
    kind = common.pop("images", "watched")
    watched = Watched(folder.with_suffix(".pids"), bad=5 if kind == "one bad" else None)
    try:
        usual = {"data.max_bad": 0.5} if kind in ("one bad", "one cut off") else {}
        config = with_settings(small_config(folder, **BASE), {**usual, **common, **change})
        sources = {"photos": photos, "deep": watched.images.astype(np.uint16) * 16}
        sources["black"] = np.zeros_like(watched.images)
        if kind == "one cut off":
            sources[kind] = shutil.copytree(photos, folder.with_suffix(".photos"))
            cut = sources[kind] / "light" / "0.png"
            cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        byol.pretrain(None, sources.get(kind, watched), config)
    except ByolError as failure:
        return {"failure": str(failure)}
    checkpoints = sorted((folder / "checkpoints").iterdir())
    state = load_file(checkpoints[-1] / "state.safetensors")
    pids = set(watched.log.read_text().split()) if watched.log.exists() else set()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "failure": None,
        "weights": json.loads((folder / "encoder.json").read_text())["blake2b"],
        "heads": sorted(
            (name, tuple(t.shape)) for name, t in state.items() if "predictor" in name or "projector" in name
        ),
        "metrics": [untimed(line) for line in lines],
        "checkpoints": [path.name for path in checkpoints],
        "files": sorted(path.name for path in folder.iterdir()),
        "processes": len(pids),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*settings()} - {"out"}))  # every test has an out of its own
def test_a_setting_changes_what_a_run_leaves_behind(name, tmp_path, photos):
    assert name in CHANGES, f"{name} is new: say above what it changes"
    value, common, shows_in = CHANGES[name]
    key = repr(common)
    if key not in BEFORE:
        BEFORE[key] = observed(tmp_path / "before", photos, common, {})
    before = BEFORE[key]
    change = {name: value, **({"epochs": None} if name == "budget" else {})}
    after = observed(tmp_path / "after", photos, common, change)
    assert before[shows_in] != after[shows_in]


def test_the_same_settings_leave_the_same_behind(tmp_path, photos):
    """Else the tests above could not fail."""
    first, second = (observed(tmp_path / name, photos, {}, {}) for name in ("first", "second"))
    assert first == second
    assert first["failure"] is None
