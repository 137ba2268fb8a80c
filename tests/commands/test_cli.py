"""The command line: what people type and what they see, in real processes."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from byol.cli import COMMANDS, main
from byol.encoders.load import load_encoder
from byol.features.features import Features
from byol.train.run_folder import RunFolder


def byol(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "byol", *words], capture_output=True, text=True, timeout=120)


def test_without_words_the_overview_tells_what_to_type(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for command in ("demo", "train", "evaluate", "embed", "search", "convert"):
        assert f"\n  {command} " in out
    assert "75" in out


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("byol 0.")


FLAGS = {
    "train": "--out --preset --encoder --image-size --epochs --batch-size --budget --seed --workers "
    "--device --views.blur --optim.base-lr",
    "evaluate": "--train --test --transfer --protocols --k --temperature --metric --compare --seeds "
    "--weights --out --no-cache",
    "embed": "--data --out --normalize",
    "search": "--query --row --duplicates --outliers --pick --clusters --run --json --sheet",
    "demo": "--out --seed",
    "convert": "--out --padding --encoder --prefix --image-size --mean --std --interpolation",
}


def whole_help(command: str) -> str:
    return "--help-all" if command == "train" else "--help"


def test_the_help_of_train_fits_a_screen_and_every_flag_in_it_is_one(capsys):
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 40
    assert max(map(len, short.splitlines())) <= 80
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    flags = set(re.findall(r"--[a-z][\w-]*(?:\.[\w-]+)*", capsys.readouterr().out))
    assert len(flags) > 60
    groups = {flag.partition(".")[0] + "." for flag in flags if "." in flag}
    assert groups <= set(re.findall(r"--\w+\.", short))  # where all the others are found
    named = set(re.findall(r"--[a-z][\w-]*(?:\.[\w-]+)*(?![\w.-])", short)) - {"--help-all"}
    assert len(named) > 10
    assert named <= flags


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_flags(tmp_path, capsys):
    assert main(["--completion"]) == 0
    script = capsys.readouterr().out
    script += """
complete -p byol >/dev/null || exit 1
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _byol byol; echo "${COMPREPLY[*]}"; }
try byol tr
try byol train photos/ --optim.base
try byol train photos/ --device cpu --kind te
try byol embed runs/a --norm
try byol nothing --x
"""
    (tmp_path / "script.sh").write_text(script, encoding="utf-8")
    done = subprocess.run(
        ["bash", str(tmp_path / "script.sh")], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "train", "--optim.base-lr --optim.base-tau", "textures", "--normalize", "",
    ]  # fmt: skip


@pytest.mark.parametrize(("command", "flags"), FLAGS.items())
def test_the_help_of_a_command_lists_its_flags(command, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, whole_help(command)])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert not [flag for flag in flags.split() if flag not in out]


@pytest.mark.parametrize(
    ("command", "positional"),
    [("train", "IMAGES"), ("evaluate", "[RUN]"), ("embed", "RUN"), ("convert", "FILE")],
)
def test_the_help_names_positional_words_and_shows_no_none(command, positional, monkeypatch, capsys):
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            main([command, whole_help(command)])
        text = capsys.readouterr().out
        assert f" {positional}" in text.splitlines()[0]
        assert "None" not in text
        assert max(map(len, text.splitlines()[1:])) <= columns  # the first line is as long as tyro makes it


def test_train_says_where_the_encoder_is_and_what_to_type_next(run, capsys, labelled):
    assert main(["train", str(labelled), "--out", str(run), *TINY.split()]) == 0
    out = capsys.readouterr().out
    assert str(run / "encoder.safetensors") in out
    assert f"byol evaluate {run} --train LABELLED_TRAIN --test LABELLED_TEST" in out
    kept = (run / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in kept[-len(out.splitlines()) :]] == out.splitlines()


def test_what_to_type_next_names_an_encoder_of_ones_own(labelled, tmp_path, monkeypatch, capsys):
    """Without --encoder the command would be refused: no file makes this program run code."""
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "net = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ELU())"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    words = TINY.replace("--encoder convnet --model.width 2", "--encoder own_net:net --hidden-layer -2")
    assert main(["train", str(labelled), "--out", str(out), *words.split()]) == 0
    said = capsys.readouterr().out
    assert f"evaluate {out} --encoder own_net:net --train LABELLED_TRAIN" in said
    embed = next(line for line in said.splitlines() if "byol embed" in line).split()[1:]
    embed = [
        {"IMAGES": str(labelled), "features.npz": str(tmp_path / "features.npz")}.get(word, word)
        for word in embed
    ]
    assert main(embed) == 0


def test_embed_writes_one_named_row_per_image(run, labelled, tmp_path):
    assert main(["embed", str(run), "--data", str(labelled), "--out", str(tmp_path / "f.npz")]) == 0
    with np.load(tmp_path / "f.npz") as file:
        assert file["x"].shape == (24, 72)
        assert file["names"][0] == "blue/0.png"
        assert file["y"].tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_a_tilde_is_the_home_folder_behind_an_equals_sign_and_in_python_too(labelled, tmp_path, monkeypatch):
    """No shell expands the one of --out=~/runs/a: a folder named ~ was made, and rm -r ~ removes another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["train", str(labelled), "--out=~/runs/a", *TINY.split()]) == 0
    assert main(["embed", "~/runs/a", f"--data={labelled}", "--out=~/features.npz"]) == 0
    assert main(["views", str(labelled), "--count=1", "--out=~/views.png"]) == 0
    assert (tmp_path / "home" / "views.png").is_file()
    features = Features.load("~/features.npz")
    features.save("~/again.npz")
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npz"))
    assert made == ["home/again.npz", "home/features.npz"]
    assert features.encoder_checksum == load_encoder(tmp_path / "home" / "runs" / "a").checksum()
    assert RunFolder("~/runs/a").encoder.is_file()
    assert not (tmp_path / "~").exists()


