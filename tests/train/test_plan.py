"""What a run is told and what follows from it."""

import ast
import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import byol
from byol.commands.train import with_preset
from byol.method.views import ViewConfig
from byol.settings import flags_of, parse, preset_flags, preset_names, to_plain, to_yaml
from byol.train.config import (
    DataConfig,
    KnnConfig,
    ModelConfig,
    OptimConfig,
    ProbeConfig,
    TrainConfig,
    seconds_of,
)
from byol.train.plan import ImageFacts, Plan, Speed, plan_run
from byol.world import World

CPU = World(rank=0, size=1, device=torch.device("cpu"))
IMAGENET = ImageFacts(count=1_281_167, size=None, channels=3, labelled=True)
CIFAR = ImageFacts(count=50_000, size=(32, 32), channels=3, labelled=True)


def preset(name: str, *flags: str) -> TrainConfig:
    return parse(
        TrainConfig, ["--out", "runs/a", *preset_flags(name), *flags], prog="byol train", description=""
    )


@pytest.mark.parametrize(
    ("name", "base_lr", "weight_decay", "base_tau"),
    [
        ("imagenet-1000", 0.2, 1.5e-6, 0.996),
        ("imagenet-300", 0.3, 1e-6, 0.99),
        ("imagenet-100", 0.45, 1e-6, 0.99),
        ("imagenet-40", 0.45, 1e-6, 0.97),
    ],
)
def test_imagenet_presets_are_the_official_configurations(name, base_lr, weight_decay, base_tau):
    plan = plan_run(preset(name), IMAGENET, CPU)
    epochs = int(name.split("-")[1])
    assert (plan.encoder, plan.optimizer, plan.image_size, plan.batch_size) == (
        "resnet50",
        "lars",
        (224, 224),
        4096,
    )
    assert (plan.base_lr, plan.weight_decay, plan.base_tau) == (base_lr, weight_decay, base_tau)
    assert plan.lr == pytest.approx(base_lr * 16)
    # official byol_experiment.py: max_steps = num_epochs * images // batch_size, warm-up likewise
    assert plan.total_steps == epochs * 1_281_167 // 4096
    assert plan.warmup_steps == 10 * 1_281_167 // 4096


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_read_without_a_word_that_nobody_knows(name):
    facts = IMAGENET if name.startswith("imagenet-") else CIFAR
    assert plan_run(preset(name), facts, CPU).total_steps > 0


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_headed_by_its_command_and_its_result(name):
    text = (Path(byol.__file__).parent / "presets" / f"{name}.yaml").read_text()
    head = text.split("\nencoder:")[0]
    assert f"--preset {name}" in head or name == "demo"
    assert any(word in head.lower() for word in ("measured", "published"))


def test_a_flag_behind_a_preset_wins_over_it():
    config = preset(
        "imagenet-300", "--batch-size", "512", "--encoder", "resnet50x2", "--optim.base-tau", "0.9"
    )
    assert (config.batch_size, config.encoder, config.optim.base_tau, config.epochs) == (
        512,
        "resnet50x2",
        0.9,
        300,
    )


@pytest.mark.parametrize("length", ["epochs: 300", "budget: 5m"])
@pytest.mark.parametrize("flag", ["--epochs", "--budget"])
def test_a_length_beside_a_preset_wins_over_a_length_of_the_other_kind(tmp_path, length, flag):
    (tmp_path / "config.yaml").write_text(f"{length}\nbatch_size: 8\n")
    for words in ([flag, "2"], [f"{flag}=2"]):
        given = with_preset(["photos", "--preset", str(tmp_path / "config.yaml"), *words])
        assert given[:2] == ["--batch-size", "8"] or length.startswith(flag[2:])
        assert [word.partition("=")[0] for word in given if word.startswith(("--epochs", "--budget"))][
            -1
        ] == flag
        assert not ({"--epochs", "--budget"} - {flag}) & {word.partition("=")[0] for word in given}


