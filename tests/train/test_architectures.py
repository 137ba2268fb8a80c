"""Networks of other libraries, each trained a step, saved and loaded: their features are the library's own.

The smallest variants on the smallest images that they take, with weights drawn at random: what differs from
network to network is the way to the features, not the size. `--collect-only` lists them.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from small_runs import small_config
from torch import Tensor, nn
from torchvision import models

import byol
from byol.encoders.load import untrained
from byol.train.config import KnnConfig, ModelConfig, OptimConfig

CLASSES = 5  # of the libraries' own networks

# Name, side of the images, the layer that classifies, options.
TORCHVISION: list[tuple[str, int, str, dict[str, Any]]] = [
    ("resnet18", 32, "fc", {}),
    ("densenet121", 32, "classifier", {}),
    ("inception_v3", 75, "fc", {"transform_input": True, "init_weights": False}),  # else seconds of draws
    ("googlenet", 32, "fc", {"init_weights": False}),
    ("mobilenet_v2", 32, "classifier.1", {}),
    ("mobilenet_v3_small", 32, "classifier.3", {}),
    ("efficientnet_b0", 32, "classifier.1", {}),
    ("regnet_x_400mf", 32, "fc", {}),
    ("shufflenet_v2_x0_5", 32, "fc", {}),
    ("squeezenet1_1", 32, "classifier.1", {}),
    ("mnasnet0_5", 32, "classifier.1", {}),
]
TIMM: list[tuple[str, int, dict[str, Any]]] = [
    ("resnext50_32x4d", 32, {"layers": [1, 1, 1, 1]}),
    ("wide_resnet50_2", 32, {"layers": [1, 1, 1, 1]}),
    ("resnetv2_18", 32, {}),
    ("vgg11", 32, {"mlp_ratio": 0.01}),
    ("regnety_002", 32, {}),
    ("test_efficientnet", 32, {}),
    ("tf_efficientnetv2_b0", 64, {}),
    ("mobilenetv4_conv_small", 32, {}),
    ("convnext_atto", 32, {"depths": [1, 1, 1, 1]}),
    ("hrnet_w18_small", 32, {}),
    ("dla46_c", 32, {}),
    ("test_nfnet", 32, {}),
    ("ghostnet_050", 32, {}),
    ("repvgg_a0", 32, {}),
    ("vit_tiny_patch16_224", 32, {"depth": 1}),
    ("deit_tiny_distilled_patch16_224", 32, {"depth": 1}),
    ("beit_base_patch16_224", 32, {"depth": 1, "embed_dim": 48, "num_heads": 3}),
    ("eva02_tiny_patch14_224", 28, {"depth": 1}),
    ("cait_xxs24_224", 32, {"depth": 2, "init_values": 0.1}),
    ("xcit_nano_12_p16_224", 32, {"depth": 1}),
    ("swin_tiny_patch4_window7_224", 64, {"depths": [1, 1, 1, 1], "embed_dim": 24}),
    ("swinv2_tiny_window8_256", 64, {"depths": [1, 1, 1, 1], "embed_dim": 24}),
    ("test_maxvit", 64, {}),
    ("test_coatnet", 64, {}),
    ("mixer_s32_224", 64, {}),
    ("resmlp_12_224", 32, {}),
    ("poolformer_s12", 32, {}),
    ("levit_128s", 64, {}),
    ("swiftformer_xs", 64, {}),
    ("efficientformer_l1", 224, {"depths": [1, 1, 1, 1]}),
    ("efficientvit_b0", 32, {}),
    ("edgenext_xx_small", 32, {}),
    ("mobilevit_xxs", 64, {}),
    ("fastvit_t8", 64, {}),
    ("test_mambaout", 64, {}),
]
VIT = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
MAPS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
# Class, the key of its output that is the representation, settings. ...ForImageClassification have none:
# the representation is what the layer called classifier is fed.
TRANSFORMERS: list[tuple[str, str, dict[str, Any]]] = [
    ("ViTModel", "pooler_output", VIT),
    ("ViTForImageClassification", "classifier", VIT),
    ("DeiTModel", "pooler_output", VIT),
    ("Dinov2Model", "pooler_output", VIT),
    ("Dinov2ForImageClassification", "classifier", VIT),
    ("CLIPVisionModel", "pooler_output", VIT),
    ("ConvNextModel", "pooler_output", MAPS),
    ("ResNetModel", "pooler_output", {"embedding_size": 8, **MAPS}),
    ("ResNetForImageClassification", "classifier.1", {"embedding_size": 8, **MAPS}),
    ("PoolFormerModel", "last_hidden_state", MAPS),
    ("MobileNetV2Model", "pooler_output", {"depth_multiplier": 0.35}),
]
VIDEO = [("mc3_18", "fc")]


def names(networks: list[Any]) -> list[str]:
    return [name for name, *_ in networks]


def pixels(*shape: int) -> Tensor:
    """Squares of many colours, uint8: to a convolution with drawn weights all noise looks the same."""
    drawn = torch.rand((shape[0], 3, *(4 for _ in shape[2:])), generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(drawn * 255, shape[2:]).byte()


def normal(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def fed_to(layer: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """What a layer is fed, its places averaged."""

    def features(net: nn.Module, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = net.get_submodule(layer).register_forward_pre_hook(lambda module, fed: seen.append(fed[0]))
        net(x)
        handle.remove()
        return seen[-1].flatten(2).mean(2) if seen[-1].ndim > 2 else seen[-1]

    return features


def pre_logits(net: Any, x: Tensor) -> Tensor:
    features: Tensor = net.forward_head(net.forward_features(x), pre_logits=True)
    return features


def one_step(out: Path, **settings: Any) -> byol.TrainConfig:
    """A run of one step on four samples; without weight decay, which moves weights that have no gradient."""
    return small_config(
        out,
        batch_size=4,
        epochs=1,
        optim=OptimConfig(weight_decay=0.0),
        knn=KnnConfig(times=1),
        **settings,
    )


def check(
    out: Path,
    started: dict[str, Tensor],
    images: Tensor,
    net: nn.Module,
    features: Callable[[nn.Module, Tensor], Tensor],
    x: Tensor,
    classifier: Sequence[nn.Module] = (),
    build: Callable[[], nn.Module] | None = None,
) -> None:
    """What a run of one step has to leave, by the library's own network `net` with its classifier.

    `started` are the weights before the step, and `x` is what the network takes of the images. Weights of
    parts of the `classifier` may not have been saved. `build` makes a module of the caller's own again.
    """
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 1
    assert math.isfinite(losses[0])

    # The weights that the features depend on have moved.
    load(net, started, classifier)
    settle(net, features, x)
    features(net, x).square().mean().backward()
    saved = load_file(out / "encoder.safetensors")
    gradients = {
        name: p.grad.abs().max() for name, p in net.named_parameters() if p.ndim > 1 and p.grad is not None
    }
    depends = [name for name, size in gradients.items() if size > 1e-6 * max(gradients.values())]
    assert depends
    assert [name for name in depends if torch.equal(saved[name], started[name])] == []

    # The loaded encoder has them all, and gives what the library gives.
    encoder = byol.load_encoder(out, net=build and build())
    loaded = encoder.tensors()
    assert loaded.keys() == saved.keys()
    assert [name for name in saved if not torch.equal(loaded[name], saved[name])] == []
    load(net, saved, classifier)
    settle(net, features, x)
    load(encoder.net, {name: net.state_dict()[name] for name in saved})
    prepared = encoder.prepare(images, normalised=True)
    assert (prepared - x).abs().max() < 1e-5
    # In float64: some of a batch's variances are nearly zero, and magnify rounding from layer to layer.
    encoder.net.double().register_forward_pre_hook(lambda module, fed: (fed[0].double(), *fed[1:]))
    with torch.no_grad():
        expected = features(net.double(), prepared.double()).float()
    found = encoder(images)
    assert found.shape == expected.shape
    differ = (expected - expected.mean(0)).abs().max()  # from image to image
    assert differ > 1e-3 * expected.abs().max()
    assert (found - expected).abs().max() < 1e-6 * differ


def settle(net: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> None:
    """Give BatchNorm the statistics of these images: with its first ones they look alike."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        features(net.train(), x)
    net.eval()


