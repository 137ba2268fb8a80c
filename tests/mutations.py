"""The wrong changes of `make mutants`: each a small slip that a person could make, and the tests that should notice it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One wrong change: `old`, which stands once in byol/`file`, becomes `new`."""

    file: str
    name: str  # what goes wrong
    old: str
    new: str
    guards: tuple[str, ...]  # arguments of pytest


def guarded(*guards: str, changes: list[tuple[str, str, str, str]]) -> list[Mutation]:
    """Several changes with the same guards: (file, name, old, new)."""
    return [Mutation(*change, guards) for change in changes]


METHOD = [
    *guarded(
        "tests/method/test_schedules.py",
        changes=[
            (
                "method/schedules.py",
                "the rate is not scaled by the batch",
                "peak = base_lr * batch_size / 256",
                "peak = base_lr",
            ),
            (
                "method/schedules.py",
                "the cosine begins at step 0, not behind the warm-up",
                "(step - warmup_steps) / (total_steps - warmup_steps)",
                "step / total_steps",
            ),
            (
                "method/schedules.py",
                "the warm-up begins one step later",
                "return peak * step / warmup_steps",
                "return peak * (step + 1) / warmup_steps",
            ),
            (
                "method/schedules.py",
                "tau ends below 1",
                "return 1 - (1 - base_tau) * (cos(pi * min(1.0, step / total_steps)) + 1) / 2",
                "return 1 - (1 - base_tau) * (cos(pi * min(0.9, step / total_steps)) + 1) / 2",
            ),
            (
                "method/schedules.py",
                "tau stays constant",
                "return 1 - (1 - base_tau) * (cos(pi * min(1.0, step / total_steps)) + 1) / 2",
                "return base_tau",
            ),
        ],
    ),
    *guarded(
        "tests/method/test_loss.py",
        changes=[
            (
                "method/loss.py",
                "half of the loss",
                ".square().sum(dim=-1)\n\n\n",
                ".square().sum(dim=-1) / 2\n\n\n",
            ),
            (
                "method/loss.py",
                "the projection is not normalised",
                "normalize(prediction.float()) - normalize(projection.float())",
                "normalize(prediction.float()) - projection.float()",
            ),
        ],
    ),
    *guarded(
        "tests/method/test_lars.py",
        changes=[
            (
                "method/lars.py",
                "biases get a trust ratio",
                "(p.ndim > 1) is adapted",
                "(p.ndim > 0) is adapted",
            ),
            (
                "method/lars.py",
                "weight decay behind the trust ratio is dropped",
                'alpha=group["weight_decay"]',
                "alpha=0.0",
            ),
            (
                "method/lars.py",
                "the momentum is a constant",
                'torch._foreach_mul_(buffers, group["momentum"])',
                "torch._foreach_mul_(buffers, 0.9)",
            ),
            (
                "method/lars.py",
                "no trust ratio where a weight is 0",
                "torch.ones_like(weights))",
                "torch.zeros_like(weights))",
            ),
            (
                "method/lars.py",
                "biases and BatchNorm are decayed",
                '"weight_decay": 0.0},',
                '"weight_decay": weight_decay},',
            ),
        ],
    ),
    *guarded(
        "tests/method/test_color.py",
        "tests/method/test_views.py",
        changes=[
            (
                "method/color.py",
                "contrast around the mean of all channels",
                "mean = x.mean(dim=(2, 3), keepdim=True)",
                "mean = x.mean(dim=(1, 2, 3), keepdim=True)",
            ),
            (
                "method/color.py",
                "solarize inverts the dark pixels",
                "torch.where(x < threshold, x, 1 - x)",
                "torch.where(x > threshold, x, 1 - x)",
            ),
            (
                "method/color.py",
                "the hue turns half as far",
                "6 * per_image(delta)",
                "3 * per_image(delta)",
            ),
            (
                "method/color.py",
                "a blur of two taps fewer",
                "2 * int(height * share / 2) + 1",
                "2 * int(height * share / 2) - 1",
            ),
        ],
    ),
    *guarded(
        "tests/method/test_views.py",
        "tests/method/test_crops.py",
        changes=[
            (
                "method/views.py",
                "both views are blurred as the first",
                "drawn[:, 10] < config.blur[view]",
                "drawn[:, 10] < config.blur[0]",
            ),
            (
                "method/views.py",
                "both views are solarized as the second",
                "drawn[:, 12] < config.solarize[view]",
                "drawn[:, 12] < config.solarize[1]",
            ),
            (
                "method/views.py",
                "every image has the same order of colour operations",
                "order = drawn[:, 1:5].argsort(dim=1)",
                "order = drawn[:1, 1:5].argsort(dim=1).expand(len(drawn), 4)",
            ),
            (
                "method/crops.py",
                "the aspect ratio is uniform, not uniform in its logarithm",
                "aspect = torch.exp(log(ratio[0]) + (log(ratio[1]) - log(ratio[0])) * drawn[:, 1])",
                "aspect = ratio[0] + (ratio[1] - ratio[0]) * drawn[:, 1]",
            ),
            (
                "method/crops.py",
                "a crop never reaches the last row",
                "(drawn[:, 2] * (heights - box_heights + 1)).long()",
                "(drawn[:, 2] * (heights - box_heights)).long()",
            ),
            (
                "method/crops.py",
                "another bicubic kernel",
                "near = (1.5 * d - 2.5) * d * d + 1",
                "near = (1.25 * d - 2.25) * d * d + 1",
            ),
        ],
    ),
]

MUTATIONS = [*METHOD]
