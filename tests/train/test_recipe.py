import numpy as np
import pytest
from small_runs import small_config

import byol
from byol import ViewConfig
from byol.train.recipe import in_words, kind_of, views_of


def test_the_papers_kind_is_the_papers_views_at_any_size():
    assert views_of("paper", ViewConfig(), 24) == views_of("paper", ViewConfig(), 224) == ViewConfig()
    assert views_of("photos", ViewConfig(), 224) == ViewConfig()


def test_small_views_are_not_blurred_and_their_crops_not_tiny():
    """As in solo-learn's and lightly's recipes for CIFAR-10."""
    views = views_of("photos", ViewConfig(), 32)
    assert views == ViewConfig(crop_area=(0.2, 1.0), blur=(0.0, 0.0))


@pytest.mark.parametrize("kind", ["gray", "textures"])
def test_views_of_gray_pictures_keep_what_tells_them_apart(kind):
    views, paper = views_of(kind, ViewConfig(), 48), ViewConfig()
    assert views.crop_area[0] > paper.crop_area[0]
    assert (views.solarize, views.blur, views.hue) == ((0.0, 0.0), (0.0, 0.0), 0.0)


@pytest.mark.parametrize(("kind", "laid"), [("photos", 0), ("gray", 0), ("textures", 0.5), ("aerial", 0.5)])
def test_only_images_without_an_up_and_a_down_are_turned(kind, laid):
    views = views_of(kind, ViewConfig(), 48)
    assert (views.vertical_flip, views.turn) == (laid, laid)


def test_a_number_that_was_requested_stays():
    views = views_of("gray", ViewConfig(hue=0.3, crop_area=(0.4, 0.9)), 48)
    assert (views.hue, views.crop_area, views.saturation) == (0.3, (0.4, 0.9), 0.1)


@pytest.mark.parametrize(
    ("channels", "share", "kind"),
    [(1, 1.0, "gray"), (3, 0.95, "gray"), (3, 0.5, "photos"), (4, 0.0, "photos")],
)
def test_a_kind_follows_from_channels_and_colour(channels, share, kind):
    assert kind_of(channels, share) == kind


def test_a_run_learns_from_the_views_of_its_images_kind_and_says_so(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8).repeat(3, axis=3)
    run = byol.pretrain(None, images, small_config(tmp_path / "a", encoder="convnet", epochs=1))
    assert (run.plan.kind, run.plan.views) == ("gray", views_of("gray", ViewConfig(), 16))
    assert "views      for gray: crops of 50 to 100 %" in capsys.readouterr().err
    again = byol.pretrain(None, images, small_config(tmp_path / "a", encoder="convnet", epochs=1))
    assert again.plan == run.plan


def test_the_papers_name_is_on_the_papers_views_alone():
    assert in_words("paper", ViewConfig()).startswith("the paper's: crops of 8 to 100 %")
    assert in_words("paper", ViewConfig(brightness=0.1)).startswith("as set: ")
    assert in_words("aerial", ViewConfig()).startswith("for aerial: ")
