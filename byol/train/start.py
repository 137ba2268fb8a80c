"""How a run starts: it takes up the plan that its folder holds, or makes one and records it."""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from byol import __version__
from byol.data.images import Images
from byol.disk import write_text
from byol.encoders.encoder import FILE
from byol.errors import CheckpointError
from byol.settings import differences, to_plain, to_yaml
from byol.train import checkpoint
from byol.train.config import TrainConfig
from byol.train.plan import ImageFacts, Plan, plan_run
from byol.world import World

# What may differ when a run is continued: where it runs and what it tells, not what it computes.
FREE_TO_CHANGE = {
    "out",
    "workers",
    "device",
    "save_every_steps",
    "keep_checkpoints",
    "log_every_steps",
    "data.max_bad",
}


def planned(
    folder: Path,
    config: TrainConfig,
    own: nn.Module | None,
    source: Images,
    world: World,
    step_seconds: Callable[[Plan], float],
) -> Plan:
    """The stored plan of the run that is continued, or a new one; `step_seconds` measures a step of a draft plan."""
    begun = checkpoint.newest(folder / "checkpoints") is not None
    if (folder / FILE).exists() and not begun:
        raise CheckpointError(
            f"{folder} holds a finished run whose checkpoints are gone; to train it again would replace its {FILE}. "
            "Choose another --out, or move that file away."
        )
    if (folder / "plan.json").exists():
        plan = stored_plan(folder, config, source, begun)
        if plan is not None:
            workers = plan.workers if config.workers is None or plan.in_memory else config.workers
            return replace(plan, device=str(world.device), workers=workers)
        (folder / "plan.json").unlink()  # nothing was done with it
        (folder / "bad_files.jsonl").unlink(missing_ok=True)
    facts = ImageFacts(len(source), source.uniform_size(), source.channels, source.labels is not None)
    plan = plan_run(config, facts, world, step_seconds)
    return plan if own is None else replace(plan, encoder=type(own).__name__, encoder_options={})


def stored_plan(folder: Path, config: TrainConfig, source: Images, begun: bool) -> Plan | None:
    """The plan in a folder; None when it is of other settings or images and no step of it has been saved.

    Raises CheckpointError when there are such steps, or when the plan cannot be read.
    """
    try:
        stored = json.loads((folder / "plan.json").read_text())
        plan, before, data, images = (
            Plan.from_json(stored["plan"]),
            stored["config"],
            stored["data"],
            stored["images"],
        )
        changed = differences(before, to_plain(config))
    except (ValueError, KeyError, TypeError, AttributeError) as damage:
        if not begun:
            return None
        raise CheckpointError(
            f"{folder / 'plan.json'} cannot be read ({damage}): it is damaged, or of another version of byol. Restore it, or "
            "choose another --out."
        ) from damage
    changed = [line for line in changed if line.split(":")[0] not in FREE_TO_CHANGE]
    if not begun and (changed or data != source.fingerprint()):
        return None
    if changed:
        raise CheckpointError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}). "
            "Repeat its settings to continue it, or choose another --out."
        )
    if data != source.fingerprint():
        raise CheckpointError(
            f"{folder} was trained on other images ({images}) than {source.description}. "
            "Give the same images to continue it, or choose another --out."
        )
    return plan


def record(folder: Path, plan: Plan, config: TrainConfig, source: Images, world: World) -> None:
    """Write config.yaml, env.json and plan.json of a new run."""
    if (folder / "plan.json").exists():
        return
    environment = {
        "byol": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": world.describe(),
        "threads": torch.get_num_threads(),
    }
    stored = {
        "plan": plan.to_json(),
        "config": to_plain(config),
        "data": source.fingerprint(),
        "images": source.description,
    }
    write_text(folder / "config.yaml", to_yaml(config))
    write_text(folder / "env.json", json.dumps(environment, indent=1))
    write_text(folder / "plan.json", json.dumps(stored, indent=1))  # last: a folder with a plan is a run
