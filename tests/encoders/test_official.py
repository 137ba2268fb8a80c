"""Official checkpoints: tensors, names and parts against the official code's own values."""

import pickle
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from official_files import haiku_network, write_official

from byol.encoders.convert import resnet_of
from byol.encoders.official import (
    PARAMETERS,
    STATISTICS,
    layer_of,
    official_state,
    read_official,
    torch_layout,
)
from byol.errors import CheckpointError, ConfigError
from byol.method.heads import mlp
from byol.models.resnet import resnet

FILES = ["official_tiny.pkl", "official_tiny_flatmap.pkl"]
PARTS = ["encoder", "projector", "predictor"]


@pytest.fixture(scope="module")
def network():
    """A ResNet-50 of 4 channels where the released one has 64."""
    return haiku_network()


def expected(official: dict[str, np.ndarray], which: str) -> dict[str, np.ndarray]:
    """The official parameters and averages after six steps, in our names and layouts."""
    found = {}
    for name, value in official.items():
        if name.startswith(f"step6/{which}_params/"):
            module, _, leaf = name.removeprefix(f"step6/{which}_params/").rpartition(".")
            found[f"{layer_of(module)}.{PARAMETERS[leaf]}"] = torch_layout(value)
        elif name.startswith(f"step6/{which}_state/") and name.endswith("average"):
            module, _, statistic = (
                name.removeprefix(f"step6/{which}_state/").removesuffix(".average").rpartition("/")
            )
            found[f"{layer_of(module)}.{STATISTICS[statistic]}"] = torch_layout(value)
    return found


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("which", ["online", "target"])
def test_every_tensor_is_the_official_one(official_files, official, file, which):
    theirs = expected(official, which)
    checked = 0
    for part in PARTS:
        for name, tensor in official_state(official_files / file, which, part).items():
            if name.endswith("num_batches_tracked"):
                assert tensor.dtype == torch.int64
                assert tensor == 12  # two views in each of six steps
            elif f"{part}.{name}" in theirs:  # the golden file leaves out the target's predictor
                np.testing.assert_array_equal(tensor.numpy(), theirs[f"{part}.{name}"])
                assert tensor.dtype == torch.float32
                checked += 1
    assert checked == len(theirs)