def test_a_preset_and_flags_go_together(labelled, tmp_path, capsys):
    words = ["train", str(labelled), "--out", str(tmp_path / "a"), "--preset", "cifar10-cpu", *TINY.split()]
    assert main(words) == 0
    assert "epochs: 1.0" in (tmp_path / "a" / "config.yaml").read_text()


def test_a_run_s_config_is_a_preset(run, labelled, tmp_path):
    words = ["train", str(labelled), "--preset", str(run / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(words) == 0
    assert (tmp_path / "again" / "encoder.safetensors").read_bytes() == (
        run / "encoder.safetensors"
    ).read_bytes()


def test_a_library_network_takes_its_own_options_and_keeps_them(labelled, tmp_path):
    """Patches of 8 of 32 pixels are 16 tokens, and a class token."""
    vit = "--encoder timm:vit_tiny_patch16_224 --model.options patch_size=8 embed_dim=24 depth=1 num_heads=2"
    words = [*TINY.replace("--encoder convnet --model.width 2", vit).split(), "--image-size", "32"]
    assert main(["train", str(labelled), "--out", str(tmp_path / "a"), *words]) == 0
    encoder = load_encoder(tmp_path / "a")
    net = encoder.network.net
    assert net.patch_embed.proj.weight.shape == (24, 3, 8, 8)
    assert (net.pos_embed.shape[1], len(net.blocks), encoder.info.features) == (17, 1, 24)
    preset = ["--preset", str(tmp_path / "a" / "config.yaml")]
    assert main(["train", str(labelled), *preset, "--out", str(tmp_path / "again")]) == 0
    assert load_encoder(tmp_path / "again").checksum() == encoder.checksum()


def test_a_preset_that_names_code_imports_it_only_when_the_caller_names_it_too(
    labelled, tmp_path, monkeypatch, capsys
):
    """No file makes the program import code."""
    net = "import pathlib\nfrom torch import nn\n"
    net += f"def net():\n    pathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
    net += "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    (tmp_path / "evil.py").write_text(net)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    (tmp_path / "preset.yaml").write_text("encoder: evil:net\n")
    words = ["train", str(labelled), "--out", str(tmp_path / "a"), "--preset", str(tmp_path / "preset.yaml")]
    words += TINY.replace("--encoder convnet --model.width 2", "").split()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "'evil:net'" in said
    assert "--encoder evil:net" in said
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "a").exists()
    assert main([*words, "--encoder", "evil:net"]) == 0
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_signal_while_libraries_load_ends_with_a_sentence_and_the_promised_code(command, name, tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "byol", command, "photos", "--out", str(tmp_path / "a")], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (75, f"byol: stopped by {name}\n")
    assert not (tmp_path / "a").exists()


EVALUATE = ["evaluate", "{run}", "--train", "{pictures}", "--test", "{pictures}"]
BAD = [
    (["trian"], 2, "Did you mean 'train'"),
    (["train", "{tmp}/nowhere", "--out", "{tmp}/o"], 3, "nowhere"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--encoder", "resnet51"], 2, "resnet50"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--preset", "imagnet-300"], 2, "imagenet-300"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--model.options", "depth"], 2, "expected NAME=VALUE"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--model.options", "channels=[8,8]"], 2, "of your own"),
    (["train", "{pictures}", "--out", "o", "--model.width", "4", "--model.options", "width=5"], 2, "once"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--model.options", "widht=4"], 2, "Did you mean 'width'"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--batch-size", "4096"], 3, "only 24 images"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--epochs", "0"], 2, "epochs"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--budget", "soon"], 2, "budget"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--device", "cuda:99"], 2, "cuda:99"),
    (["train", "{pictures}", "--out", "{tmp}/o", "--device", "gpu"], 2, "gpu"),
    (["train", "{pictures}", "--out", "{pictures}"], 2, "does not hold a run"),
    (["train", "{tmp}/empty", "--out", "{tmp}/o"], 3, "empty"),
    (["train", "{tmp}/one", "--out", "{tmp}/o"], 3, "1 image"),
    (["evaluate", "{tmp}/nothing", "--train", "{pictures}", "--test", "{pictures}"], 2, "no encoder"),
    (["evaluate", "{run}", "--train", "{pictures}/red", "--test", "{pictures}"], 3, "labels"),
    ([*EVALUATE, "--protocols", "knm"], 2, "knn"),
    (["evaluate", "{run}", "--train", "{pictures}"], 2, "--test"),
    ([*EVALUATE, "--metric", "map11"], 2, "one label"),
    ([*EVALUATE, "--seeds", "0"], 2, "seeds"),
    ([*EVALUATE, "--compare", "pixel"], 2, "'pixels'"),
    ([*EVALUATE, "--weights", "w.pth"], 2, "expected one"),
    ([*EVALUATE, "--out", "{run}/config.yaml"], 2, "is a file"),
    (["evaluate", "{run}", "--transfer", "{run}/config.yaml"], 2, "{train: PATH, test: PATH}"),
    (["evaluate", "{run}", "--transfer", "{run}/config.yaml", "--test", "{pictures}"], 2, "one or the other"),
    ([*EVALUATE, "--k", "0"], 2, "kNN got k=0"),
    ([*EVALUATE, "--base-lrs", "nan"], 2, "base_lrs"),
    ([*EVALUATE, "--out", "/proc/x"], 2, "Nothing can be written"),
    ([*EVALUATE, "--compare", "pixels", "pixels"], 2, "already"),
    (["evaluate", "{run}", "--transfer", "{tmp}/no.yaml"], 2, "There is no list of data sets at"),
    (["evaluate", "torchvision:resnet51", "--train", "{pictures}", "--test", "{pictures}"], 2, "resnet50"),
    (["embed", "{run}", "--data", "{pictures}", "--out", "{tmp}/f.csv"], 2, ".npz"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "says"), BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_bad_input_is_one_sentence_and_an_exit_code_and_leaves_nothing(
    words, code, says, labelled, run, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "one" / "a.png")
    before = sorted(tmp_path.rglob("*"))
    assert main([word.format(tmp=tmp_path, pictures=labelled, run=run) for word in words]) == code
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "Traceback" not in said
    assert said.startswith("byol")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--views.blur 2 0", "--knn.times 0", "--data.channels 0"])
