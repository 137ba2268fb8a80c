"""Other programs' checkpoints as encoders: their features, and a sentence for everything else."""

import argparse
import copy
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from official_files import haiku_network, write_official
from torch import nn
from torchvision import models
from torchvision.transforms import v2

import byol
from byol.encoders.convert import Preprocessing, convert
from byol.encoders.encoder import save_encoder
from byol.encoders.load import load_encoder
from byol.encoders.official import official_state
from byol.errors import CheckpointError, ConfigError
from byol.method.crops import Crops, crop_resize

FILES = ["official_tiny.pkl", "official_tiny_flatmap.pkl"]
SMALL = Preprocessing(image_size=48)


def drawn(net: nn.Module) -> nn.Module:
    """A network whose every number differs from what a fresh one has."""
    generator = torch.Generator().manual_seed(3)
    for name, value in net.state_dict().items():
        if value.ndim == 1:
            value.copy_(
                torch.rand(value.shape, generator=generator) / 2
                + (0.5 if "var" in name or "weight" in name else -0.2)
            )
    return net.eval()


def torchvision_resnet(block: str, counts: list[int], channels: int) -> nn.Module:
    """torchvision's own ResNet, with fewer channels than it has a builder for."""
    kind = {"basic": models.resnet.BasicBlock, "bottleneck": models.resnet.Bottleneck}[block]
    with torch.device("meta"):
        net = models.ResNet(kind, counts)
    torch.manual_seed(0)
    net.inplanes = channels
    net.conv1, net.bn1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels)
    for stage, stride in enumerate((1, 2, 2, 2)):
        setattr(net, f"layer{stage + 1}", net._make_layer(kind, channels * 2**stage, counts[stage], stride))
    net.fc = nn.Linear(channels * 8 * kind.expansion, 5)
    return net


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """A network with 74 tensors, the classifier's two among them."""
    return drawn(torchvision_resnet("basic", [1, 1, 1, 1], 4))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand((3, 3, 64, 64), generator=torch.Generator().manual_seed(0))