def load(net: nn.Module, tensors: dict[str, Tensor], classifier: Sequence[nn.Module] = ()) -> None:
    """Fill a whole network with tensors that may lack those of its classifier."""
    state = OrderedDict(tensors)
    state._metadata = net.state_dict()._metadata  # MNASNet asks for the version of its names
    lacking, unknown = net.load_state_dict(state, strict=False)
    left_out = {name for name, module in net.named_modules() if module in classifier}
    assert unknown == []
    assert [name for name in lacking if not name.startswith(tuple(f"{part}." for part in left_out))] == []


def trained(name: str, images: Tensor, options: dict[str, Any], out: Path) -> dict[str, Tensor]:
    """Train a step. Returns the weights before it."""
    given = tuple(f"{key}={json.dumps(value)}" for key, value in options.items())
    heads = {"projection_size": 8, "projection_hidden_size": 16}
    config = one_step(out, image_size=images.shape[-1], model=ModelConfig(options=given, **heads))
    run = byol.pretrain(name, images.permute(0, 2, 3, 1).numpy(), config)
    return untrained(run.encoder, seed=run.plan.seed).tensors()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "layer", "options"), TORCHVISION, ids=names(TORCHVISION))
def test_encoders_of_torchvision_give_what_its_classifier_is_fed(tmp_path, name, side, layer, options):
    images = pixels(4, 3, side, side)
    started = trained(f"torchvision:{name}", images, options, tmp_path)
    aux = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    net = models.get_model(name, num_classes=CLASSES, **aux, **options)
    check(tmp_path, started, images, net, fed_to(layer), normal(images), [net.get_submodule(layer)])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "options"), TIMM, ids=names(TIMM))
