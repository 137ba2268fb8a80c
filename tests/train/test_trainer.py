"""byol-pytorch's trainer by its arguments: what they mean here, and that its proven defects are none."""

import json

import numpy as np
import pytest
import torch
from small_runs import Tiny, seeded, stopping
from torch import Tensor

import byol
from byol import BYOLTrainer, MockDataset

SMALL = {"byol_kwargs": {"projection_size": 8, "projection_hidden_size": 16}}


class Pairs:
    """33 labelled images, which byol-pytorch's trainer rejects: (image, label), and a last batch of one."""

    def __len__(self) -> int:
        return 33

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(index)), index % 3


def trainer_of(folder: object, net: torch.nn.Module, **changes: object) -> BYOLTrainer:
    given = {
        "dataset": MockDataset(16, 40), "image_size": 16, "hidden_layer": "layers", "learning_rate": 3e-3,
        "num_train_steps": 7, "batch_size": 8, "checkpoint_every": 3, "checkpoint_folder": str(folder),
    }  # fmt: skip
    return BYOLTrainer(net, **{**given, **SMALL, **changes})


def test_its_example_trains_the_users_network_for_its_number_of_steps(tmp_path):
    net = seeded()
    before = net.layers[0].weight.detach().clone()
    run = trainer_of(tmp_path, net)()
    assert run.plan.total_steps == 7
    assert run.plan.images == 40
    assert not torch.equal(net.layers[0].weight, before)
    assert torch.equal(byol.load_encoder(tmp_path, net=Tiny()).net.layers[0].weight, net.layers[0].weight)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 7


@pytest.mark.parametrize("steps", [1, 5, 1000, 12_345])
@pytest.mark.parametrize("batch", [2, 8, 40])
def test_any_number_of_steps_and_size_of_batch_is_kept(tmp_path, steps, batch):
    config = trainer_of(tmp_path, Tiny(), num_train_steps=steps, batch_size=batch).config
    plan = byol.prepare_loop(Tiny(), MockDataset(16, 40), config).plan
    assert (plan.total_steps, plan.batch_size) == (steps, batch)
    assert plan.lr == pytest.approx(3e-3)
    assert (plan.optimizer, plan.weight_decay, plan.momentum, plan.beta2) == ("adamw", 0.0, 0.9, 0.999)


def test_its_other_optimizers_and_learners_options_have_equals(tmp_path):
    config = trainer_of(
        tmp_path, Tiny(), optimizer_klass=torch.optim.SGD,
        optimizer_kwargs={"momentum": 0.8, "weight_decay": 0.1}, byol_kwargs={"moving_average_decay": 0.9},
    ).config  # fmt: skip
    optim = config.optim
    assert (optim.name, optim.momentum, optim.weight_decay, optim.base_tau) == ("sgd", 0.8, 0.1, 0.9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer_klass": torch.optim.RMSprop}, ["optimizer_klass", "RMSprop", "AdamW"]),
        ({"optimizer_kwargs": {"amsgrad": True}}, ["optimizer_kwargs", "amsgrad", "byol.steps"]),
        ({"optimizer_kwargs": {"weight_decay": 0.1}}, ["weight_decay", "AdamW"]),
        ({"byol_kwargs": {"use_momentum": False}}, ["byol_kwargs", "use_momentum", "byol.BYOL"]),
        ({"accelerator_kwargs": {"mixed_precision": "fp16"}}, ["mixed_precision", "precision"]),
    ],
)
def test_what_has_no_equal_is_refused_with_what_to_use(tmp_path, changes, words):
    with pytest.raises(byol.ConfigError) as failure:
        trainer_of(tmp_path / "a", Tiny(), **changes)
    assert [word for word in words if word not in str(failure.value)] == []
    assert not (tmp_path / "a").exists()


def test_the_loss_of_its_loop_falls():
    """4: there, for eight months gradients were zeroed before the step."""
    torch.manual_seed(0)
    net, images = seeded(), torch.rand(32, 3, 16, 16)
    learner = byol.BYOL(net, 16, "layers", 8, 16)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(20):
        loss = learner(images, images.flip(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_a_stopped_run_is_continued_to_the_same_weights(tmp_path):
    """5: there, nothing but the network is saved, and the step is never counted."""
    whole, net = seeded(), stopping(seeded(), 2 * 4 + 1)
    trainer_of(tmp_path / "a", whole)()
    with pytest.raises(byol.Stopped):
        trainer_of(tmp_path / "b", net)()
    again = seeded()
    trainer_of(tmp_path / "b", again)()
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in whole.state_dict().items())


def test_labelled_items_and_a_last_batch_of_one_are_no_trouble(tmp_path):
    """6: there, `'list' object has no attribute 'shape'`, and an AssertionError."""
    run = trainer_of(tmp_path, seeded(), dataset=Pairs(), batch_size=16, num_train_steps=5, hidden_layer=0)()
    assert (run.plan.images, run.plan.total_steps) == (33, 5)


def test_trainers_share_no_state(tmp_path):
    """7: there, a mutable default keeps what the first instance put into it."""
    given: dict[str, object] = {}
    trainer_of(tmp_path / "a", Tiny(), accelerator_kwargs=given, optimizer_kwargs=given, byol_kwargs=given)
    assert given == {}
    assert trainer_of(tmp_path / "a", Tiny()).config == trainer_of(tmp_path / "a", Tiny()).config


def test_the_mock_dataset_is_noise_of_a_length_and_the_same_each_time():
    data = MockDataset(8, 5)
    images = list(data)
    assert len(images) == len(data) == 5
    assert all(image.shape == (3, 8, 8) and image.min() >= 0 and image.max() < 1 for image in images)
    assert torch.equal(data[3], images[3])
    assert not torch.equal(data[3], data[4])


def test_its_fourth_name_is_refused_with_the_reason():
    with pytest.raises(ImportError, match="simplicial"):
        from byol import SEM  # noqa: F401