def features_of(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What torchvision's network computes in front of its classifier."""
    net = copy.deepcopy(net).eval()
    net.fc = nn.Identity()
    normalise = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        return net(normalise(images))


# Official checkpoints


@pytest.mark.parametrize("file", FILES)
def test_official_checkpoint_gives_the_official_representation(
    official_files, official, eval_images, tmp_path, file
):
    found = convert(official_files / file, preprocessing=SMALL)
    save_encoder(found.encoder, tmp_path)
    for encoder in (found.encoder, load_encoder(tmp_path)):
        torch.testing.assert_close(
            encoder(eval_images), torch.from_numpy(official["eval_representation"]), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("file", FILES)
def test_official_checkpoint_is_loaded_as_it_is(official_files, eval_images, file):
    encoder, converted = load_encoder(official_files / file), convert(official_files / file).encoder
    assert not encoder.training
    assert encoder.info.image_size == (224, 224)
    assert torch.equal(encoder(eval_images), converted(eval_images))
    moved = official_files / "without_a_suffix"
    moved.write_bytes((official_files / file).read_bytes())
    assert torch.equal(load_encoder(moved)(eval_images), converted(eval_images))


def test_everything_in_an_official_checkpoint_is_accounted_for(official_files):
    found = convert(official_files / FILES[0])
    assert found.source == "official checkpoint after 6 steps"
    assert found.matched == 120 == len(found.encoder.net.state_dict())
    heads = {"projector": 8, "predictor": 8, "classifier": 2}
    expected = {f"{which} {head}": count for which in ("online", "target") for head, count in heads.items()}
    assert found.left_out == {**expected, "target encoder": 120}


def test_training_can_be_continued_from_an_official_checkpoint(official_files, official, eval_images):
    """All four networks in one learner, whose projection and prediction are the official ones."""
    path = official_files / FILES[0]
    net, target = load_encoder(path).net, load_encoder(path).net
    target.load_state_dict(official_state(path, "target"))
    learner = byol.BYOL(net, 48, None, 32, 64, target_net=target)
    learner.online.projector.load_state_dict(official_state(path, "online", "projector"))
    learner.predictor.load_state_dict(official_state(path, "online", "predictor"))
    learner.target.projector.load_state_dict(official_state(path, "target", "projector"))
    learner.eval()
    with torch.no_grad():
        projection, _ = learner(eval_images, return_embedding=True)
        prediction = learner.predict(learner.prepare(eval_images))
    torch.testing.assert_close(projection, torch.from_numpy(official["eval_projection"]), rtol=0, atol=1e-4)
    torch.testing.assert_close(prediction, torch.from_numpy(official["eval_prediction"]), rtol=0, atol=1e-4)
    theirs = official["step6/target_params/projector/linear_1.w"].T
    np.testing.assert_array_equal(learner.target.projector[3].weight, theirs)
    assert torch.isfinite(learner.train()(eval_images))


def test_symmetric_padding_is_a_torchvision_network_with_other_features(tmp_path):
    """The tensors are the same, so what differs is the padding alone."""
    file = write_official(tmp_path / "a.pkl", haiku_network(width=1 / 8))
    same = convert(file, preprocessing=Preprocessing(image_size=64)).encoder
    symmetric = convert(file, padding="symmetric", preprocessing=Preprocessing(image_size=64)).encoder
    theirs = headless(torchvision_resnet("bottleneck", [3, 4, 6, 3], 8))
    theirs.load_state_dict(symmetric.net.state_dict())
    images = torch.rand((4, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(symmetric(images), features_of(theirs, images), rtol=1e-4, atol=1e-4)
    assert all(
        torch.equal(value, symmetric.net.state_dict()[name]) for name, value in same.net.state_dict().items()
    )
    assert (same(images) - symmetric(images)).norm() > 0.01 * same(images).norm()


def test_official_images_are_resized_as_the_official_code_does(official_files, eval_images):
    """Central square, then bicubic without antialiasing, then clipped."""
    encoder = convert(official_files / FILES[0], preprocessing=Preprocessing(image_size=20)).encoder
    assert (encoder.info.crop_ratio, encoder.info.interpolation, encoder.info.antialias) == (
        0.875,
        "bicubic",
        False,
    )
    square = Crops(torch.tensor([[3, 3, 42, 42]]).expand(4, 4), torch.zeros(4, dtype=torch.bool))
    expected = crop_resize(eval_images, square, (20, 20), antialias=False).clamp(0, 1)
    torch.testing.assert_close(encoder.prepare(eval_images), expected)


# Other libraries' checkpoints


def another() -> nn.Module:
    """The target network, which is not what is looked for."""
    return torchvision_resnet("basic", [1, 1, 1, 1], 4)


def prefixed(net: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in net.state_dict().items()}


def heads(*names: str) -> dict[str, torch.Tensor]:
    return {f"{name}.{i}.weight": torch.rand(4, 4) for name in names for i in (0, 3)}


def byol_pytorch(net: nn.Module) -> dict[str, torch.Tensor]:
    """`learner.state_dict()` of byol-pytorch 0.9: the network, twice, and the target."""
    return {
        **prefixed(net, "net."),
        **prefixed(net, "online_encoder.net."),
        **heads("online_encoder.projector.net"),
        **heads("online_predictor"),
        **prefixed(another(), "target_encoder.net."),
    }


def lightly(net: nn.Module, name: str = "backbone", teacher: str = "teacher_backbone") -> dict[str, object]:
    """A Lightning checkpoint of lightly's benchmark module."""
    state = {**prefixed(net, f"{name}."), **heads("projection_head.layers", "prediction_head.layers"),
             **prefixed(another(), f"{teacher}."), **heads("teacher_projection_head.layers")}  # fmt: skip
    more = {
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"num_classes": 10},
    }
    return {"epoch": 3, "pytorch-lightning_version": "2.6.6", "state_dict": OrderedDict(state), **more}


def headless(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    net.fc = nn.Identity()
    return net


def sequential(net: nn.Module) -> nn.Module:
    """As lightly's examples keep a backbone."""
    return nn.Sequential(*list(net.children())[:-1])


def solo_learn(net: nn.Module, name: str = "backbone") -> dict[str, object]:
    state = {
        **prefixed(net, f"{name}."),
        **heads("classifier", "projector", "predictor", "momentum_projector"),
        **prefixed(another(), f"momentum_{name}."),
    }
    return {"state_dict": state, "epoch": 1, "callbacks": {}}


def mmpretrain(net: nn.Module, teacher: str = "target_net.module.") -> dict[str, object]:
    """As mmengine saves it: the target is an averaged model of backbone and neck."""
    state = {
        **prefixed(net, "backbone."), **heads("neck.fc0", "neck.fc1", "head.predictor.fc0"),
        f"{teacher.partition('.')[0]}.steps": torch.tensor(0), **prefixed(another(), f"{teacher}0."),
    }  # fmt: skip
    return {"meta": {"epoch": 2, "mmengine_version": "0.10.7"}, "state_dict": state, "optimizer": {}}


def vissl(net: nn.Module) -> dict[str, object]:
    model = {"trunk": prefixed(net, "_feature_blocks."), "heads": heads("0.clf")}
    base = {"model": model, "meta": {"num_parameters": 1}}
    return {"phase_idx": 3, "classy_state_dict": {"base_model": base, "losses": {}}}


def dino(teacher: nn.Module, student: nn.Module, wrapper: str = "module.") -> dict[str, object]:
    """With DINO's settings, which it saves as an argparse.Namespace."""
    return {
        "student": {**prefixed(student, "module.backbone."), **heads("module.head.mlp")},
        "teacher": {**prefixed(teacher, f"{wrapper}backbone."), **heads(f"{wrapper}head.mlp")},
        "optimizer": {"state": {0: {"exp_avg": torch.rand(3)}}, "param_groups": []},
        "epoch": 7, "args": argparse.Namespace(arch="resnet50"), "dino_loss": {"center": torch.rand(1, 4)},
    }  # fmt: skip


def moco(net: nn.Module, names: tuple[str, str] = ("encoder_q", "encoder_k")) -> dict[str, object]:
    online, momentum = names
    state = {
        **prefixed(net, f"module.{online}."), **prefixed(another(), f"module.{momentum}."),
        "module.queue": torch.rand(4, 16), "module.queue_ptr": torch.tensor([0]),
    }  # fmt: skip
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {}}


def with_mlp(net: nn.Module) -> nn.Module:
    """Whose fc is a projector, as MoCo v2's."""
    net = copy.deepcopy(net)
    net.fc = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), net.fc)
    return net


def bolts(net: nn.Module) -> dict[str, object]:
    arms = [("online_network", net), ("target_network", another())]
    state = {name: t for arm, one in arms for name, t in prefixed(one, f"{arm}.encoder.").items()}
    state |= heads("online_network.projector.model", "online_network.predictor.model")
    return {"pytorch-lightning_version": "1.7.0", "state_dict": state, "hparams_name": "kwargs"}


LAYOUTS = {
    "mmpretrain": (lambda net: mmpretrain(headless(net)), "mmselfsup or mmpretrain", "backbone."),
    "mmselfsup": (lambda net: mmpretrain(headless(net), "target_net."), "mmselfsup", "backbone."),
    "OpenSelfSup": (
        lambda net: {
            "state_dict": {**prefixed(net, "online_net.0."), **prefixed(another(), "target_net.0.")}
        },
        "mmselfsup",
        "online_net.0.",
    ),
    "VISSL": (
        lambda net: vissl(headless(net)),
        "VISSL",
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
    ),
    "DINO": (lambda net: dino(headless(net), another()), "DINO, its teacher", "teacher.backbone."),
    "DINO, no wrapper": (
        lambda net: dino(headless(net), another(), ""),
        "student: --prefix student.backbone",
        "teacher.backbone.",
    ),
    "DINO, student alone": (
        lambda net: {"student": prefixed(headless(net), "module.backbone."), "epoch": 1},
        "DINO, its student",
        "student.backbone.",
    ),
    "MoCo": (moco, "MoCo", "encoder_q."),
    "MoCo v2": (lambda net: moco(with_mlp(net)), "MoCo", "encoder_q."),
    "MoCo v3": (
        lambda net: moco(with_mlp(net), ("base_encoder", "momentum_encoder")),
        "MoCo v3",
        "base_encoder.",
    ),
    "bolts": (bolts, "bolts", "online_network.encoder."),
    "bolts, SimCLR": (
        lambda net: {"state_dict": {**prefixed(net, "encoder."), **heads("projection.model")}},
        "bolts",
        "encoder.",
    ),
    "byol-pytorch, learner": (byol_pytorch, "byol-pytorch", "online_encoder.net."),
    "byol-pytorch, online encoder alone": (
        lambda net: {"state_dict": prefixed(net, "online_encoder.net.")},
        "byol-pytorch",
        "online_encoder.net.",
    ),
    "byol-pytorch, its Lightning example": (
        lambda net: {"state_dict": {f"learner.{name}": part for name, part in byol_pytorch(net).items()}},
        "byol-pytorch",
        "learner.online_encoder.net.",
    ),
    "byol-pytorch, network": (lambda net: net.state_dict(), "a plain network", ""),
    "lightly, benchmark": (lambda net: lightly(headless(net)), "lightly", "backbone."),
    "lightly, example": (
        lambda net: lightly(sequential(net), teacher="backbone_momentum"),
        "lightly",
        "backbone.",
    ),
    "lightly, student": (
        lambda net: lightly(headless(net), "student_backbone"),
        "lightly",
        "student_backbone.",
    ),
    "solo-learn": (lambda net: solo_learn(headless(net)), "solo-learn", "backbone."),
    "solo-learn before 1.0.3": (lambda net: solo_learn(headless(net), "encoder"), "solo-learn", "encoder."),
    "under DistributedDataParallel": (lambda net: prefixed(net, "module."), "a plain network", ""),
    "torch.compile": (lambda net: lightly(net, "backbone._orig_mod"), "lightly", "backbone."),
    "half precision": (lambda net: {k: v.half() for k, v in net.state_dict().items()}, "a plain network", ""),
    "of this library": (
        lambda net: byol.BYOL(copy.deepcopy(net), 32).state_dict(),
        "byol",
        "online.encoder.net.",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_encoder_in_another_librarys_checkpoint_gives_that_networks_features(
    tmp_path, resnet, images, layout
):
    make, library, prefix = LAYOUTS[layout]
    torch.save(make(resnet), tmp_path / "checkpoint.pt")
    found = convert(tmp_path / "checkpoint.pt", preprocessing=Preprocessing(image_size=64))
    assert library in found.source
    assert repr(prefix) in found.source or not prefix
    assert (found.matched, found.encoder.info.architecture) == (72, "resnet")
    tolerance = 2e-2 if layout == "half precision" else 1e-4
    torch.testing.assert_close(
        found.encoder(images), features_of(resnet, images), rtol=tolerance, atol=tolerance
    )
    save_encoder(found.encoder, tmp_path)
    assert torch.equal(load_encoder(tmp_path)(images), found.encoder(images))


def tensors_by_name(contents: object) -> int:
    """How many there are in dicts of dicts; an optimizer's have numbers for names."""
    if isinstance(contents, torch.Tensor):
        return 1
    pairs = contents.items() if isinstance(contents, dict) else ()
    return sum(tensors_by_name(value) for key, value in pairs if isinstance(key, str))


def test_student_and_teacher_of_dino_are_told_apart(tmp_path, resnet, images):
    student = drawn(another())
    torch.save(dino(headless(resnet), headless(student)), tmp_path / "checkpoint.pth")
    for prefix, net in ((None, resnet), ("teacher.backbone", resnet), ("student.backbone", student)):
        told = Preprocessing(image_size=64)
        found = convert(tmp_path / "checkpoint.pth", prefix=prefix, preprocessing=told)
        torch.testing.assert_close(found.encoder(images), features_of(net, images), rtol=1e-4, atol=1e-4)
    assert found.left_out == {"teacher": 74, "student.head": 2, "dino_loss": 1}


def test_a_vision_transformer_of_dino_is_named(tmp_path):
    net = timm.create_model("test_vit", num_classes=0)
    torch.save(dino(net, timm.create_model("test_vit", num_classes=0)), tmp_path / "a.pth")
    told = Preprocessing(image_size=160)
    found = convert(tmp_path / "a.pth", encoder="timm:test_vit", preprocessing=told).encoder
    x = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(found(x), net.eval()(found.prepare(x, normalised=True)))


def test_dicts_that_hold_themselves_come_to_an_end(tmp_path):
    contents: dict[str, object] = {"epoch": 1}
    contents["again"] = contents
    torch.save(contents, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name, only: epoch, again"):
        convert(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_checkpoint_may_have_a_name_that_is_not_utf_8(tmp_path, resnet, images, zipped):
    path = tmp_path / os.fsdecode(b"caf\xe9.pth")
    with path.open("wb") as file:
        torch.save(byol_pytorch(resnet), file, _use_new_zipfile_serialization=zipped)
    found = convert(path, preprocessing=Preprocessing(image_size=64))
    torch.testing.assert_close(found.encoder(images), features_of(resnet, images), rtol=1e-4, atol=1e-4)


def test_what_is_in_no_known_place_is_listed(tmp_path, resnet):
    torch.save(
        {"state_dict": {**prefixed(resnet, "mine.a."), **prefixed(resnet, "mine.b.")}}, tmp_path / "a.pt"
    )
    with pytest.raises(CheckpointError, match=r"ResNets under 'mine\.a\.' and 'mine\.b\.'.*--prefix"):
        convert(tmp_path / "a.pt")


def test_every_tensor_of_a_foreign_checkpoint_is_accounted_for(tmp_path, resnet):
    for number, (make, *_) in enumerate(LAYOUTS.values()):
        contents = make(resnet)
        torch.save(contents, tmp_path / f"{number}.pt")
        found = convert(tmp_path / f"{number}.pt")
        assert found.matched + sum(found.left_out.values()) == tensors_by_name(contents)
    torch.save(byol_pytorch(resnet), tmp_path / "one.pt")
    assert convert(tmp_path / "one.pt").left_out == {
        "net": 74, "online_encoder.projector": 2, "online_predictor": 2, "target_encoder": 74, "fc": 2
    }  # fmt: skip


@pytest.mark.parametrize(("make", "stem", "padding"), [(solo_learn, "solo-learn", 2), (lightly, "small", 1)])
def test_small_first_convolution_is_padded_as_the_library_does(tmp_path, resnet, make, stem, padding):
    torch.manual_seed(0)
    net = headless(resnet)
    net.conv1, net.maxpool = nn.Conv2d(3, 4, 3, 1, padding, bias=False), nn.Identity()
    torch.save(make(net), tmp_path / "cifar.ckpt")
    found = convert(tmp_path / "cifar.ckpt")
    assert found.encoder.info.options["stem"] == stem
    assert found.encoder.info.image_size == (32, 32)
    assert any(f"padding {padding}" in assumption for assumption in found.assumed)
    images = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.encoder(images), features_of(net, images), rtol=1e-4, atol=1e-4)


def test_official_network_that_others_converted_keeps_its_padding(official_files, tmp_path, eval_images):
    encoder = convert(official_files / FILES[0], preprocessing=SMALL).encoder
    torch.save({"online_backbone": prefixed(encoder.net, "module."), "epoch": 1}, tmp_path / "a.pth.tar")
    found = convert(tmp_path / "a.pth.tar", padding="same", preprocessing=SMALL).encoder
    assert torch.equal(found(eval_images), encoder(eval_images))
    assert found.info.options == encoder.info.options


@pytest.mark.parametrize(
    "name", ["timm:test_vit", "timm:test_resnet", "torchvision:mobilenet_v3_small", "convnet"]
)
def test_other_networks_are_named(tmp_path, name):
    net = byol.build_encoder(name, image_size=32)
    torch.save(lightly(net), tmp_path / "a.ckpt")
    found = convert(tmp_path / "a.ckpt", encoder=name, preprocessing=Preprocessing(image_size=32)).encoder
    save_encoder(found, tmp_path)
    loaded = load_encoder(tmp_path)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in loaded.net.state_dict().items())
    with pytest.raises(CheckpointError, match="is not a ResNet that byol can recognise"):
        convert(tmp_path / "a.ckpt", prefix="teacher_backbone.fc")


def small_vit() -> nn.Module:
    return models.VisionTransformer(
        32, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    )


def test_tensors_by_the_names_of_an_older_torchvision_are_taken(tmp_path, monkeypatch):
    """As in its released ViTs, whose layers it renames itself while they are loaded."""
    (tmp_path / "nets_of_mine.py").write_text("from test_conversion import small_vit\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = small_vit()
    old = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    state = {}
    for name, value in net.state_dict().items():
        part = next((part for part in old if part in name), "")
        state[name.replace(part, old[part]) if part else name] = value
    assert state.keys() != net.state_dict().keys()
    torch.save(state, tmp_path / "a.pt")
    told = Preprocessing(image_size=32)
    encoder = convert(tmp_path / "a.pt", encoder="nets_of_mine:small_vit", preprocessing=told).encoder
    assert all(torch.equal(value, encoder.net.state_dict()[name]) for name, value in net.state_dict().items())


def test_classifier_of_a_named_network_is_left_out_and_told(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), tmp_path / "a.pt")
    found = convert(tmp_path / "a.pt", encoder="timm:test_vit", preprocessing=Preprocessing(image_size=160))
    assert found.left_out == {"head": 2}


def test_the_prefix_can_be_told(tmp_path, resnet, images):
    torch.save({**prefixed(resnet, "my.net."), **heads("backbone")}, tmp_path / "a.pt")
    for prefix in ("my.net", "my.net."):
        found = convert(tmp_path / "a.pt", prefix=prefix, preprocessing=Preprocessing(image_size=64))
        torch.testing.assert_close(found.encoder(images), features_of(resnet, images), rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"has no tensors under 'mine\.'.*ResNets under 'my\.net\.'"):
        convert(tmp_path / "a.pt", prefix="mine")


def test_tensors_that_fit_no_network_are_never_passed_over(tmp_path, resnet):
    state = headless(resnet).state_dict()
    for change, says in (
        ({"layer1.0.se.weight": torch.rand(3)}, r"1 too many \(layer1\.0\.se\.weight, \.\.\.\)"),
        ({"bn1.weight": None}, r"1 missing \(bn1\.weight, \.\.\.\)"),
        ({"layer3.0.conv1.weight": None}, "layer3.0.conv1.weight"),
        ({"layer2.7.conv1.weight": torch.rand(8, 8, 3, 3)}, "layer2"),
        ({"bn1.weight": torch.rand(5)}, "are not those of resnet: size mismatch for bn1"),
    ):
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        torch.save(changed, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=says):
            convert(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        (lambda net: prefixed(net, "model.student."), "ResNets under 'model.student.'"),
        (
            lambda net: {**prefixed(net, "a.net."), **prefixed(net, "b."), **heads("c")},
            "ResNets under 'a.net.' and 'b.'",
        ),
        (
            lambda net: heads("trunk.stem", "trunk.body", "trunk.head"),
            "trunk.stem (2), trunk.body (2), trunk.head (2)",
        ),
        (lambda net: heads("stem\x1b[2J", "head"), "stem\\x1b[2J (2), head (2)"),
    ],
    ids=["one ResNet", "two", "none", "escape"],
)
def test_a_checkpoint_without_a_resnet_in_a_known_place_is_told_what_it_holds(tmp_path, resnet, state, seen):
    torch.save(state(resnet), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="--prefix") as told:
        convert(tmp_path / "a.pt")
    assert seen in str(told.value)
    assert str(told.value).isprintable()


RESNETS = {  # whose tensors are those of a plain ResNet-50, and whose features are not
    "BlurPool": lambda: timm.create_model("resnetblur50"),
    "dilated": lambda: models.resnet50(replace_stride_with_dilation=[False, True, True]),
    "strided in the first convolution": lambda: strided_first(models.resnet50()),
    "SiLU": lambda: timm.create_model("resnet50", act_layer="silu"),
}


def strided_first(net: nn.Module) -> nn.Module:
    for stage in (net.layer2, net.layer3, net.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return net


@pytest.mark.parametrize("kind", RESNETS)
def test_what_a_resnets_tensors_do_not_tell_is_said_to_be_assumed(tmp_path, kind):
    torch.manual_seed(0)
    net = drawn(RESNETS[kind]())
    torch.save(net.state_dict(), tmp_path / "a.pt")
    found = convert(tmp_path / "a.pt", preprocessing=Preprocessing(image_size=64))
    images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    theirs = features_of(net, images)
    assert (found.encoder(images) - theirs).norm() > 0.05 * theirs.norm()
    for word in ("ReLU", "stride", "dilation", "BlurPool"):
        assert any(word in assumption for assumption in found.assumed)


def test_files_without_batch_counters_are_taken(tmp_path, resnet):
    state = {name: value for name, value in resnet.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt").matched == 60


def test_preprocessing_travels_with_the_encoder(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "a.pt")
    told = Preprocessing(
        40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop_ratio=1.0, interpolation="bilinear", antialias=False
    )
    save_encoder(convert(tmp_path / "a.pt", preprocessing=told).encoder, tmp_path)
    encoder = load_encoder(tmp_path)
    images = torch.randint(
        0, 256, (2, 3, 60, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    resized = nn.functional.interpolate(images / 255, (40, 40), mode="bilinear")
    torch.testing.assert_close(encoder.prepare(images), resized, rtol=0, atol=1e-5)
    net = headless(resnet)
    with torch.no_grad():
        expected = net(v2.Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))(resized))
    torch.testing.assert_close(encoder(images), expected, rtol=1e-3, atol=1e-3)


# What is refused


@pytest.mark.parametrize("forced", [False, True], ids=["", "even if torch is told to"])
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("place", ["hyper_parameters", "optimizer_states"])
def test_nothing_in_a_torch_checkpoint_is_executed(tmp_path, monkeypatch, forced, new_format, place):
    canary, file = tmp_path / "executed", tmp_path / "a.ckpt"

    class Canary:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    torch.save({"state_dict": {}, place: [Canary()]}, file, _use_new_zipfile_serialization=new_format)
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(
        CheckpointError, match=r"calls for posix\.system, which would have to be run, and nothing was"
    ):
        convert(file)
    assert not canary.exists()
    torch.load(file, weights_only=False)
    assert canary.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process saves
def test_nothing_in_a_distributed_checkpoint_is_executed_and_the_sentence_tells_how_to_go_on(
    tmp_path, resnet, images
):
    """The list of what is in it, .metadata, is a pickle, which torch itself unpickles without a fence."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder, canary = tmp_path / "step-100.dcp", tmp_path / "executed"
    dcp.save({"model": resnet.state_dict()}, checkpoint_id=folder)
    dcp_to_torch_save(folder, tmp_path / "FILE.pt")  # what the sentence advises
    theirs = features_of(resnet, images)
    found = convert(tmp_path / "FILE.pt", preprocessing=Preprocessing(image_size=64)).encoder
    torch.testing.assert_close(found(images), theirs, rtol=1e-4, atol=1e-4)

    class Canary:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    (folder / ".metadata").write_bytes(pickle.dumps(Canary()))
    for path in (folder, folder / ".metadata", *folder.glob("*.distcp")):
        for read in (convert, load_encoder):
            with pytest.raises(CheckpointError, match=r"a pickle tells .* executes none.* dcp_to_torch"):
                read(path)
    assert not canary.exists()
    with pytest.raises(dcp.api.CheckpointException):
        dcp.load({"model": resnet.state_dict()}, checkpoint_id=folder)
    assert canary.exists()


def test_torch_checkpoint_that_is_cut_off_or_damaged_is_refused(tmp_path, resnet):
    for new_format in (True, False):
        torch.save(resnet.state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
        content = (tmp_path / "a.pt").read_bytes()
        for share in (0.0001, 0.01, 0.5, 0.999):
            (tmp_path / "a.pt").write_bytes(content[: max(20, int(share * len(content)))])
            with pytest.raises(CheckpointError, match="cannot be read as a torch checkpoint"):
                convert(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["packed pickle", "packed tensors", "lists", "dicts", "lists, old format"])
def test_a_small_torch_checkpoint_cannot_have_gigabytes_made(tmp_path, kind):
    torch.save({"a": torch.zeros(3)}, tmp_path / "good.pt")
    many = {"lists": b"]", "dicts": b"}"}.get(kind.partition(",")[0], b"N") * 3_000_000
    packed = {"packed pickle": "data.pkl", "packed tensors": "data/0"}.get(kind, "nothing")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "a.pt", "w") as bad:
        for one in good.infolist():
            content = good.read(one)
            if one.filename.endswith("data.pkl"):
                content = content[:2] + many + content[2:]
            how = zipfile.ZIP_DEFLATED if one.filename.endswith(packed) else zipfile.ZIP_STORED
            bad.writestr(one.filename, content, how)
    if kind.endswith("old format"):
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
        content = (tmp_path / "a.pt").read_bytes()
        (tmp_path / "a.pt").write_bytes(content[:300] + many + content[300:])
    said = "compressed" if packed != "nothing" else "lists and dicts"
    with pytest.raises(CheckpointError, match=f"a.pt cannot be read as a torch checkpoint .*{said}"):
        convert(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore")  # of torch, that some of these kinds will go
@pytest.mark.parametrize(
    "kind",
    [
        torch.Tensor.to_sparse,
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to("meta"),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda tensor: torch.nested.nested_tensor([tensor[0], tensor[1]]),
    ],
    ids=["sparse", "complex", "without memory", "quantized", "nested"],
)
def test_tensors_of_a_kind_that_no_network_has_are_a_sentence(tmp_path, resnet, kind):
    state = resnet.state_dict()
    torch.save({**state, "conv1.weight": kind(state["conv1.weight"])}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"conv1\.weight in .* is sparse, .*expected plain numbers"):
        convert(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08" + b"0" * 20, "compressed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b'\x80\x02\0\0\0\0\0\0{"a', "safetensors"),
        (b"cos\nsystem\n(S'ls'\ntR.", "something else"),
        (np.random.default_rng(0).bytes(99), "something else"),
    ],
)
def test_file_of_another_kind_is_told_from_a_checkpoint(tmp_path, content, says):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"official checkpoint .* nor a torch checkpoint: .*{says}"):
        convert(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ({"state_dict": {"epoch": 3}}, "holds no tensors by name, only: state_dict"),
        ([torch.zeros(3)], "only: list"),
        ({"weights": [torch.zeros(3)]}, "only: weights"),
        ({"a": torch.zeros(3)}, "is not a ResNet that byol can recognise"),
    ],
)
def test_torch_file_without_an_encoder_is_told_what_it_lacks(tmp_path, contents, says):
    torch.save(contents, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=says):
        convert(tmp_path / "a.pt")


def test_torch_checkpoint_is_not_loaded_without_being_converted(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"is a torch checkpoint\. Make an encoder of it first: byol convert"
    ):
        load_encoder(tmp_path / "a.pt")


def test_official_checkpoint_needs_no_network_named(official_files):
    with pytest.raises(ConfigError, match="tells its network: leave encoder, prefix and hidden_layer out"):
        convert(official_files / FILES[0], encoder="resnet50")
    with pytest.raises(ConfigError, match="tells its network: leave net out"):
        load_encoder(official_files / FILES[0], net="resnet50")


def test_official_resnet18_is_refused_with_the_reason(tmp_path):
    """Its first stage has a projection that torchvision's ResNet-18 has not."""
    parameters, state = haiku_network(blocks=(1, 1, 1, 1), width=1 / 64, hidden=4)
    basic = tuple(
        {name: leaves for name, leaves in part.items() if "_2" not in name[-20:]}
        for part in (parameters, state)
    )
    with pytest.raises(
        CheckpointError, match="its first stage has a projection, as only the official code's ResNet-18"
    ):
        convert(write_official(tmp_path / "a.pkl", basic))


def test_hostile_shapes_build_no_large_network(tmp_path):
    """Two hundred blocks, of which one is large: without weights of its own no block costs memory."""
    parameters, state = haiku_network(blocks=(1, 1, 1, 1), width=1 / 64, hidden=4)
    root = "res_net50/~/block_group_0/~"
    parameters[f"{root}/block_0/~/conv_1"] = {"w": np.zeros((3, 3, 256, 256), np.float32)}
    for block in range(1, 200):
        parameters[f"{root}/block_{block}/~/conv_0"] = {"w": np.zeros((1, 1, 1, 1), np.float32)}
    file = write_official(tmp_path / "a.pkl", (parameters, state))
    with pytest.raises(CheckpointError, match="are not those of resnet: 199 too many"):
        convert(file)


@pytest.mark.parametrize(
    ("told", "says"),
    [({"image_size": 0}, "image_size .0, 0"), ({"crop_ratio": 0.0}, "crop_ratio 0.0"),
     ({"crop_ratio": 1.5}, "crop_ratio 1.5"), ({"std": (0.1, 0.0, 0.1)}, "std .0.1, 0.0"),
     ({"mean": (0.5,)}, "3 channels .* mean .0.5"), ({"std": (0.5, 0.5)}, "3 channels .* std .0.5")],
)  # fmt: skip
def test_impossible_preprocessing_is_refused(official_files, told, says):
    with pytest.raises(ConfigError, match=says):
        convert(official_files / FILES[0], preprocessing=Preprocessing(**told))


def test_padding_of_a_named_network_is_its_own(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="padding is 'same', and torchvision:resnet18 pads as it does"):
        convert(tmp_path / "a.pt", encoder="torchvision:resnet18", padding="same")


def test_missing_file_and_folder_are_one_sentence(tmp_path):
    for path, says in ((tmp_path / "nothing.pkl", "No such file"), (tmp_path, "it is a folder")):
        with pytest.raises(CheckpointError, match=f"cannot be read .*{says}.*Give a checkpoint file"):
            convert(path)


def test_a_hostile_pickle_is_refused_by_load_encoder_too(tmp_path):
    canary = tmp_path / "executed"

    class Canary:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"experiment_state": Canary()}, 2))
    with pytest.raises(CheckpointError, match="calls for 'posix"):
        load_encoder(tmp_path / "a.pkl")
    assert not canary.exists()


def test_a_damaged_torch_checkpoint_is_told_without_advice_to_load_it_unprotected(tmp_path):
    torch.save({"a": torch.rand(3)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    place = whole.index(b"a/data.pkl") + len("a/data.pkl")
    for damage in (
        whole.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX"),
        whole[:place] + b"\x80\x02}q\xff" + whole[place + 5 :],
    ):
        (tmp_path / "b.pt").write_bytes(damage)
        with pytest.raises(CheckpointError) as told:
            convert(tmp_path / "b.pt")
        assert "weights_only" not in str(told.value)
        assert "\n" not in str(told.value)


def test_a_checkpoint_of_nothing_is_told(tmp_path):
    torch.save({}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name, only: nothing"):
        convert(tmp_path / "a.pt")


def test_tensors_that_are_not_numbers_are_refused(tmp_path):
    tensors = models.resnet18().state_dict()
    tensors["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight in .*a\.pt holds NaN or infinity"):
        convert(tmp_path / "a.pt")


def test_symmetric_padding_of_an_official_checkpoint_is_warned_of(official_files, caplog):
    file = next(official_files.glob("*.pkl"))
    convert(file)
    assert caplog.text == ""
    convert(file, padding="symmetric")
    assert "the features are not the official ones" in caplog.text
