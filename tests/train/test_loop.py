"""`byol.steps` called with nothing but public names gives the run that `byol.pretrain` makes of the same
settings.
"""

from importlib.resources import files

import torch
from small_runs import small_config

import byol


def test_a_loop_of_ones_own_trains_what_pretrain_trains(photos, tmp_path):
    config = small_config(tmp_path / "run")
    run = byol.pretrain("convnet", photos, config)
    loop = byol.prepare_loop("convnet", photos, config)
    assert loop.plan == run.plan
    assert isinstance(loop.plan, byol.Plan)
    losses = [
        float(result.loss) for result in byol.steps(loop.learner, loop.batches, loop.optimizer, loop.plan)
    ]
    assert len(losses) == run.plan.total_steps
    ours, theirs = loop.learner.online.encoder.state_dict(), run.encoder.network.state_dict()
    for name, value in theirs.items():
        if name.startswith("net.whitening."):  # which comes after training
            continue
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, msg=name)


def test_type_checkers_are_told_that_the_package_has_types():
    assert files("byol").joinpath("py.typed").is_file()
