"""One optimisation step: ours beside lightly, byol-pytorch and the floor, the bare encoder's own passes.

    pip install 'byol[bench]'
    python benchmarks/step.py [resnet50 resnet18]

At equal precision all get the same views of the same images; the floor is two forward-and-backward passes and
two forward passes of the encoder alone. Ours is the run's own `steps`: it also finishes its views from uint8
crops, and updates.
At defaults each library does what its documentation shows, from its own views on.
"""

import copy
import sys
from collections.abc import Callable
from itertools import repeat

import torch
from measure import alternate, machine, table

from byol import BYOL, TrainConfig, build_encoder, steps
from byol.data.batches import Batches, BatchPlan, Cropped
from byol.train.plan import ImageFacts, plan_run
from byol.train.step import build_optimizer
from byol.world import Precision, World, autocast

CASES = {"resnet50": (224, 32, {}), "resnet18": (32, 256, {"stem": "small"})}  # image size, batch, options
FEATURES = {"resnet50": 2048, "resnet18": 512}


def ours(name: str, precision: Precision | None) -> Callable[[], object]:
    """A step of `byol train`, from uint8 crops on the device to the updated target."""
    size, batch, options = CASES[name]
    world = World.join(None)
    config = TrainConfig(
        "unused", encoder=name, image_size=size, batch_size=batch, epochs=10_000, precision=precision
    )
    plan = plan_run(config, ImageFacts(100 * batch, (size, size), 3, False), world)
    torch.manual_seed(0)
    learner = (
        BYOL(build_encoder(name, **options), size, None)
        .to(world.device)
        .to(memory_format=torch.channels_last)
    )
    crops = torch.randint(256, (batch, 2, 3, size, size), dtype=torch.uint8, device=world.device)
    what = BatchPlan(plan.seed, plan.images, batch, 1, learner.views)
    batches = Batches(repeat(Cropped(crops, torch.arange(batch))), what)
    running = steps(learner, batches, build_optimizer(learner, plan), plan)
    return lambda: next(running)


def floor(name: str, precision: Precision) -> Callable[[], object]:
    """The encoder's passes and nothing else, laid out for speed."""
    size, batch, options = CASES[name]
    device = World.join(None).device
    torch.manual_seed(0)
    online = build_encoder(name, **options).to(device).to(memory_format=torch.channels_last).train()
    target = copy.deepcopy(online)
    views = [
        v.contiguous(memory_format=torch.channels_last)
        for v in torch.randn(2, batch, 3, size, size, device=device)
    ]

    def step() -> None:
        with autocast(device, precision):
            outputs = [online(view) for view in views]
            with torch.no_grad():
                [target(view) for view in views]
        torch.stack(outputs).float().mean().backward()
        online.zero_grad(set_to_none=True)

    return step


def lightly(name: str, precision: Precision) -> Callable[[], object]:
    """The loop of lightly's BYOL example with a ResNet's heads, on finished views."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.utils.scheduler import cosine_schedule

    size, batch, options = CASES[name]
    device = World.join(None).device
    torch.manual_seed(0)
    backbone = build_encoder(name, **options).to(device)
    projector, predictor = (
        BYOLProjectionHead(FEATURES[name], 4096, 256).to(device),
        BYOLPredictionHead(256, 4096, 256).to(device),
    )
    backbone_momentum, projector_momentum = copy.deepcopy(backbone), copy.deepcopy(projector)
    deactivate_requires_grad(backbone_momentum)
    deactivate_requires_grad(projector_momentum)
    criterion = NegativeCosineSimilarity()
    parameters = [*backbone.parameters(), *projector.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.06)
    views = torch.randn(2, batch, 3, size, size, device=device)
    done = iter(range(2**62))

    def step() -> None:
        momentum = cosine_schedule(next(done), 10_000, 0.996, 1)
        update_momentum(backbone, backbone_momentum, m=momentum)
        update_momentum(projector, projector_momentum, m=momentum)
        with autocast(device, precision):
            predictions = [predictor(projector(backbone(view).flatten(start_dim=1))) for view in views]
            projections = [
                projector_momentum(backbone_momentum(view).flatten(start_dim=1)).detach() for view in views
            ]
            loss = 0.5 * (
                criterion(predictions[0], projections[1]) + criterion(predictions[1], projections[0])
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def byol_pytorch(name: str) -> Callable[[], object]:
    """The README of byol-pytorch: its learner draws its own views of a float batch."""
    from byol_pytorch import BYOL as Learner

    size, batch, options = CASES[name]
    device = World.join(None).device
    torch.manual_seed(0)
    learner = Learner(build_encoder(name, **options).to(device), image_size=size, hidden_layer="avgpool")
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-4)
    images = torch.rand(batch, 3, size, size, device=device)

    def step() -> None:
        loss = learner(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()

    return step


def compare(name: str, repeats: int) -> None:
    """Print the tables of one encoder."""
    size, batch, _ = CASES[name]
    best = World.join(None).default_precision()
    precisions: list[Precision] = ["fp32"] if best == "fp32" else [best, "fp32"]
    for precision in precisions:
        ways = {
            "floor": floor(name, precision),
            "byol": ours(name, precision),
            "lightly": lightly(name, precision),
        }
        show(f"{name} at {size}, batch {batch}, all {precision}", ways, "floor", repeats)
    ways = {"byol": ours(name, None), "lightly": lightly(name, "fp32"), "byol-pytorch": byol_pytorch(name)}
    show(f"{name} at {size}, batch {batch}, each library's defaults", ways, "byol", repeats)


def show(title: str, ways: dict[str, Callable[[], object]], against: str, repeats: int) -> None:
    seconds = alternate(ways, repeats)
    batch = CASES[title.split()[0]][1]
    rows = [
        [way, f"{time:.3f}", f"{batch / time:.1f}", f"{time / seconds[against]:.3f}"]
        for way, time in seconds.items()
    ]
    table(title, ["", "seconds", "images/s", f"over {against}"], rows)


def main() -> None:
    print(machine("lightly", "byol-pytorch"))
    for name in sys.argv[1:] or CASES:
        compare(name, repeats=5)


if __name__ == "__main__":
    main()