def test_a_value_out_of_range_in_a_group_is_named_in_a_sentence(flag, labelled, tmp_path, capsys):
    assert main(["train", str(labelled), "--out", str(tmp_path / "a"), *flag.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("byol train: ")
    assert flag.split()[0].removeprefix("--") in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("search f.npz --row x", "Could not find valid parse for arguments: ['x']"),
        ("export run --out a --format onx", "invalid choice 'onx'"),
        ("train photos --out a --epochs many", "'many'"),
    ],
)
def test_what_a_flag_cannot_read_is_told_without_the_readings_that_were_tried(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.translate({ord(letter): " " for letter in "│|"}).split())
    assert says in said
    assert "NoneType" not in said


def test_an_unknown_flag_is_named_with_a_near_one(labelled, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(labelled), "--out", str(tmp_path / "a"), "--batchsize", "8"])
    assert "--batch-size" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)]
)
def test_a_signal_to_all_processes_saves_says_so_and_the_same_command_continues(
    number, code, labelled, tmp_path
):
    words = [
        "train",
        str(labelled),
        "--out",
        str(tmp_path / "a"),
        *TINY.split(),
        "--epochs",
        "60",
        "--workers",
        "1",
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "byol", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("a/checkpoints/step-*")):
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.05)
    os.killpg(started.pid, number)  # as a terminal and Slurm do: to the workers too
    said = started.communicate(timeout=60)[1]
    assert started.returncode == code
    assert "saved at step" in said
    assert "Traceback" not in said
    continued = byol(*words)
    assert continued.returncode == 0
    assert "continued at step" in continued.stderr