def test_a_config_survives_its_way_through_yaml_and_flags():
    config = TrainConfig(
        out="runs/a", epochs=3.5, encoder="timm:vit_tiny_patch16_224", workers=2, precision="fp32",
        views=ViewConfig(blur=(0.0, 0.3), antialias=False, color="torchvision"),
        optim=OptimConfig(name="sgd", base_lr=0.03, warmup_epochs=0),
        model=ModelConfig(stem="small", joint_batchnorm=True),
        data=DataConfig(channels=1, in_memory=False), knn=KnnConfig(hold_out_share=0.0, times=3),
    )  # fmt: skip
    assert parse(TrainConfig, flags_of(to_plain(config)), prog="", description="") == config


def test_every_setting_is_read_somewhere():
    """A field that no line of the package reads is a promise that is not kept."""
    read: set[str] = set()
    package = Path(byol.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not (
                isinstance(node.value, ast.Name) and node.value.id == "self"
            ):
                read.add(node.attr)
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and path.name in ("views.py", "config.py")
            ):
                read.add(node.value)  # getattr(config, name)
    for owner in (TrainConfig, ModelConfig, OptimConfig, DataConfig, KnnConfig, ProbeConfig, ViewConfig):
        for field in dataclasses.fields(owner):
            assert field.name in read, f"{owner.__name__}.{field.name}"


