import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from byol.encoders.encoder import save_encoder
from byol.encoders.load import load_encoder
from byol.errors import CheckpointError, ConfigError
from byol.features.embed import embed

IMAGES = torch.randint(0, 256, (3, 3, 20, 27), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def code_of_your_own(tmp_path, monkeypatch):
    """A module `own_code` that says in `imported.txt` when it is imported."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_code.py").write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        f"Path({str(tmp_path / 'imported.txt')!r}).write_text('yes')\n"
        "def build(width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield tmp_path / "imported.txt"
    sys.modules.pop("own_code", None)


def saved(encoder_of, folder: Path, name: str | None, **options: object) -> Path:
    """An encoder file of a network whose name is whatever one wishes."""
    encoder = encoder_of(net())
    encoder.info = replace(encoder.info, architecture=name, options=options)
    return save_encoder(encoder, folder)


@pytest.mark.parametrize(
    "name", ["own_code:build", "os:system", "torch.hub:load", "subprocess:run", ":x", "timm.x:y", "a:b:c"]
)
def test_no_file_can_make_the_program_import_code(encoder_of, tmp_path, code_of_your_own, name):
    file = saved(encoder_of, tmp_path, name)
    with pytest.raises(
        CheckpointError, match=f"is {name!r}, code of your own, which is not built because a file says so"
    ):
        load_encoder(file)
    assert not code_of_your_own.exists()
    assert "own_code" not in sys.modules


def test_code_of_your_own_is_built_when_you_name_it(encoder_of, tmp_path, code_of_your_own):
    file = saved(encoder_of, tmp_path, "own_code:build", width=4)
    loaded = load_encoder(file, net="own_code:build")
    assert code_of_your_own.exists()
    torch.testing.assert_close(loaded(IMAGES), load_encoder(file, net=net())(IMAGES))


def test_module_of_your_own_is_filled_when_you_give_it(encoder_of, tmp_path):
    torch.manual_seed(0)
    encoder = encoder_of(net())
    file = save_encoder(encoder, tmp_path)
    mine = net().train()
    loaded = load_encoder(file, net=mine)
    assert loaded.net is mine
    assert not mine.training
    torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-5)


def test_module_of_your_own_that_is_missing_is_requested(encoder_of, tmp_path):
    file = save_encoder(encoder_of(net()), tmp_path)
    with pytest.raises(CheckpointError, match=r"a module of your own.*load_encoder\(path, net=\.\.\.\)"):
        load_encoder(file)


@pytest.mark.parametrize(
    "name", ["resnet19", "torchvision:resnet", "timm:hf-hub:someone/model", "torchvision:quantized_resnet18"]
)
def test_names_of_nothing_are_refused_and_nothing_is_downloaded(encoder_of, tmp_path, name):
    file = saved(encoder_of, tmp_path, name)
    with pytest.raises(ConfigError, match="no"):
        load_encoder(file)


@pytest.mark.parametrize("options", [{"pretrained": True}, {"weights": "DEFAULT"}, {"no_such": 1}])
@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:resnet18", "convnet"])
def test_no_file_can_request_weights_from_elsewhere(encoder_of, tmp_path, name, options):
    file = saved(encoder_of, tmp_path, name, **options)
    with pytest.raises(ConfigError):
        load_encoder(file)


def test_encoder_runs_on_the_requested_device(encoder_of, tmp_path):
    file = save_encoder(encoder_of("convnet"), tmp_path)
    assert {p.device.type for p in load_encoder(file).parameters()} == {"cpu"}
    assert {p.device.type for p in load_encoder(file, device="cpu").parameters()} == {"cpu"}
    with pytest.raises(ConfigError, match="cpu, cuda"):
        load_encoder(file, device="gpu")


def test_loaded_encoder_gives_no_gradient_and_stays_in_eval_mode(encoder_of, tmp_path):
    loaded = load_encoder(save_encoder(encoder_of("convnet"), tmp_path))
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    representation = loaded.train()(IMAGES)
    assert not representation.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())


def test_loaded_encoder_embeds_as_the_one_that_was_saved(encoder_of, tmp_path):
    encoder = encoder_of("convnet")
    loaded = load_encoder(save_encoder(encoder, tmp_path))
    images = IMAGES.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(embed(loaded, images).x, embed(encoder, images).x, rtol=1e-5, atol=1e-5)


class Canary:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_file_can_have_a_pickle_executed(encoder_of, tmp_path):
    """timm's builder takes the path of weights to load: a file could point it to a pickle beside it."""
    torch.save(Canary(tmp_path / "executed"), tmp_path / "weights.pth")
    file = saved(encoder_of, tmp_path, "timm:test_vit", checkpoint_path=str(tmp_path / "weights.pth"))
    with pytest.raises(ConfigError, match="fresh weights, and checkpoint_path would load others"):
        load_encoder(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_loading_an_encoder_does_not_load_torchs_compiler(encoder_of, tmp_path, name):
    """Which takes seconds, in every command that starts from an encoder."""
    file = save_encoder(encoder_of(name), tmp_path)
    words = f"import byol, sys; byol.load_encoder({str(file)!r}); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
