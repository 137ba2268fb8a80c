import pytest

from byol.errors import ConfigError
from byol.evaluation.data_sets import DataSet, read_data_sets


def test_data_sets_are_named_with_paths_relative_to_the_list(tmp_path):
    file = tmp_path / "lists" / "sets.yaml"
    file.parent.mkdir()
    file.write_text(
        "pets: {train: pets/train, test: ../test, metric: mean_per_class}\n"
        f"2007:\n  train: {tmp_path}/voc.npz\n  test: voc.npz\n"
    )
    assert read_data_sets(file) == [
        DataSet("pets", str(file.parent / "pets/train"), str(file.parent / "../test"), "mean_per_class"),
        DataSet("2007", f"{tmp_path}/voc.npz", str(file.parent / "voc.npz"), None),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no data sets"),
        ("[pets]", "names no data sets"),
        ("pets: pets/", r"pets in .* is pets/\. Expected \{train: PATH, test: PATH\}"),
        ("pets: {train: a}", "Expected {train: PATH, test: PATH}"),
        ("pets: {train: a, test: b, metrik: top1}", r"metrik.*Did you mean 'metric'"),
        ("pets: {train: a, test: b, metric: 5}", r"'metric': 5.*a metric, one of top1, "),
        ("pets: {train: [a], test: b}", "Expected {train: PATH, test: PATH}"),
        ("pets: {", "cannot be read"),
        ("pets: !!python/object:os.system {}", "cannot be read"),
    ],
)
def test_what_is_not_a_list_of_data_sets_is_refused_in_a_sentence(tmp_path, text, says):
    (tmp_path / "sets.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_data_sets(tmp_path / "sets.yaml")


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"There is no list of data sets at .*sets\.yaml; expected a YAML file"
    ):
        read_data_sets(tmp_path / "sets.yaml")


def test_what_is_not_yaml_is_refused_in_one_line(tmp_path):
    (tmp_path / "sets.yaml").write_text("pets: {train: a\n  test: [")
    with pytest.raises(ConfigError, match="cannot be read") as refused:
        read_data_sets(tmp_path / "sets.yaml")
    assert "\n" not in str(refused.value)


def test_escape_sequences_in_a_name_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "sets.yaml").write_text('"\\e[31mpets": {train: a, test: b}\n"\\e[2J": {train: a}\n')
    with pytest.raises(ConfigError, match=r"x1b\[2J") as refused:
        read_data_sets(tmp_path / "sets.yaml")
    assert "\x1b" not in str(refused.value)
    (tmp_path / "sets.yaml").write_text('"\\e[31mpets": {train: a, test: b}\n')
    assert read_data_sets(tmp_path / "sets.yaml")[0].name == r"\x1b[31mpets"
