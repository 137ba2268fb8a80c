"""Settings from files and flags: what a hostile or careless file can do, and what people see."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from byol.cli import main
from byol.disk import parse_json, read_json, read_yaml
from byol.errors import ConfigError
from byol.settings import differences, parse, preset_flags, to_plain
from byol.train.config import TrainConfig

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (ALIASES.encode(), "line 2: an alias"),
        (b"[" * 50_000, "nested too deeply"),
        (b"a: " * 40 + b"1", "line 1"),
        (b"{a: " * 30, "nested too deeply"),
        (b"x: 1\n" * 100_000, "longer than"),
        (b"a: " + b"9" * 10_000, "digits"),
        (b"a: 0x" + b"f" * 10_000, "digits"),
        (b"0x" + b"f" * 9_000 + b": 1", "line 1"),
        (b"a: [1, " + b"x" * 3_001 + b"]", "letters"),
        (b"a: 2024-13-45", "month"),
        (b"\xff\xfe", "utf-8"),
        (b"a: !!python/object/apply:os.system [true]", "line 1"),
    ],
    ids=[
        "aliases", "lists", "mappings in a line", "mappings", "long", "number", "of base 16", "name", "word",
        "date", "bytes", "object",
    ],
)  # fmt: skip
def test_a_hostile_yaml_file_is_one_sentence_in_little_time_and_memory(tmp_path, content, says):
    (tmp_path / "a.yaml").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(ConfigError, match=f"The preset .*a.yaml cannot be read: .*{says}") as told:
        preset_flags(str(tmp_path / "a.yaml"))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 5
    assert after.ru_maxrss - before.ru_maxrss < 100 * 1024  # kilobytes
    assert "\n" not in str(told.value)


def test_an_endless_file_is_not_read_to_its_end(tmp_path):
    (tmp_path / "a.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="longer than"):
        read_yaml(tmp_path / "a.yaml", "preset")
    with pytest.raises(ValueError, match="at most"):
        read_json(Path("/dev/zero"))


def test_yaml_as_people_write_it_is_read_as_pyyaml_reads_it(tmp_path):
    text = "# a comment\nimages: {train: ä/b, test: [1, 2.5, true, null]}\n'on': |\n  two\n  lines\n"
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())  # as some editors begin a file
    held = {"images": {"train": "ä/b", "test": [1, 2.5, True, None]}, "on": "two\nlines\n"}
    assert read_yaml(tmp_path / "a.yaml", "file") == held


def test_json_cannot_have_far_more_made_than_it_is_long(tmp_path):
    for many in ("[],", "{},", "1,", '{"a":[]},'):
        with pytest.raises(ValueError, match="more than 2,097,152 values"):
            parse_json(f"[{many * (2**25 // len(many) - 3)}1]")
    (tmp_path / "a.json").write_text(f"[{'[],' * 2**21}1]")
    with pytest.raises(ValueError, match="more than 2,097,152 values"):
        read_json(tmp_path / "a.json")
    assert parse_json(f"[{'1,' * 2_000_000}1]")[-1] == 1


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}"), ('{"a":[', "]}")])
def test_json_is_no_deeper_than_what_goes_through_it_level_by_level_can_bear(start, end):
    for text in (start * 300 + "1" + end * 300, f'["]}}\\"", {start * 300}1{end * 300}]'):
        for one in (text, text.encode()):
            with pytest.raises(ValueError, match="nested too deeply"):
                parse_json(one)
    wide = f"[{','.join([start * 40 + '1' + end * 40] * 20)}]"
    assert len(parse_json(wide)) == 20
    assert parse_json(json.dumps(["[{" * 500])) == ["[{" * 500]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1, 2", "", "\x00"])
def test_json_that_is_damaged_or_deep_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011  as of the json module itself
        parse_json(text)
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}


PRESETS = {
    "a command of the parser's": "tyro_write_completion: [bash, {file}]",
    "help": "help: true",
    "a flag as a value": "encoder: --help",
    "a flag in a list": "seed: [1, --tyro-write-completion, bash, {file}]",
    "a flag in a name": "'seed=1 --epochs': 1",
    "escapes": '"\\e]0;owned\\a": 1',
    "escapes in a value": 'kind: "\\e[31mRED"',
    "a line in a value": 'model: {stem: "small\\nbyol: all is well"}',
    "a number as a name": "7: 1",
    "no names": "[1, 2]",
    "text": "just words",
    "nothing": "",
}


@pytest.mark.parametrize("content", PRESETS.values(), ids=PRESETS)
def test_a_preset_names_settings_and_nothing_else(tmp_path, content, capsys):
    (tmp_path / "a.yaml").write_text(content.replace("{file}", str(tmp_path / "written")))
    assert main(["train", "photos", "--out", str(tmp_path / "o"), "--preset", str(tmp_path / "a.yaml")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"The preset {tmp_path / 'a.yaml'} holds " in said.err
    assert said.err.rstrip("\n").isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_preset_makes_the_program_import_nothing_unless_the_caller_says_so_too(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "canary.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('sang').touch()\nnet = 0"
    )
    (tmp_path / "a.yaml").write_text("encoder: canary:net")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", str(tmp_path), "--out", str(tmp_path / "o"), "--preset", str(tmp_path / "a.yaml")]
    assert main(words) == 2
    assert "--encoder canary:net" in capsys.readouterr().err
    assert not (tmp_path / "sang").exists()


def test_plain_values_and_what_changed_between_two_configs():
    one = to_plain(TrainConfig(out="a", epochs=3))
    assert one == json.loads(json.dumps(one))
    assert one["views"]["blur"] == [1.0, 0.1]
    other = to_plain(TrainConfig(out="a", epochs=3, seed=7))
    other["optim"]["base_lr"] = 0.5
    assert differences(one, other) == ["seed: 0 -> 7", "optim.base_lr: None -> 0.5"]
    assert differences(one, one) == []


@dataclasses.dataclass(frozen=True)
class Inner:
    """What the group is about."""

    rate: float | None = None
    """A rate that is told on two lines of
    source, and follows from elsewhere by default."""

    def __post_init__(self) -> None:
        if self.rate == 13:
            raise ConfigError("rate is 13; expected a luckier number.")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    count: int | None = 3
    """How many."""


def test_a_setting_s_own_refusal_comes_through_as_it_is():
    with pytest.raises(ConfigError, match=r"^rate is 13; expected a luckier number\.$"):
        parse(Outer, ["--inner.rate", "13"], prog="p", description="")


def test_none_can_be_said_and_the_last_flag_wins():
    assert parse(Outer, ["--count", "5", "--count", "None"], prog="p", description="") == Outer(count=None)
    assert (
        parse(Outer, ["--inner.rate", "None", "--inner.rate", "2"], prog="p", description="").inner.rate == 2
    )


def test_the_help_shows_no_none_and_one_sentence_on_one_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit):
        parse(Outer, ["--help"], prog="p", description="x")
    said = capsys.readouterr().out
    assert "None" not in said
    assert "A rate that is told on two lines of source, and follows from elsewhere by default." in said
    assert "What the group is about." in said
    assert "How many. (default: 3)" in said


def test_reading_a_preset_loads_no_torch(tmp_path):
    code = "import byol.settings as s, sys; s.preset_flags('demo'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
