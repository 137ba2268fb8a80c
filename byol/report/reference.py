"""The reference of a preset: a measured run that is shipped beside it, to lie behind a user's own curves."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from byol.disk import read_json, write_text
from byol.report.record import Record
from byol.settings import PRESETS, to_plain
from byol.train.outcome import Line
from byol.train.plan import Plan

ENDING = ".reference.json"
# What may differ between a run and its reference: where it ran, how often it told, and its seed.
FREE = (
    "seed", "device", "workers", "precision", "in_memory", "memory_side", "recompute",
    "log_every_steps", "save_every_steps", "look_every_steps", "extended_at", "hold_out_images",
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """A measured run of a preset."""

    preset: str
    made: str  # by which command, when, on what
    plan: dict[str, Any]  # the numbers by which a run is known as one of this preset
    lines: list[Line]


def reference_of(plan: Plan) -> Reference | None:
    """The reference whose plan is that of a run; None where one number differs that may matter."""
    same = settled(plan)
    return next((one for one in references() if one.plan == same), None)


@cache
def references() -> tuple[Reference, ...]:
    """Those that come with the package."""
    return tuple(Reference(**read_json(path)) for path in sorted(PRESETS.glob(f"*{ENDING}")))


def settled(plan: Plan) -> dict[str, Any]:
    return {name: value for name, value in to_plain(plan).items() if name not in FREE}


def write_reference(record: Record, preset: str, made: str, metrics: tuple[str, ...]) -> None:
    """Make a finished run the reference of a preset, with these of its metrics."""
    names = {"step", "epoch", *metrics}
    lines = [
        {name: x if isinstance(x, int) else float(f"{x:.4g}") for name, x in line.items() if name in names}
        for line in record.lines
    ]
    kept = ",\n  ".join(json.dumps(line) for line in lines if len(line) > 2)
    head = json.dumps({"preset": preset, "made": made, "plan": settled(record.plan)})[:-1]
    write_text(PRESETS / f"{preset}{ENDING}", f'{head},\n "lines": [\n  {kept}\n]}}\n')