def test_the_help_describes_its_groups(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    said = " ".join(capsys.readouterr().out.translate({ord(letter): " " for letter in "│|"}).split())
    assert "The optimizer, its schedule and the target's." in said


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m byol --help | head -1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_a_run_whose_reader_has_gone_is_trained_to_its_end(labelled, tmp_path):
    words = f"train {labelled} --out {tmp_path / 'a'} {TINY} --epochs 4"
    command = f"{sys.executable} -m byol {words} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("run ")
    assert (tmp_path / "a" / "encoder.safetensors").exists()


@pytest.mark.slow
def test_a_failure_keeps_its_exit_code_when_nobody_listens():
    command = f"{sys.executable} -m byol trian 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", command], capture_output=True, timeout=120).returncode == 2


@pytest.mark.parametrize("flags", [["--optim.base-lr", "inf"], ["--epochs", "inf"], ["--epochs", "nan"]])
def test_a_number_that_is_not_finite_is_refused(flags, labelled, tmp_path, capsys):
    try:
        code = main(["train", str(labelled), "--out", str(tmp_path / "a"), *flags])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert "finite number" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_s_config_with_a_budget_takes_epochs_beside_it(labelled, tmp_path):
    (tmp_path / "config.yaml").write_text("budget: 1h\n")
    words = [
        "train",
        str(labelled),
        "--out",
        str(tmp_path / "a"),
        "--preset",
        str(tmp_path / "config.yaml"),
        *TINY.split(),
    ]
    assert main(words) == 0
    assert "budget: null" in (tmp_path / "a" / "config.yaml").read_text()


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"train", "evaluate", "embed"}))
def test_what_works_in_one_process_is_refused_by_several_and_told_by_one(name, monkeypatch, capsys):
    for rank, told in (("0", "WORLD_SIZE is 2"), ("1", "")):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        assert main([name, "nowhere"]) == 2
        said = capsys.readouterr().err
        assert told in said
        assert bool(said) == bool(told)
    monkeypatch.setenv("WORLD_SIZE", "x")
    assert main([name, "nowhere"]) == 2
    assert "WORLD_SIZE is 'x'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])


@pytest.mark.parametrize(
    "words", [["report"], ["train", "images", "--out"], ["train", "images", "--out", "run", "--init"]]
)
def test_a_name_longer_than_a_folder_takes_is_a_mistake_and_no_trouble_of_the_disk(words, tmp_path, capsys):
    np.save(tmp_path / "images.npy", np.zeros((8, 8, 8, 3), np.uint8))
    words = [str(tmp_path / "images.npy") if word == "images" else word for word in words]
    words = [str(tmp_path / "run") if word == "run" else word for word in words]
    assert main([*words, "n" * 300]) == 2
    assert "n" * 300 in capsys.readouterr().err