def test_every_setting_is_explained():
    for owner in (TrainConfig, ModelConfig, OptimConfig, DataConfig, KnnConfig, ProbeConfig, ViewConfig):
        tree = ast.parse(Path(__import__(owner.__module__, fromlist=["x"]).__file__).read_text())
        body = next(
            node.body
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name == owner.__name__
        )
        for place, node in enumerate(body):
            if isinstance(node, ast.AnnAssign) and "default_factory" not in ast.unparse(node):
                after = body[place + 1]
                assert isinstance(after, ast.Expr), f"{owner.__name__}.{ast.unparse(node.target)}"
                assert isinstance(after.value, ast.Constant)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("2d", 172800), ("20M", 1200)]
)
def test_budgets_are_read_with_their_unit(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0}, {"epochs": -1}, {"batch_size": 1}, {"image_size": 4}, {"workers": -1},
        {"budget": "20"},
        {"budget": "0m"},
        {"budget": "nan m"}, {"budget": "1h", "epochs": 3}, {"keep_checkpoints": 1}, {"log_every_steps": 0},
        {"seed": -1},
        {"out": ""}, {"save_every_steps": 0}, {"eval_size": 3}, {"epochs": float("inf")},
        {"epochs": float("nan")},
        {"epochs": "5"}, {"batch_size": 8.5}, {"precision": "fp16"}, {"seed": None}, {"workers": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_with_its_name_and_value(changes):
    with pytest.raises(byol.ConfigError) as failure:
        TrainConfig(**{"out": "runs/a", **changes})
    name, value = next(iter(changes.items()))
    assert name in str(failure.value)
    assert str(value) in str(failure.value) or value == ""


@pytest.mark.parametrize("name", ["base_lr", "predictor_lr", "weight_decay", "warmup_epochs"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_setting_that_is_not_finite_is_refused(name, value):
    with pytest.raises(byol.ConfigError, match=f"{name} is {value}; expected a finite number"):
        OptimConfig(**{name: value})


@pytest.mark.parametrize(
    ("owner", "flag", "value"),
    [
        (OptimConfig, "optim.momentum", 1.0),
        (OptimConfig, "optim.accumulation", 2.5),
        (ModelConfig, "model.projection_size", 0),
        (DataConfig, "data.channels", 2),
        (DataConfig, "data.channels", True),
        (KnnConfig, "knn.k", "20"),
        (ProbeConfig, "probe.online", 1),
    ],
)
def test_a_refused_setting_of_a_group_is_named_as_its_flag_is(owner, flag, value):
    with pytest.raises(byol.ConfigError) as failure:
        owner(**{flag.split(".")[1]: value})
    assert f"{flag} is {value!r}" in str(failure.value)


def test_paths_and_numbers_of_numpy_are_settings_too(tmp_path):
    config = TrainConfig(
        out=tmp_path / "a",
        epochs=np.float32(1.5),
        batch_size=np.int64(8),
        views=ViewConfig(flip=np.float64(0.5)),
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["out"] == str(tmp_path / "a")
    words = preset_flags(str(tmp_path / "config.yaml"))
    again = parse(TrainConfig, words, prog="", description="")
    assert again == config == TrainConfig(out=str(tmp_path / "a"), epochs=1.5, batch_size=8)


@pytest.mark.parametrize(
    ("count", "batch_size", "says"),
    [
        (0, None, "at least 2"),
        (1, None, "1 image"),
        (100, 256, "only 100 images.*--batch-size 25,"),
        (1, 8, "at least 2"),
    ],
)
def test_too_few_images_are_a_sentence_and_never_a_run_of_zero_steps(count, batch_size, says):
    with pytest.raises(byol.DataError, match=says):
        plan_run(TrainConfig(out="a", batch_size=batch_size), ImageFacts(count, None, 3, False), CPU)


@pytest.mark.parametrize(
    ("count", "advice"), [(300, "Give --batch-size 128, a lower"), (118, "Give a lower")]
)
def test_advice_on_a_batch_size_holds_for_its_micro_batches_too(count, advice):
    config = TrainConfig(out="a", batch_size=320, optim=OptimConfig(accumulation=64))
    with pytest.raises(byol.DataError, match=advice):
        plan_run(config, ImageFacts(count, None, 3, False), CPU)
    if count == 300:
        plan_run(replace(config, batch_size=128), ImageFacts(count, None, 3, False), CPU)


def test_fewer_images_than_the_usual_batch_still_make_steps():
    plan = plan_run(TrainConfig(out="a", epochs=10), ImageFacts(50, None, 3, False), CPU)
    assert plan.batch_size == 12
    assert plan.total_steps == 41


def test_a_requested_value_is_taken_even_where_it_is_0():
    optim = OptimConfig(weight_decay=0.0, base_tau=0.0)
    plan = plan_run(TrainConfig(out="a", optim=optim), CIFAR, CPU)
    assert (plan.weight_decay, plan.base_tau) == (0.0, 0.0)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_requested_precision_is_taken_whatever_the_machine_is_good_at(precision):
    assert plan_run(TrainConfig(out="a", precision=precision), CIFAR, CPU).precision == precision


def test_an_epoch_counts_the_images_that_are_trained_on_and_none_of_the_hold_out_set():
    config = TrainConfig(out="a", epochs=10, batch_size=100, knn=KnnConfig(hold_out_share=0.2))
    plan = plan_run(config, ImageFacts(1_000, None, 3, True), CPU)
    assert (plan.images, plan.hold_out_images, plan.total_steps) == (800, 200, 80)
    unlabelled = plan_run(config, ImageFacts(1_000, None, 3, False), CPU)
    assert (unlabelled.images, unlabelled.hold_out_images, unlabelled.total_steps) == (1_000, 0, 100)


@pytest.mark.parametrize(
    ("labelled", "epochs", "times", "looks"),
    [(True, 0.5, None, 1), (True, 6, None, 2), (True, 14, None, 5), (True, 100, None, 10), (True, 0.5, 8, 8),
     (False, 0.5, None, 1), (False, 2, None, 4), (False, 2, 9, 9)],
)  # fmt: skip
def test_looks_take_a_tenth_of_a_run_at_most_unless_they_are_requested(labelled, epochs, times, looks):
    """An image of 32 pixels costs (32/24)^2 of a pass, one in a step 8 passes of 24 pixels.

    So a look at 4,000 and 1,000 labelled images costs as much as 1,111 in steps, one at 1,024 as 228.
    """
    config = TrainConfig(
        out="a", epochs=epochs, batch_size=50, knn=KnnConfig(hold_out_share=0.2, times=times)
    )
    plan = plan_run(config, ImageFacts(5_000, (32, 32), 3, labelled), CPU)
    assert -(-plan.total_steps // plan.look_every_steps) == looks
    longer = plan.longer(replace(config, epochs=300))
    assert -(-longer.total_steps // longer.look_every_steps) == (times or 10)


def test_a_batch_that_does_not_split_into_micro_batches_is_refused():
    with pytest.raises(byol.ConfigError, match="does not split into 3"):
        plan_run(TrainConfig(out="a", batch_size=256, optim=OptimConfig(accumulation=3)), CIFAR, CPU)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 1), (4, 2), (6, 3)])
def test_one_image_for_each_of_two_processes_is_refused(batch_size, accumulation):
    """BatchNorm of torch's own kind fails on one, and few shares of two images are no more work."""
    two = World(0, 2, torch.device("cpu"))
    optim = OptimConfig(accumulation=accumulation)
    with pytest.raises(
        byol.ConfigError, match=r"for each of 2 processes of equal size and at least 2 images"
    ):
        plan_run(TrainConfig(out="a", batch_size=batch_size, optim=optim), CIFAR, two)
    plan = plan_run(TrainConfig(out="a", batch_size=2 * batch_size, optim=optim), CIFAR, two)
    assert plan.micro_batch_size == 4


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(byol.ConfigError, match="warmup_epochs=20"):
        plan_run(TrainConfig(out="a", epochs=5, optim=OptimConfig(warmup_epochs=20)), CIFAR, CPU)


def test_after_planning_nothing_is_left_open():
    plan = plan_run(TrainConfig(out="a"), CIFAR, CPU)
    assert all(value is not None for value in dataclasses.asdict(plan).values())
    assert (plan.image_size, plan.eval_size) == ((24, 24), (32, 32))
    assert Plan(**json.loads(json.dumps(to_plain(plan)))) == plan


class Machine:
    """Takes so many seconds for a megapixel of views; remembers what it measured."""

    def __init__(self, megapixel: float, **other: float) -> None:
        self.megapixel, self.other = megapixel, other
        self.measured: list[Plan] = []

    def seconds(self, plan: Plan) -> float:
        return self.megapixel * plan.batch_size * plan.image_size[0] * plan.image_size[1] / 1e6

    def __call__(self, draft: Plan) -> Speed:
        self.measured.append(draft)
        return Speed(self.seconds(draft), **self.other)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_budget_fits_steps_looks_reading_and_what_was_spent_before(in_memory):
    """A look is 6,000 forward passes, an eighth of what as many images cost in a step, as a step is."""
    config = TrainConfig(
        out="a", budget="20m", batch_size=256, workers=2, data=DataConfig(in_memory=in_memory)
    )
    machine = Machine(0.5, image=0.001, spent=25.0)
    plan = plan_run(config, CIFAR, CPU, machine)
    looks = -(-plan.total_steps // plan.look_every_steps)
    look = 6000 / 256 * machine.seconds(plan) / 8 * (32 / 24) ** 2
    reading = 0.001 * (49_000 + 6000) if in_memory else 0.001 * 6000 / 2
    whole = plan.total_steps * machine.seconds(plan) + (looks + 1) * look + reading + 25
    assert looks == 10
    assert 0.95 * 1200 < whole < 0.97 * 1200
    assert plan.epochs == pytest.approx(plan.total_steps * 256 / plan.images, rel=1e-3)


class Camera(Machine):
    """Takes 12 ms more for each view of a photograph that is decoded for it: not kept in memory."""

    def seconds(self, plan):
        return super().seconds(plan) + 0.012 * plan.batch_size * (not plan.in_memory)


def test_a_budget_too_short_to_keep_all_photographs_is_planned_by_the_time_that_decoding_each_takes(
    monkeypatch,
):
    monkeypatch.setattr(World, "free_memory", lambda self: 2**40)
    machine = Camera(2.0, image=0.025)
    config = TrainConfig(out="a", budget="4m", workers=2, image_size=48, batch_size=128)
    plan = plan_run(config, replace(IMAGENET, count=30_000), CPU, machine)
    assert not plan.in_memory
    assert plan.total_steps * machine.seconds(plan) < 240
    long = plan_run(replace(config, budget="2h"), replace(IMAGENET, count=30_000), CPU, machine)
    assert long.in_memory
    assert 0.8 * 7200 < long.total_steps * machine.seconds(long) < 7200


def test_looks_take_a_tenth_of_a_budget_at_most(caplog):
    machine = Machine(4.0)
    plan = plan_run(TrainConfig(out="a", budget="2m"), CIFAR, CPU, machine)
    whole = (32 / 24) ** 2  # images are larger than their views
    look = 6000 / plan.batch_size * machine.seconds(plan) / 8 * whole
    looks = -(-plan.total_steps // plan.look_every_steps)
    assert looks == int(12 / look) < 10
    assert f"knn.times is {looks} instead of 10" in caplog.text


def test_tau_and_warm_up_follow_from_the_length_that_a_budget_gives():
    few = replace(CIFAR, count=2000)  # without a budget 1,000 epochs, from a tau of 0.996
    assert plan_run(TrainConfig(out="a"), few, CPU).base_tau == 0.996
    plan = plan_run(TrainConfig(out="a", budget="1m"), few, CPU, Machine(1.0))
    same = plan_run(TrainConfig(out="a", epochs=plan.epochs, batch_size=plan.batch_size), few, CPU)
    assert plan.epochs < 50
    assert plan.base_tau == 0.99
    assert plan == same


def test_a_budget_that_is_short_shrinks_views_and_then_batches_and_says_so(caplog):
    plan = plan_run(TrainConfig(out="a", budget="3m"), IMAGENET, CPU, Machine(0.21))
    assert (plan.batch_size, plan.image_size, plan.eval_size) == (128, (48, 48), (64, 64))
    assert plan.total_steps * plan.batch_size >= 300_000
    assert "instead of" not in caplog.text
    plan = plan_run(TrainConfig(out="a", budget="3m"), IMAGENET, CPU, Machine(0.24))
    assert (plan.batch_size, plan.image_size, plan.eval_size) == (128, (24, 24), (32, 32))
    assert "fit a budget of 3m, image_size is 24 instead of 48." in caplog.text
    caplog.clear()
    plan = plan_run(TrainConfig(out="a", budget="3m"), IMAGENET, CPU, Machine(2.4))
    assert (plan.batch_size, plan.image_size, plan.eval_size) == (64, (24, 24), (32, 32))
    assert "batch_size is 64 instead of 128, image_size is 24 instead of 48" in caplog.text
    assert plan.total_steps >= 1000
    plan = plan_run(TrainConfig(out="a", budget="3m"), IMAGENET, CPU, Machine(20.0))
    assert (plan.batch_size, plan.image_size, plan.eval_size) == (32, (24, 24), (32, 32))


def test_steps_of_few_images_that_cost_more_an_image_do_not_make_batches_small():
    class Dear(Machine):  # so much for every step, whatever it is of
        def seconds(self, plan):
            return 0.1 + super().seconds(plan)

    for budget, seconds in (("20m", 1200), ("10m", 600)):  # 1,000 steps of 64 would not fit as 8 cost
        machine = Dear(2.0)
        plan = plan_run(TrainConfig(out="a", budget=budget), CIFAR, CPU, machine)
        assert [draft.batch_size for draft in machine.measured] == [8, 64, 128]
        assert plan.batch_size == 128
        assert plan.total_steps * machine.seconds(plan) > 0.8 * seconds


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"batch_size": 256}, (256, 24)),
        ({"image_size": 64}, (32, 64)),
        ({"batch_size": 256, "image_size": 64}, (256, 64)),
    ],
)
def test_a_budget_leaves_the_sizes_that_were_requested(settings, size):
    config = TrainConfig(out="a", budget="3m", **settings)
    plan = plan_run(config, IMAGENET, CPU, Machine(8.0))
    assert (plan.batch_size, plan.image_size[0]) == size


def test_a_budget_that_nothing_helps_is_refused_before_a_single_whole_step(caplog):
    machine = Machine(3.0)
    config = TrainConfig(out="a", budget="3m", batch_size=4096, image_size=224, encoder="resnet50")
    with pytest.raises(byol.ConfigError) as failure:
        plan_run(config, IMAGENET, CPU, machine)
    assert all(
        word in str(failure.value) for word in ("3m", "0.3 steps", "4096", "--batch-size", "--image-size")
    )
    assert [plan.batch_size for plan in machine.measured] == [8]


def test_a_budget_without_a_measured_speed_is_not_ignored():
    with pytest.raises(byol.ConfigError, match="budget is 3m"):
        plan_run(TrainConfig(out="a", budget="3m"), CIFAR, CPU)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_takes_a_budget_of_time(name):
    config = replace(preset(name), epochs=None, budget="60d")
    drafts = []
    plan = plan_run(config, IMAGENET, CPU, lambda draft: drafts.append(draft) or Speed(1.0))
    assert {draft.warmup_steps for draft in drafts} == {0}
    if config.optim.warmup_epochs is not None:
        assert plan.warmup_steps == int(config.optim.warmup_epochs * plan.images) // plan.batch_size
    too_long = replace(config, budget="1h", optim=replace(config.optim, warmup_epochs=30))
    with pytest.raises(byol.ConfigError, match=r"warmup_epochs=30 is not shorter than the run"):
        plan_run(too_long, IMAGENET, CPU, lambda draft: Speed(1.0))


@pytest.mark.parametrize(("count", "epochs"), [(62, 1000), (62, 3), (50_000, 28), (1_281_167, 300)])
def test_checkpoints_are_some_dozens_a_run_however_short_its_epochs(count, epochs):
    plan = plan_run(TrainConfig(out="a", epochs=epochs), ImageFacts(count, None, 3, False), CPU)
    assert min(20, plan.total_steps) <= plan.total_steps // plan.save_every_steps <= 39


def test_photographs_are_streamed_and_small_images_kept_in_memory_where_they_fit_in_a_quarter_of_it(
    monkeypatch,
):
    images = 50_000 * 3 * 32 * 32
    monkeypatch.setattr(World, "free_memory", lambda self: 4 * images)
    assert not plan_run(TrainConfig(out="a"), IMAGENET, CPU).in_memory
    assert plan_run(TrainConfig(out="a"), CIFAR, CPU).in_memory
    monkeypatch.setattr(World, "free_memory", lambda self: 4 * images - 1)
    assert not plan_run(TrainConfig(out="a"), CIFAR, CPU).in_memory


@pytest.mark.parametrize(
    ("facts", "settings", "kept"),
    [
        (replace(IMAGENET, count=2000), {"epochs": 4}, (True, 192)),
        (replace(IMAGENET, count=2000), {"epochs": 3}, (False, 0)),  # it would not pay
        (replace(IMAGENET, count=2000), {"epochs": 4, "image_size": 128}, (False, 0)),
        (replace(IMAGENET, count=2000), {"epochs": 3, "data": DataConfig(in_memory=True)}, (True, 192)),
        (replace(IMAGENET, count=2000), {"epochs": 4, "data": DataConfig(in_memory=False)}, (False, 0)),
        (replace(IMAGENET, count=10**9), {"epochs": 4}, (False, 0)),
        (CIFAR, {"epochs": 4}, (True, 0)),
    ],
)
def test_photographs_for_small_views_are_kept_shrunk_where_it_pays(facts, settings, kept):
    plan = plan_run(TrainConfig(out="a", **settings), facts, CPU)
    assert (plan.in_memory, plan.memory_side) == kept
    assert plan.memory_side == (4 * plan.image_size[0] if kept[1] else 0)


@pytest.mark.parametrize("batch_size", [64, 4096])
def test_the_rate_grows_with_the_root_of_the_batch_when_requested_and_the_plan_says_so(batch_size):
    usual, root = (
        plan_run(preset("imagenet-300", "--batch-size", str(batch_size), *flags), IMAGENET, CPU)
        for flags in ([], ["--optim.lr-scaling", "sqrt"])
    )
    factor = batch_size / 256
    assert usual.lr == pytest.approx(0.3 * factor)
    assert root.lr == pytest.approx(0.3 * factor**0.5)
    for plan in (usual, root):
        assert plan.lr_at(plan.warmup_steps) == pytest.approx(plan.lr)
    (said,) = [line for line in root.lines() if line.startswith("switches ")]
    assert f"lr 0.3 of 256 images times the root of {batch_size}/256" in said
    assert not usual.departures()