@pytest.mark.parametrize("file", FILES)
def test_heads_give_the_official_projection_and_prediction(official_files, official, file):
    path = official_files / file
    projector, predictor = mlp(256, 64, 32).eval(), mlp(32, 64, 32).eval()
    projector.load_state_dict(official_state(path, part="projector"))
    predictor.load_state_dict(official_state(path, part="predictor"))
    with torch.no_grad():
        projection = projector(torch.from_numpy(official["eval_representation"]))
        prediction = predictor(projection)
    torch.testing.assert_close(
        projection, torch.from_numpy(official["eval_projection"]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        prediction, torch.from_numpy(official["eval_prediction"]), rtol=1e-5, atol=1e-5
    )


def test_the_step_is_told(official_files):
    assert read_official(official_files / FILES[0]).step == 6


@pytest.mark.parametrize("step", [7, np.int64(7), np.array(7, np.int32), np.array([7], np.int64)])
def test_the_step_may_be_any_whole_number(tmp_path, network, step):
    assert read_official(write_official(tmp_path / "a.pkl", network, step=step)).step == 7


@pytest.mark.parametrize("step", [np.float64("inf"), np.array(np.nan)])
def test_a_step_that_is_not_a_number_is_told(tmp_path, network, step):
    with pytest.raises(CheckpointError, match="its number of steps is"):
        read_official(write_official(tmp_path / "a.pkl", network, step=step))


def test_names_are_as_many_as_the_released_ones(network):
    """113 modules with parameters and 110 with state, as the official networks.py makes for ResNet-50."""
    assert (len(network[0]), len(network[1])) == (113, 110)


WAYS = {
    "numpy's own pickling": {},
    "FlatMapping": {"mapping": "FlatMapping"},
    "frozendict": {"mapping": "frozendict"},
    "protocol 3": {"protocol": 3},
    "protocol 4": {"protocol": 4, "mapping": "FlatMapping"},
    "protocol 5": {"protocol": 5},
}


@pytest.mark.parametrize("way", WAYS)
def test_released_resnet50_names_fill_our_resnet50_in_every_way_of_pickling(tmp_path, network, way):
    file = write_official(tmp_path / "res50.pkl", network, **WAYS[way])
    check_encoder(file, network, (3, 4, 6, 3))


def test_numpy_before_version_2_has_other_names(tmp_path, network):
    file = write_official(tmp_path / "res50.pkl", network)
    file.write_bytes(file.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    check_encoder(file, network, (3, 4, 6, 3))


def test_stem_may_have_its_other_name(tmp_path):
    network = haiku_network(stem="initial_conv_1")
    check_encoder(write_official(tmp_path / "a.pkl", network), network, (3, 4, 6, 3), stem="initial_conv_1")


def test_released_resnet200_names_have_blocks_of_two_digits(tmp_path):
    network = haiku_network("res_net200", width=2 / 64)
    check_encoder(
        write_official(tmp_path / "res200.pkl", network), network, (3, 24, 36, 3), root="res_net200"
    )


def check_encoder(file: Path, network, blocks, root: str = "res_net50", stem: str = "initial_conv") -> None:
    """Every array of the encoder is under the right name, transposed as it must be."""
    parameters, state = network
    ours = official_state(file)
    name, options = resnet_of({key: tuple(value.shape) for key, value in ours.items()})
    assert (name, tuple(options["blocks"])) == ("resnet", blocks)
    np.testing.assert_array_equal(
        ours["conv1.weight"], parameters[f"{root}/~/{stem}"]["w"].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(
        ours["bn1.running_var"], state[f"{root}/~/initial_batchnorm/~/var_ema"]["average"].flatten()
    )
    count = 6
    for stage, blocks_of_stage in enumerate(blocks):
        for block in range(blocks_of_stage):
            theirs = f"{root}/~/block_group_{stage}/~/block_{block}/~"
            pairs = [(f"conv_{k}", f"batchnorm_{k}", f"conv{k + 1}", f"bn{k + 1}") for k in range(3)]
            if block == 0:
                pairs.append(("shortcut_conv", "shortcut_batchnorm", "downsample.0", "downsample.1"))
            for conv, norm, our_conv, our_norm in pairs:
                here = f"layer{stage + 1}.{block}"
                weight = parameters[f"{theirs}/{conv}"]["w"].transpose(3, 2, 0, 1)
                np.testing.assert_array_equal(ours[f"{here}.{our_conv}.weight"], weight)
                values = (
                    parameters[f"{theirs}/{norm}"]["scale"],
                    parameters[f"{theirs}/{norm}"]["offset"],
                    state[f"{theirs}/{norm}/~/mean_ema"]["average"],
                    state[f"{theirs}/{norm}/~/var_ema"]["average"],
                )
                for leaf, value in zip(
                    ("weight", "bias", "running_mean", "running_var"), values, strict=True
                ):
                    np.testing.assert_array_equal(ours[f"{here}.{our_norm}.{leaf}"], value.flatten())
                assert ours[f"{here}.{our_norm}.num_batches_tracked"] == 7
                count += 6
    assert count == len(ours)


@pytest.mark.slow
def test_file_of_the_released_size_is_a_torchvision_resnet50(tmp_path):
    from torchvision.models import resnet50

    network = haiku_network(width=1, hidden=4096)
    state = official_state(write_official(tmp_path / "pretrain_res50x1.pkl", network, mapping="FlatMapping"))
    assert resnet_of({key: tuple(value.shape) for key, value in state.items()}) == ("resnet50", {})
    resnet(50).load_state_dict(state)
    missing = resnet50().load_state_dict(state, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["fc.weight", "fc.bias"], [])


def test_reading_one_part_takes_little_more_memory_than_that_part(tmp_path):
    """The other network, the optimizer's state and the text that stands for bytes are not kept."""
    file = write_official(tmp_path / "a.pkl", haiku_network(width=1 / 4), haiku_network(width=1 / 4, seed=1))
    official_state(file)  # whatever is loaded the first time
    tracemalloc.start()
    try:
        tree = read_official(file)
        of_tree = tracemalloc.get_traced_memory()[0]
        state = tree.state()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = max(array.nbytes for array in tree.networks["online"].values())
    # torch's tensors share numpy's memory here, so they are counted: the encoder, one array in its
    # forms, and the tree
    assert peak < sum(value.nbytes for value in state.values()) + 5 * largest + of_tree
    assert of_tree < file.stat().st_size / 6


def test_arrays_that_share_their_bytes_cannot_fill_the_memory(tmp_path):
    """One megabyte in the file, taken for the weights of a thousand blocks."""
    big = np.zeros((1, 1, 512, 512), np.float32)
    parameters, state = haiku_network(width=1 / 64)
    parameters |= {
        f"res_net50/~/block_group_0/~/block_{block}/~/conv_0": {"w": big} for block in range(3, 999)
    }
    file = write_official(tmp_path / "shared.pkl", (parameters, state))
    assert file.stat().st_size < 2_000_000
    with pytest.raises(CheckpointError, match="its arrays claim more bytes than its"):
        official_state(file)


def test_array_that_claims_more_than_it_has_is_refused(tmp_path, network):
    file = write_official(tmp_path / "a.pkl", network)
    shape = pickle.dumps((7, 7, 3, 4), 2)[2:-3]
    assert file.read_bytes().count(shape) >= 1
    file.write_bytes(file.read_bytes().replace(shape, shape.replace(b"K\x03", b"K\xff"), 1))
    with pytest.raises(
        CheckpointError,
        match=r"damaged at conv1\.weight: an array \(7, 7, 255, 4\) of float32 has 2,352 bytes",
    ):
        official_state(file)


@pytest.mark.parametrize(
    "array", [np.array(["a", "b"]), np.array([object()]), np.zeros(3, np.complex64), np.zeros(3, bool)]
)
def test_arrays_of_other_things_than_numbers_are_refused(tmp_path, array):
    parameters, state = haiku_network(blocks=(1, 1, 1, 1), width=1 / 64, hidden=4)
    parameters["classifier"] = {"w": array}
    contents = {"experiment_state": {"online_params": parameters, "target_params": parameters,
                                     "online_state": state, "target_state": state}, "step": 1}  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents, 2))
    with pytest.raises(CheckpointError, match=r"an array holds no numbers|calls for|stands where an array"):
        read_official(tmp_path / "a.pkl")


@pytest.mark.parametrize("shape", [(0, 2**1000), (2**1000,), (1,) * 200, (2**62, 4)])
def test_absurd_shapes_and_steps_are_one_sentence(tmp_path, network, shape):
    class Array:
        """Pickled as an array of this shape without a byte."""

        def __reduce__(self):
            make, arguments, (version, _, dtype, *more) = np.zeros(0, np.float32).__reduce__()
            return make, arguments, (version, shape, dtype, *more)

    parameters, state = network
    broken = {**parameters, "classifier": {"w": Array(), "b": Array()}}
    file = write_official(tmp_path / "a.pkl", (broken, state), step=2**2000)
    with pytest.raises(CheckpointError) as told:
        official_state(file, part="classifier")
    assert len(str(told.value)) < 500


def without(network, module: str):
    return tuple({name: leaves for name, leaves in part.items() if name != module} for part in network)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ([1, 2], "a list stands where a mapping should be"),
        ({}, "it has the keys none, and no experiment_state or step"),
        ({"params": 1, "state": 2}, "it has the keys params, state, and no experiment_state"),
        (
            {"experiment_state": {"backbone_params": 1}, "step": 1},
            "its state has the keys backbone_params, and no online_params",
        ),
        ({"experiment_state": {}, "step": 1}, "its state has the keys none, and no online_params"),
        ({"experiment_state": 5, "step": 1}, "a int stands where a mapping should be"),
        (
            {
                "experiment_state": dict.fromkeys(
                    ("online_params", "target_params", "online_state", "target_state"), 1
                ),
                "step": 1,
            },
            "a int stands where a mapping should be",
        ),
    ],
)
def test_another_pickle_is_told_what_it_lacks(tmp_path, contents, says):
    file = tmp_path / "other.pkl"
    file.write_bytes(pickle.dumps(contents, 2))
    with pytest.raises(
        CheckpointError, match=f"but not an official BYOL checkpoint of pretraining: {re.escape(says)}"
    ):
        read_official(file)