@pytest.mark.parametrize("size", [None, "1"])
def test_a_process_that_is_alone_tells_why_it_ends_whatever_its_rank_is(size, monkeypatch, capsys, tmp_path):
    """Some clusters set RANK without WORLD_SIZE."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert main(["embed", "nowhere", "--data", "nowhere", "--out", str(tmp_path / "x.npz")]) == 2
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):  # by the reader of the flags itself
        main(["train", "nowhere", "--out", str(tmp_path), "--epoch", "3"])
    assert "--epoch" in capsys.readouterr().err


def test_a_full_disk_that_nobody_foresaw_is_not_called_a_bug(run, tmp_path):
    """The answer itself goes to a full disk: the file behind stdout may not grow."""
    script = (
        "import resource, signal, sys; from byol.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "sys.exit(main(['embed', '--help']))"
    )
    with (tmp_path / "out.txt").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-u", "-c", script], stdout=out, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 70
    assert done.stderr.startswith("byol embed: File too large.")
    assert done.stderr.count("\n") == 1


WRITING = [
    "train {images} --out {name} {tiny}",
    "embed {run} --data nowhere --out {name}.npz",
    "predict nowhere --data nowhere --out {name}.csv",
    "evaluate {run} --train nowhere --test nowhere --out {name}",
    "check nowhere --out {name}.json",
    "pack {images} --out {name}",
    "views nowhere --out {name}.png",
    "report {run} --out {name}.html",
    "export {run} --out {name}.onnx",
    "convert nowhere --out {name}",
    "search nowhere --outliers 1 --data nowhere --sheet {name}.png",
    "explore nowhere --out {name}",
]  # with a name to write to, which is looked at before the work


@pytest.mark.parametrize("words", WRITING)
def test_a_name_that_no_file_can_have_is_a_sentence_of_every_command(words, run, labelled, tmp_path, capsys):
    name = tmp_path / ("x" * 256)
    words = words.format(run=run, images=labelled, name=name, tiny=TINY)
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "File name too long" in said
    assert list(tmp_path.iterdir()) == []


def on_a_read_only_disk(folder: Path, script: str) -> str:
    """What a script prints in a namespace of its own, where `read_only()` makes a folder a read-only disk."""
    begin = (
        "import os, sys, threading, time; from pathlib import Path; from byol.cli import main\n"
        "def read_only():\n"
        f"    assert os.system('mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}') == 0\n"
    )
    words = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", begin + script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    if done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_read_only_disk_is_one_sentence_of_every_command(run, labelled, tmp_path):
    held = shutil.copytree(run, tmp_path / "disk" / "run")
    names = {"run": held, "images": labelled, "name": tmp_path / "disk" / "x", "tiny": TINY}
    names["elsewhere"] = shutil.copytree(run, tmp_path / "run")
    commands = [*WRITING, "train {images} --out {run} {tiny}", "report {run}"]
    commands += ["evaluate {run} --train nowhere --test nowhere", "embed {run} --data nowhere --out {name}/"]
    kept = "--protocols knn --save-classifier {name}.safetensors"
    commands += ["evaluate {elsewhere} --train {images} --test 0.5 --no-cache --no-baselines " + kept]
    commands += ["report {elsewhere} --figures {name}"]
    every = [words.format(**names).split() for words in commands]
    before = sorted((tmp_path / "disk").rglob("*"))
    # What is told of work that is done would be a line too many.
    script = f"sys.stdout = sys.stderr; read_only(); print([main(words) for words in {every}])"
    told = on_a_read_only_disk(tmp_path / "disk", script)
    *said, codes = told.splitlines()
    assert len(said) == len(commands), told
    assert all("Read-only file system" in line for line in said), told
    assert set(ast.literal_eval(codes)) <= {2, 70}, told
    assert sorted((tmp_path / "disk").rglob("*")) == before


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_ends_the_run_in_a_sentence_and_costs_no_checkpoint(labelled, tmp_path):
    out = tmp_path / "disk"
    out.mkdir()
    words = ["train", str(labelled), "--out", str(out), *TINY.split(), "--epochs", "60"]
    script = f"""
def turn():
    while not list(Path({str(out)!r}).glob("checkpoints/step-*")):
        time.sleep(0.001)
    read_only()