def test_encoders_of_timm_give_its_pre_logits(tmp_path, name, side, options):
    images = pixels(4, 3, side, side)
    started = trained(f"timm:{name}", images, options, tmp_path)
    size = {"img_size": side} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    net = timm.create_model(name, num_classes=CLASSES, **size, **options)
    last = net.get_classifier()  # of distilled networks a tuple
    last = last if isinstance(last, tuple) else [last]
    check(tmp_path, started, images, net, pre_logits, normal(images), last)


def trained_own(
    build: Callable[[], nn.Module], data: Any, out: Path, views: Any = None, **settings: Any
) -> dict[str, Tensor]:
    """Train a module that the caller builds, a step. Returns the weights before it."""
    torch.manual_seed(0)
    net = build()
    started = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    byol.pretrain(net, data, one_step(out, **settings), views)
    return started


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gives", "settings"), TRANSFORMERS, ids=names(TRANSFORMERS))
def test_encoders_of_transformers_give_what_it_promises(tmp_path, name, gives, settings):
    import transformers

    def build() -> nn.Module:
        kind = getattr(transformers, name)
        return kind(kind.config_class(num_labels=CLASSES, **settings))

    def given(net: nn.Module, x: Tensor) -> Tensor:
        output = net(pixel_values=x)[gives]
        return output.flatten(2).mean(2) if output.ndim == 4 else output

    images = pixels(4, 3, 32, 32)
    started = trained_own(build, images.permute(0, 2, 3, 1).numpy(), tmp_path, image_size=32)
    features = fed_to(gives) if gives.startswith("classifier") else given
    check(tmp_path, started, images, build(), features, normal(images), build=build)


def reversed_in_time(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Two views of a clip (3, T, H, W)."""
    return clip, clip.flip(1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer"), VIDEO, ids=names(VIDEO))
def test_encoders_of_torchvisions_video_networks_give_what_their_classifier_is_fed(tmp_path, name, layer):
    clips = pixels(4, 3, 8, 16, 16) / 255

    def build() -> nn.Module:
        return models.get_model(name, num_classes=CLASSES)

    started = trained_own(build, list(clips), tmp_path, reversed_in_time, image_size=None)
    check(tmp_path, started, clips, build(), fed_to(layer), clips, build=build)


def test_the_guide_tells_how_many_networks_these_are():
    guide = Path(__file__).parents[2] / "docs" / "guides" / "first-run.md"
    count = len([*TORCHVISION, *TIMM, *TRANSFORMERS, *VIDEO])
    assert count >= 45
    assert f"`tests/train/test_architectures.py` trains {count} networks" in guide.read_text()