def test_parts_of_another_network_are_named(tmp_path, network):
    parameters, state = network
    more = {**parameters, "transformer/linear": {"w": np.zeros((2, 2), np.float32)}}
    with pytest.raises(
        CheckpointError, match="1 of its parts belong to no network that byol knows, such as 'transformer/l"
    ):
        read_official(write_official(tmp_path / "a.pkl", (more, state)))
    more = {**state, "projector/batch_norm/~/median_ema": state["projector/batch_norm/~/mean_ema"]}
    with pytest.raises(CheckpointError, match="such as 'projector/batch_norm/~/median_ema'"):
        read_official(write_official(tmp_path / "b.pkl", (parameters, more)))


def test_part_that_is_not_there_is_named(tmp_path, network):
    file = write_official(tmp_path / "a.pkl", without(network, "classifier"))
    with pytest.raises(CheckpointError, match="holds no classifier of the target network"):
        official_state(file, "target", "classifier")
    with pytest.raises(
        ConfigError, match="has no 'head'; expected encoder or projector or predictor or classifier"
    ):
        official_state(file, part="head")
    with pytest.raises(ConfigError, match="has no 'student'; expected online or target"):
        official_state(file, "student")


def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file or directory\)"):
        read_official(tmp_path / "nowhere.pkl")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        read_official(tmp_path)
