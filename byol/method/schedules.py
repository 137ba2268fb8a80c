"""Learning rate and tau as pure functions of the step (official schedules.py). Steps count from 0."""

from math import cos, pi

from byol.errors import ConfigError


def learning_rate(
    step: int, *, base_lr: float, batch_size: float, total_steps: int, warmup_steps: int
) -> float:
    """Linear warm-up from 0 to base_lr x batch_size / 256, then a cosine to 0 at `total_steps` (paper §3.3).

    Raises ConfigError when the run has no steps or the warm-up is not shorter than the run.
    """
    _check(step, total_steps)
    if not 0 <= warmup_steps < total_steps:
        raise ConfigError(f"warmup_steps is {warmup_steps}; expected from 0 to less than {total_steps=}.")
    peak = base_lr * batch_size / 256
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return peak * (1 + cos(pi * done)) / 2


def tau(step: int, *, base_tau: float, total_steps: int) -> float:
    """The coefficient of the target, rising from base_tau to 1 by a cosine (paper §3.1)."""
    _check(step, total_steps)
    if not 0 <= base_tau <= 1:
        raise ConfigError(f"base_tau is {base_tau}; expected a number from 0 to 1.")
    return 1 - (1 - base_tau) * (cos(pi * min(1.0, step / total_steps)) + 1) / 2


def _check(step: int, total_steps: int) -> None:
    if total_steps < 1 or step < 0:
        raise ConfigError(f"{step=} and {total_steps=}; expected 0 or more, of at least 1.")
