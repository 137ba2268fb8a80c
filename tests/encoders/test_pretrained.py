"""Real networks with drawn weights; a folder of the test's own stands where libraries keep downloads."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from byol.encoders.encoder import save_encoder
from byol.encoders.load import load_encoder
from byol.encoders.pretrained import pretrained_encoder
from byol.errors import CheckpointError, ConfigError

PIXELS = torch.randint(
    0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
MEAN, STD = (
    torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
)
NORMAL = (PIXELS / 255 - MEAN) / STD


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder that torchvision and timm download to, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def drawn(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network in eval mode with statistics that are not those it starts with."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval()


def before_the_classifier(net: torch.nn.Module, layer: torch.nn.Module) -> torch.Tensor:
    """What torchvision's own network hands to its last layer."""
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(NORMAL)
    handle.remove()
    return seen[0]


def test_torchvision_weights_are_taken_from_where_it_keeps_its_downloads(hub):
    net = drawn(models.resnet18(weights=None))
    torch.save(net.state_dict(), hub / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    encoder = pretrained_encoder("torchvision:resnet18")
    torch.testing.assert_close(encoder(PIXELS), before_the_classifier(net, net.fc), rtol=1e-3, atol=1e-4)
    assert (encoder.info.architecture, encoder.info.image_size, encoder.info.features) == (
        "torchvision:resnet18",
        (224, 224),
        512,
    )
    assert encoder.info.mean == (0.485, 0.456, 0.406)


def test_older_weights_serve_when_the_newest_are_not_there_and_images_are_fed_as_for_them(hub):
    older, newest = models.MobileNet_V2_Weights.IMAGENET1K_V1, models.MobileNet_V2_Weights.DEFAULT
    assert older is not newest
    net = drawn(models.mobilenet_v2(weights=None))
    torch.save(net.state_dict(), hub / older.url.rpartition("/")[2])
    encoder = pretrained_encoder("torchvision:mobilenet_v2")
    torch.testing.assert_close(
        encoder(PIXELS), before_the_classifier(net, net.classifier[1]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_ones_own_goes_before_all_downloads(hub, tmp_path, suffix):
    downloaded, own = (drawn(models.resnet18(weights=None), seed) for seed in (1, 2))
    torch.save(downloaded.state_dict(), hub / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    file = tmp_path / f"own{suffix}"
    save_file(own.state_dict(), file) if suffix == ".safetensors" else torch.save(own.state_dict(), file)
    encoder = pretrained_encoder("torchvision:resnet18", weights=file)
    torch.testing.assert_close(encoder(PIXELS), before_the_classifier(own, own.fc), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_densenets_names_of_long_ago_and_googlenets_own_normalisation_are_understood(hub, tmp_path):
    dense = drawn(models.densenet121(weights=None))
    old = {
        name.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2.")
        if "denselayer" in name
        else name: value
        for name, value in dense.state_dict().items()
    }
    torch.save(old, tmp_path / "dense.pth")
    encoder = pretrained_encoder("torchvision:densenet121", weights=tmp_path / "dense.pth")
    torch.testing.assert_close(
        encoder(PIXELS), before_the_classifier(dense, dense.classifier), rtol=1e-3, atol=1e-4
    )

    google = drawn(models.googlenet(weights=None, aux_logits=True, transform_input=True, init_weights=False))
    torch.save(google.state_dict(), tmp_path / "google.pth")
    encoder = pretrained_encoder("torchvision:googlenet", weights=tmp_path / "google.pth")
    save_encoder(encoder, tmp_path)
    for loaded in (encoder, load_encoder(tmp_path)):
        torch.testing.assert_close(
            loaded(PIXELS), before_the_classifier(google, google.fc), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_weights_are_read_as_timm_reads_them(hub, tmp_path, suffix):
    import timm

    net = drawn(timm.create_model("test_resnet"))
    file = tmp_path / f"own{suffix}"
    save_file(net.state_dict(), file) if suffix == ".safetensors" else torch.save(net.state_dict(), file)
    encoder = pretrained_encoder("timm:test_resnet", weights=file)
    settings = timm.data.resolve_model_data_config(net)
    assert encoder.info.image_size == settings["input_size"][1:]
    assert encoder.info.mean == settings["mean"]
    size = encoder.info.image_size
    pixels = PIXELS[:, :, : size[0], : size[1]]
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = net.forward_head(net.forward_features((pixels / 255 - mean) / std), pre_logits=True)
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-3, atol=1e-4)


def test_timm_weights_are_found_in_the_hub_cache(hub, tmp_path):
    """In the layout of huggingface_hub: a snapshot of the repository that timm names for the weights."""
    import timm

    net = drawn(timm.create_model("test_resnet"))
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    place = tmp_path / "hf" / f"models--{repository.replace('/', '--')}"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    save_file(net.state_dict(), place / "snapshots" / "abc" / "model.safetensors")
    encoder = pretrained_encoder("timm:test_resnet.r160_in1k")
    assert encoder.info.architecture == "timm:test_resnet"
    torch.testing.assert_close(dict(encoder.net.named_parameters())["conv1.0.weight"], net.conv1[0].weight)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:test_resnet"])
def test_without_weights_on_the_machine_a_sentence_says_where_they_were_looked_for(hub, name):
    with pytest.raises(
        ConfigError, match=rf"no weights of {name} on this machine \(looked for .*, and nothing is downloaded"
    ):
        pretrained_encoder(name)
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:resnet19", "resnet18"),
        ("timm:test_resnets", "test_resnet"),
        ("timm:test_resnet.nobody", "knows no weights"),
    ],
)
def test_names_of_nothing_are_refused(hub, name, says):
    with pytest.raises(ConfigError, match=says):
        pretrained_encoder(name)


class Canary:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:test_resnet"])
@pytest.mark.parametrize("damage", ["of another network", "text", "cut", "a pickle", "no tensors"])
def test_weights_that_do_not_serve_are_refused_in_a_sentence(hub, tmp_path, name, damage):
    file = tmp_path / "own.pth"
    other = models.squeezenet1_1(weights=None).state_dict()
    held = {"a pickle": Canary(tmp_path / "executed"), "no tensors": {"epoch": 3}}.get(damage, other)
    torch.save(held, file)
    if damage == "text":
        file.write_text("no weights")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"own\.pth") as refused:
        pretrained_encoder(name, weights=file)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ConfigError, match="There is no file"):
        pretrained_encoder(name, weights=tmp_path / "nothing.pth")


def test_pretrained_encoder_embeds_images_of_any_size(hub, tmp_path):
    from byol.features.embed import embed

    torch.save(drawn(models.squeezenet1_1(weights=None)).state_dict(), tmp_path / "own.pth")
    encoder = pretrained_encoder("torchvision:squeezenet1_1", weights=tmp_path / "own.pth")
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    assert embed(encoder, images).x.shape == (3, 512)


def test_a_copy_of_a_librarys_weights_is_fed_as_the_library_says_for_them(hub, tmp_path):
    net = models.mobilenet_v2(weights=None).state_dict()
    ratios = []
    for kind in (models.MobileNet_V2_Weights.IMAGENET1K_V1, models.MobileNet_V2_Weights.IMAGENET1K_V2):
        file = tmp_path / kind.url.rpartition("/")[2]
        torch.save(net, file)
        ratios.append(pretrained_encoder("torchvision:mobilenet_v2", weights=file).info.crop_ratio)
    assert ratios == [224 / 256, 224 / 232]


@pytest.mark.slow
def test_weights_for_another_size_get_a_network_of_that_size(hub, tmp_path):
    kind = models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    file = tmp_path / kind.url.rpartition("/")[2]
    torch.save(models.vit_b_16(weights=None, image_size=384).state_dict(), file)
    assert pretrained_encoder("torchvision:vit_b_16", weights=file).info.image_size == (384, 384)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18",
        "timm:resnet18",
        "timm:test_vit",
        "torchvision:mobilenet_v3_small",
        "torchvision:mnasnet0_5",  # which refuses tensors without the version of its names
    ],
)
def test_weights_may_lack_the_classifier_that_is_taken_off_anyway_and_nothing_else(tmp_path, name):
    library, model = name.split(":")
    torch.manual_seed(0)
    net = models.get_model(model) if library == "torchvision" else timm.create_model(model)
    whole = net.state_dict()
    last = list(whole)[-1].rpartition(".")[0]
    without = {key: value for key, value in whole.items() if not key.startswith(f"{last}.")}
    assert len(without) == len(whole) - 2
    pictures, features = torch.rand(2, 3, 64, 64), []
    for number, tensors in enumerate((whole, without)):
        torch.save(tensors, tmp_path / f"{number}.pt")
        features.append(pretrained_encoder(name, weights=tmp_path / f"{number}.pt")(pictures))
    assert torch.equal(*features)
    del without[next(iter(without))]
    torch.save(without, tmp_path / "2.pt")
    with pytest.raises(CheckpointError, match=r"2\.pt (does not fit|are not those of)"):
        pretrained_encoder(name, weights=tmp_path / "2.pt")