threading.Thread(target=turn).start()
print(main({[*words, "--save-every-steps", "2"]}), file=sys.stderr)
"""
    told = on_a_read_only_disk(out, script)
    *_, sentence, code = told.splitlines()
    assert code == "70", told
    assert "Traceback" not in told
    assert "Read-only file system" in sentence
    assert "The last good checkpoint is" in sentence
    assert told.count("Metrics are lost") == 1
    assert "training goes on" in told
    assert main([*words, "--save-every-steps", "2"]) == 0


@pytest.mark.parametrize("word", ["a\x1b[31m\nb.png", "--a\x1b[31m\nb"])
def test_words_that_are_no_flags_reach_the_terminal_without_their_escapes(word, labelled, tmp_path, capsys):
    """A shell's * makes words of the names of files."""
    with pytest.raises(SystemExit) as ended:
        main(["train", str(labelled), word, "--out", str(tmp_path / "a")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "\x1b[31m" not in said
    assert "\\x1b[31m\\nb" in said
    assert said.count("Unrecognized options") == 2  # once as the title


@pytest.mark.slow
def test_a_name_of_ones_own_reaches_the_terminal_without_its_escapes_and_line_ends(
    run, labelled, tmp_path, capfd, caplog
):
    odd = str(tmp_path / "a\x1b[31m\nb")
    for words in (
        ["train", str(labelled), *TINY.split(), "--out", odd],
        ["report", odd],
        ["embed", str(run), "--data", str(labelled), "--out", f"{odd}.npz"],
        ["pack", str(labelled), "--workers", "0", "--out", f"{odd}-shards"],
        ["views", str(labelled), "--count", "1", "--out", f"{odd}.png"],
        ["explore", f"{odd}.npz", "--map", "pca", "--clusters", "0", "--out", f"{odd}-map"],
    ):
        assert main(words) == 0
        said = "".join(capfd.readouterr())
        assert "a\\x1b[31m\\nb" in said
        assert all(line.isprintable() for line in said.split("\n"))
    newest = max(Path(odd).glob("checkpoints/step-*"))
    (newest / "manifest.json").write_text("{}")
    assert main(["train", str(labelled), *TINY.split(), "--out", odd]) == 0
    warned = [record.getMessage() for record in caplog.records]
    assert any("a\\x1b[31m\\nb" in line for line in warned), warned
    assert all(line.isprintable() for line in warned)


@pytest.mark.slow
def test_names_that_the_terminal_cannot_show_cost_nothing(labelled, tmp_path):
    """A terminal of Latin-1, in a locale without UTF-8: every command works on all names."""
    fox, rose, moth = (
        os.fsdecode(name.encode()) for name in ("fotos \N{FOX FACE} \u4e00", "\N{ROSE}", "\N{BUTTERFLY}.png")
    )
    pictures = tmp_path / fox
    shutil.copytree(labelled, pictures)
    (pictures / "red").rename(pictures / rose)
    (pictures / "blue" / "0.png").rename(pictures / "blue" / moth)
    latin = {"class": os.fsdecode(b"gr\xfcn"), "image": os.fsdecode(b"\xff\xfe\n.png")}
    (pictures / "green").rename(pictures / latin["class"])
    (pictures / latin["class"] / "0.png").rename(pictures / latin["class"] / latin["image"])
    (pictures / "blue" / "\x1b[31m.png").write_bytes(b"not a picture")
    settings = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run, features, sheet = pictures / os.fsdecode(b"a\xe9\n"), tmp_path / "f.npz", tmp_path / moth
    said = ""
    for words in (
        ["train", str(pictures), "--out", str(run), *TINY.split(), "--data.max-bad", "1"],
        ["evaluate", str(run), "--train", str(pictures), "--test", str(pictures), "--protocols", "knn"],
        ["embed", str(run), "--data", str(pictures), "--out", str(features)],
        ["search", str(features), "--outliers", "2", "--sheet", str(sheet), "--data", str(pictures)],
        ["search", str(features), "--query", str(pictures / "blue" / moth), "--run", str(run)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "byol", *words],
            capture_output=True,
            timeout=120,
            env={**os.environ, **settings},
            check=False,
        )
        said += (done.stdout + done.stderr).decode("latin-1")
        assert done.returncode == 0, said
    assert "\x1b" not in said
    assert "\\x1b[31m.png" in said
    names = {name.encode(errors="surrogateescape") for name in Features.load(features).names}
    assert names >= {"blue/\N{BUTTERFLY}.png".encode(), b"gr\xfcn/\xff\xfe\n.png"}


ALONE = """
import os, sys
heard = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # workers, which are forked, have it too
events = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto")

def hook(event, arguments):
    if event in events:
        os.write(heard, f"{event} {arguments}\\n".encode())

sys.addaudithook(hook)
from byol.cli import main
for words in sys.argv[2:]:
    assert main(words.split()) == 0, words
import socket
with socket.create_server(("127.0.0.1", 0)):
    pass
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_command_opens_a_connection(labelled, tmp_path):
    """A run with workers, and whatever is done with its encoder; the server at the end is the proof that one
    would be heard.
    """
    run, features, heard = tmp_path / "run", tmp_path / "f.npz", tmp_path / "heard"
    classifier = tmp_path / "c.safetensors"
    commands = (
        f"check {labelled} --workers 1",
        f"train {labelled} --out {run} {TINY} --workers 1 --data.in-memory False",
        f"evaluate {run} --train {labelled} --test 0.3 --protocols linear --save-classifier {classifier}",
        f"embed {run} --data {labelled} --out {features}",
        f"predict {classifier} --data {labelled} --out {tmp_path}/labels.csv",
        f"search {features} --outliers 2",
        f"explore {features} --data {labelled} --out {tmp_path}/map --map pca --clusters 0 --k 3",
        f"report {run}",
        f"export {run} --out {tmp_path}/e.pt2",
    )
    words = [sys.executable, "-c", ALONE, str(heard), *commands]
    done = subprocess.run(words, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in heard.read_text().splitlines()] == ["socket.bind"]
