"""Views beside the two: local, cutout and more of the target's; none of them are the paper's."""

import copy

import pytest
import torch
from test_byol import equal, noise, set_apart, small_learner, state
from torch import Tensor, nn
from torch.nn import functional as F

from byol.errors import ConfigError
from byol.method.byol import BYOL
from byol.method.extra import extra_views, local_size
from byol.method.loss import regression_loss
from byol.method.views import ViewConfig, Views

VIEWS = {"local": [noise(seed=2, size=10), noise(seed=3, size=10)], "cutout": [noise(seed=4)]}
MORE = {"target": [noise(seed=5), noise(seed=6)]}
TWO = noise(seed=0), noise(seed=1)


def learner_of(*extra: str) -> BYOL:
    return set_apart(small_learner(extra=extra))


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def distance(predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Twice the mean of 2 - 2 cos over all pairs."""
    pairs = [2 - 2 * F.cosine_similarity(p, z) for p in predictions for z in targets]
    return 2 * torch.stack(pairs).mean()


def test_two_views_and_nothing_else_are_plain_byol_to_the_bit():
    learner = learner_of()
    other = copy.deepcopy(learner)
    learner(*TWO, extra={}).backward()
    predictions = [other.predict(view) for view in TWO]
    with torch.no_grad():
        projections = [other.target(view) for view in TWO]
    pairs = zip(predictions, reversed(projections), strict=True)
    loss = sum(regression_loss(prediction, projection) for prediction, projection in pairs).mean()
    loss.backward()
    assert torch.equal(learner(*TWO), other(*TWO))
    for ours, theirs in zip(learner.parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


def test_the_networks_of_plain_byol_start_from_the_same_weights():
    plain, more = state(small_learner()), state(small_learner(extra=("local", "cutout")))
    assert equal(plain, {name: value for name, value in more.items() if name in plain})
    first, second = (more[f"extra_predictors.{name}.0.weight"] for name in ("local", "cutout"))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kinds", [("local",), ("local", "cutout")])
def test_the_loss_is_the_mean_over_kinds_of_the_mean_over_their_views_and_the_two_targets(kinds):
    learner = learner_of(*kinds)
    by_hand, seen = copy.deepcopy(learner), []
    learner.target.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    loss = learner(*TWO, extra={name: VIEWS[name] for name in kinds})
    assert [tuple(view.shape) for view in seen] == [tuple(view.shape) for view in TWO]
    first, second = (by_hand.target(view) for view in TWO)
    one, two = (by_hand.predict(view) for view in TWO)
    parts = [(distance([one], [second]) + distance([two], [first])) / 2]
    for name in kinds:
        predictor = by_hand.extra_predictors[name]
        parts.append(distance([predictor(by_hand.online(view)) for view in VIEWS[name]], [first, second]))
    torch.testing.assert_close(loss, torch.stack(parts).mean())


def test_more_views_of_the_target_make_the_mean_of_the_normalised_projections_what_is_predicted():
    learner = learner_of("cutout")
    by_hand = copy.deepcopy(learner)
    loss = learner(*TWO, extra=MORE | {"cutout": VIEWS["cutout"]})
    z1, z2, z3, z4 = (unit(by_hand.target(view)) for view in (*TWO, *MORE["target"]))
    p1, p2 = (by_hand.predict(view) for view in TWO)
    whole = distance([p1], [z2 + z3 + z4]) / 2 + distance([p2], [z1 + z3 + z4]) / 2
    cutout = by_hand.extra_predictors["cutout"](by_hand.online(VIEWS["cutout"][0]))
    torch.testing.assert_close(loss, (whole + distance([cutout], [z1 + z2 + z3 + z4])) / 2)


def test_every_predictor_learns_from_its_own_kind_and_the_target_from_none():
    learner = learner_of("local", "cutout")
    learner(*TWO, extra=VIEWS | MORE).backward()
    assert all(p.grad.abs().sum() > 0 for p in learner.extra_predictors.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in learner.target.parameters())
    assert all(p.grad is not None for p in learner.online.parameters() if p.requires_grad)


@pytest.mark.parametrize("shared", [False, True])
def test_extra_views_leave_the_running_statistics_to_the_two_views(shared):
    options = {"sync_batchnorm": True} if shared else {}
    plain = set_apart(small_learner(**options))
    more = set_apart(small_learner(extra=("local", "cutout"), **options))
    plain(*TWO)
    more(*TWO, extra=VIEWS)
    assert equal(state(plain.online), state(more.online))
    assert all(m.track_running_stats for m in more.modules() if isinstance(m, nn.BatchNorm2d))


def test_one_pixel_of_an_extra_view_that_is_not_finite_touches_nothing():
    learner = learner_of("local", "cutout")
    before = state(learner.online)
    spoiled = VIEWS["local"][1].clone()
    spoiled[0, 0, 0, 0] = torch.nan
    loss = learner(*TWO, extra=VIEWS | {"local": [VIEWS["local"][0], spoiled]})
    assert loss.isnan()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in learner.online.parameters() if p.grad is not None)
    assert all(value.isfinite().all() for value in state(learner).values())
    assert before.keys() == state(learner.online).keys()


def test_views_without_a_predictor_and_predictors_without_views_are_sentences():
    with pytest.raises(ConfigError, match="local"):
        learner_of("cutout")(*TWO, extra=VIEWS)
    with pytest.raises(ConfigError, match="cutout"):
        learner_of("cutout")(*TWO)
    with pytest.raises(ConfigError, match="6 and 6 and 4"):
        learner_of("cutout")(*TWO, extra={"cutout": [noise(4)]})


def drawn(config: ViewConfig, images: Tensor, size: int = 32) -> dict[str, tuple[Tensor, ...]]:
    """Extra views of images that are crops already."""
    kinds = extra_views(Views(size, config), local=1, cutout=2, targets=1)
    crops = {kind.name: images[:, None].expand(-1, kind.count, -1, -1, -1) for kind in kinds}
    return {kind.name: kind.finish(crops[kind.name], seed=3, step=2) for kind in kinds}


def test_a_cutout_is_a_rectangle_of_20_to_40_percent_in_the_mean_color():
    plain = ViewConfig(jitter=0, grayscale=0, blur=(0, 0), solarize=(0, 0))
    images = torch.ones(64, 3, 32, 32)
    one, two = drawn(plain, images)["cutout"]
    (whole,) = drawn(plain, images)["target"]
    holes = (one == 0).all(dim=1)
    assert torch.equal(torch.where(holes[:, None], whole, one), whole)
    for hole in holes:
        rows, columns = hole.any(dim=1), hole.any(dim=0)
        assert torch.equal(hole, rows[:, None] & columns[None])
    shares = holes.float().mean(dim=(1, 2))
    assert 0.17 < shares.min() < 0.25 < 0.35 < shares.max() < 0.43  # sides are whole pixels
    assert not torch.equal(one, two)


def test_local_views_are_crops_of_8_to_25_percent_at_three_sevenths_of_the_side():
    assert local_size((224, 224)) == (96, 96)
    assert local_size((24, 32)) == (10, 14)
    (local,) = extra_views(Views(224), local=1, cutout=0, targets=0)
    drawn = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None].expand(100, 5)
    boxes = local.views.config.crops(drawn, torch.full((100,), 1000), torch.full((100,), 1000)).boxes
    shares = boxes[:, 2] * boxes[:, 3] / 1e6
    assert 0.079 < shares.min() < 0.081
    assert 0.249 < shares.max() < 0.251
