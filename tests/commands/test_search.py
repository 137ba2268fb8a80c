"""`byol embed` and `byol search` as people type them."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from byol.cli import main
from byol.encoders.encoder import save_encoder
from byol.features.features import Features


@pytest.fixture
def here(tmp_path, monkeypatch, encoder_of):
    """Pictures, two encoders, the features of one. 07.png is a copy of 02.png, 05.png is unreadable."""
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        pixels = generator.integers(0, 256, (5, 5, 3)).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"{number:02}.png")
    (tmp_path / "photos" / "07.png").write_bytes((tmp_path / "photos" / "02.png").read_bytes())
    (tmp_path / "photos" / "05.png").write_bytes(b"")
    for name, width in (("run", 8), ("other", 4)):
        (tmp_path / name).mkdir()
        save_encoder(encoder_of("convnet", width=width), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "run", "--data", "photos", "--out", "f.npz"]) == 0
    return tmp_path


def told(capsys, words: str) -> tuple[str, str]:
    """What a command that succeeds says on stdout and stderr."""
    capsys.readouterr()
    assert main(words.split()) == 0
    said = capsys.readouterr()
    return said.out, said.err


def table(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("kind", [".npz", ".npy", ".parquet", ".safetensors"])
def test_embed_writes_every_kind(here, capsys, caplog, kind):
    out, _ = told(capsys, f"embed run --data photos --out g{kind} --normalize --device cpu")
    assert f"written    g{kind}: 11 images x" in out
    assert "Left out, because unreadable: 1 of 12 images in photos/: 05.png" in caplog.text
    loaded = Features.load(f"g{kind}")
    np.testing.assert_allclose(np.linalg.norm(loaded.x, axis=1), 1, rtol=1e-5)
    assert kind == ".npy" or loaded.names == [f"{number:02}.png" for number in range(12) if number != 5]
    assert sorted(path.name for path in here.iterdir()) == sorted(
        ["f.npz", f"g{kind}", "other", "photos", "run"]
    )


def test_missing_folders_are_made(here, capsys):
    told(capsys, "embed run --data photos --out new/folder/f.npz")
    assert len(Features.load("new/folder/f.npz").x) == 11
    told(capsys, "search f.npz --outliers 2 --sheet other/s.png --data photos")
    assert (here / "other" / "s.png").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("words", ["embed run --data photos --out p.npz", "search p.npz --outliers 2"])
def test_a_pipe_in_the_place_of_features_is_a_sentence_and_not_waited_for(here, capsys, words):
    os.mkfifo("p.npz")
    assert main(words.split()) in (2, 3)
    assert "p.npz" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_a_pipe_among_the_files_of_a_folder_of_features_is_replaced(here, capsys, caplog):
    told(capsys, "embed run --data photos --out f/")
    (part,) = Path("f").glob("part-*")
    whole = part.read_bytes()
    part.unlink()
    os.mkfifo(part)
    told(capsys, "embed run --data photos --out f/")
    assert "is damaged" in caplog.text
    assert part.read_bytes() == whole


def test_features_and_queries_of_the_largest_central_square(here, capsys):
    """Whose pictures are 40 pixels wide and 56 high: rows 8 to 47 are the square."""
    (here / "tall").mkdir()
    (here / "squares").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (56, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(here / "tall" / f"{number}.png")
        Image.fromarray(pixels[8:48]).save(here / "squares" / f"{number}.png")
    out, _ = told(capsys, "embed run --data tall --out tall.npz --eval-crop 1")
    assert "--eval-crop 1" in out
    told(capsys, "embed run --data squares --out squares.npz --eval-crop 1")
    told(capsys, "embed run --data tall --out usual.npz")
    tall, squares, usual = (Features.load(f"{name}.npz").x for name in ("tall", "squares", "usual"))
    np.testing.assert_allclose(tall, squares, rtol=1e-4, atol=1e-5)
    assert np.abs(tall - usual).max() > 0.01
    found, _ = told(capsys, "search tall.npz --query tall/1.png --run run --eval-crop 1 --json")
    assert json.loads(found)
    assert main(["search", "tall.npz", "--query", "tall/1.png", "--run", "run"]) == 2
    assert main(["embed", "run", "--data", "tall", "--out", "f2.npz", "--eval-crop", "1.5"]) == 2


@pytest.mark.parametrize("kind", [".npz", ".parquet", ".safetensors"])
def test_a_query_by_another_encoder_of_the_same_width_is_refused(here, encoder_of, capsys, kind):
    told(capsys, f"embed run --data photos --out g{kind}")
    told(capsys, f"search g{kind} --query photos/02.png --run run")
    encoder = encoder_of("convnet", width=8)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.01)
    save_encoder(encoder, here / "other")
    assert main(f"search g{kind} --query photos/02.png --run other".split()) == 2
    assert f"other is not the encoder that gave g{kind}" in capsys.readouterr().err


def test_a_query_gives_a_table(here, capsys):
    out, err = told(capsys, "search f.npz --query photos/02.png photos/11.png --run run --k 3")
    lines = table(out)
    assert lines[0] == ["query", "row", "similarity", "name"]
    assert [line[0] for line in lines[1:]] == ["photos/02.png"] * 3 + ["photos/11.png"] * 3
    assert {tuple(line[2:]) for line in lines[1:3]} == {("1.0000", "02.png"), ("1.0000", "07.png")}
    assert lines[4][1:] == ["10", "1.0000", "11.png"]
    assert err == ""


def test_json_is_all_there_is_on_stdout_and_agrees_with_scikit_learn(here, capsys):
    out, err = told(capsys, "search f.npz --row 3 8 --k 4 --json --sheet s.png --data photos")
    features = Features.load("f.npz")
    model = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(features.x.astype(float))
    distances, rows = model.kneighbors(features.x[[3, 8]].astype(float))
    for found, row, near, far in zip(json.loads(out), (3, 8), rows, distances, strict=True):
        assert found["query"] == features.names[row]
        assert [image["row"] for image in found["images"]] == near[1:].tolist()
        assert [image["name"] for image in found["images"]] == [features.names[place] for place in near[1:]]
        np.testing.assert_allclose([image["similarity"] for image in found["images"]], 1 - far[1:], atol=2e-6)
    assert err == "written    s.png\n"
    with Image.open("s.png") as page:
        assert page.height > 2 * 128


def test_near_duplicates_are_listed_in_groups(here, capsys):
    out, _ = told(capsys, "search f.npz --duplicates 0.9999")
    assert table(out) == [
        ["group", "row", "similarity", "name"],
        ["0", "2", "1.0000", "02.png"],
        ["0", "6", "1.0000", "07.png"],
    ]
    found = json.loads(told(capsys, "search f.npz --duplicates 0.9999 --json")[0])
    assert [(group["group"], [image["name"] for image in group["images"]]) for group in found] == [
        (0, ["02.png", "07.png"])
    ]


def test_no_near_duplicates_is_a_result_too(here, capsys):
    (here / "photos" / "07.png").unlink()
    told(capsys, "embed run --data photos --out g.npz")
    out, err = told(capsys, "search g.npz --duplicates 1 --sheet s.png --data photos")
    assert out == ""
    assert "no two images are that similar" in err
    assert not (here / "s.png").exists()
    assert json.loads(told(capsys, "search g.npz --duplicates 1 --json")[0]) == []


def test_outliers_picks_and_clusters_are_listed(here, capsys):
    lines = table(told(capsys, "search f.npz --outliers 3 --k 2")[0])
    assert lines[0] == ["row", "distance", "name"]
    assert [float(line[1]) for line in lines[1:]] == sorted(
        (float(line[1]) for line in lines[1:]), reverse=True
    )
    lines = table(told(capsys, "search f.npz --pick 11")[0])
    assert lines[0] == ["row", "name"]
    assert sorted(line[1] for line in lines[1:]) == Features.load("f.npz").names
    assert lines[-1][1] in ("02.png", "07.png")  # one of two copies is the least worth labelling
    lines = table(told(capsys, "search f.npz --clusters 2 --k 2")[0])
    assert lines[0] == ["cluster", "row", "distance", "name"]
    assert [line[0] for line in lines[1:]] == ["0", "0", "1", "1"]
    found = json.loads(told(capsys, "search f.npz --clusters 2 --json")[0])
    assert sorted(image["row"] for cluster in found for image in cluster["images"]) == list(range(11))


def test_a_second_pick_goes_on_from_the_first(here, capsys):
    both = [line[1] for line in table(told(capsys, "search f.npz --pick 6")[0])[1:]]
    (here / "done.txt").write_text("\n".join(both[:3]) + "\n")
    assert [
        line[1] for line in table(told(capsys, "search f.npz --pick 3 --labelled done.txt")[0])[1:]
    ] == both[3:]
    (here / "done.txt").write_text("\n".join(both[:3]) + "\n", encoding="utf-8-sig")  # as Windows writes it
    assert [
        line[1] for line in table(told(capsys, "search f.npz --pick 3 --labelled done.txt")[0])[1:]
    ] == both[3:]
    uncertainty = np.zeros(11)
    uncertainty[9] = 1
    np.save("u.npy", uncertainty)
    assert table(told(capsys, "search f.npz --pick 1 --uncertainty u.npy")[0])[1] == ["9", "10.png"]


def test_hostile_names_cannot_break_a_line(here, capsys):
    names = ["a\nb", os.fsdecode(b"\xff"), "\x1b[31mred", *"cdefghijk"[:8]]
    Features(Features.load("f.npz").x, names=names).save("odd.safetensors")
    out, _ = told(capsys, "search odd.safetensors --outliers 11")
    assert len(out.splitlines()) == 12
    assert {"a\\nb", "\\udcff", "\\x1b[31mred"} <= {line[2] for line in table(out)}
    out.encode()
    assert {
        image["name"] for image in json.loads(told(capsys, "search odd.safetensors --outliers 11 --json")[0])
    } == set(names)


def test_features_without_names_are_told_by_row(here, capsys):
    told(capsys, "embed run --data photos --out g.npy")
    assert table(told(capsys, "search g.npy --row 2 --k 1")[0])[1] == ["2", "6", "1.0000", "6"]


@pytest.mark.parametrize(
    "flags",
    ["--clusters 2", "--outliers 3", "--pick 4", "--duplicates 0.5", "--query photos/00.png --run run"],
)
def test_every_result_can_be_a_sheet(here, capsys, flags):
    _, err = told(capsys, f"search f.npz {flags} --sheet s.jpg --data photos")
    assert err == "written    s.jpg\n"
    with Image.open("s.jpg") as page:
        assert np.asarray(page).std() > 20


@pytest.mark.parametrize(
    ("question", "most"),
    [("--row 1 --k", 10), ("--outliers", 11), ("--pick", 11), ("--labelled names.txt --pick", 10)],
)
def test_more_images_than_there_are_is_told_and_all_are_shown(here, capsys, question, most):
    (here / "names.txt").write_text("00.png\n")
    out, err = told(capsys, f"search f.npz {question} {most + 1}")
    assert len(table(out)) == 1 + most
    assert err == f"note       there are no more than these {most} images\n"
    assert told(capsys, f"search f.npz {question} {most}")[1] == ""
    assert told(capsys, f"search f.npz {question} 1")[1] == ""


@pytest.mark.parametrize("words", ["embed {} --data photos --out g.npz", "embed run --data {} --out g.npz"])
def test_an_empty_path_is_not_the_folder_one_is_in(here, capsys, words):
    assert main([word.replace("{}", "") for word in words.split()]) in (2, 3)
    assert "The path of the" in capsys.readouterr().err
    assert not (here / "g.npz").exists()


def test_features_may_replace_features(here, capsys):
    before = (here / "f.npz").read_bytes()
    told(capsys, "embed other --data photos --out f.npz")
    assert (here / "f.npz").read_bytes() != before


def test_a_pick_of_nothing_draws_no_sheet(here, capsys):
    (here / "names.txt").write_text("".join(f"{number:02}.png\n" for number in range(12) if number != 5))
    _, err = told(capsys, "search f.npz --pick 1 --labelled names.txt --sheet s.png --data photos")
    assert err == "note       there are no more than these 0 images\n"
    assert not (here / "s.png").exists()


def test_a_picture_without_a_name_is_not_there(here, capsys):
    assert main(["search", "f.npz", "--query", "", "--run", "run"]) == 3
    assert "--query '' is not there" in capsys.readouterr().err


def test_the_next_command_can_be_pasted_whatever_the_names(here, capsys):
    os.rename("run", "my run")
    assert main(["embed", "my run", "--data", "photos", "--out", "f 2.npz"]) == 0
    words = shlex.split(capsys.readouterr().out.split("next ")[1])
    assert main([word.replace("PICTURE", "photos/02.png") for word in words[1:]]) == 0


def test_a_sheet_shows_as_much_as_fits_and_says_what_it_leaves_out(here, capsys):
    Features(np.repeat(np.eye(300), 2, axis=0)).save("many.npy")
    np.save("grays.npy", np.zeros((600, 9, 9), dtype=np.uint8))
    _, err = told(capsys, "search many.npy --duplicates 0.99 --sheet s.png --data grays.npy")
    assert "s.png shows the first 500 of 600 images" in err
    _, err = told(capsys, "search many.npy --pick 501 --sheet s.png --data grays.npy")
    assert "s.png shows the first 500 of 501 images" in err


BAD = [
    ("search f.npz", 2, "expected one of --query"),
    ("search f.npz --row 1 --pick 2", 2, "--row, --pick"),
    ("search f.npz --query photos/00.png", 2, "--query was given without --run"),
    ("search f.npz --query --run run", 2, "--query came alone; expected pictures"),
    ("search f.npz --query", 2, "--query came alone; expected pictures"),
    ("search f.npz --query nowhere.png --run run", 3, "--query 'nowhere.png' is not there"),
    ("search f.npz --query photos --run run", 3, "'photos' is a folder"),
    ("search f.npz --query photos/00.png photos/05.png --run run", 3, "photos/05.png (the file is empty)"),
    ("search f.npz --query photos/00.png --run other", 2, "other is not the encoder"),
    ("search f.npz --query photos/00.png --run nowhere", 2, "no encoder at nowhere"),
    ("search f.npz --row 11", 2, "no row 11"),
    ("search f.npz --row", 2, "--row came alone"),
    ("search f.npz --row 1 --k 0", 2, "k is 0"),
    ("search f.npz --pick 0", 2, "is 0"),
    ("search f.npz --outliers -1", 2, "is -1"),
    ("search f.npz --duplicates 1.5", 2, "above 0 and at most 1"),
    ("search f.npz --clusters 12", 2, "12 clusters of 11 rows"),
    ("search f.npz --row 1 --device gpu", 2, "device is 'gpu'"),
    ("search nowhere.npz --row 1", 3, "nowhere.npz"),
    ("search nan.npy --row 1", 3, "1 of 3 feature rows hold NaN"),
    ("search run/encoder.safetensors --row 1", 3, "It holds last.0.weight, last.1.bias"),
    ("search photos/00.png --row 1", 3, "does not hold features"),
    ("search photos --row 1", 3, "photos does not hold features (Is a directory)"),
    ("search f.npz --row 1 --sheet s.png", 2, "--sheet was given without --data"),
    ("search f.npz --row 1 --sheet s.gif --data photos", 2, "ends in .png"),
    ("search f.npz --row 1 --sheet s.png --data run", 3, "holds no pictures"),
    ("search f.npz --row 1 --labelled x.txt", 2, "--labelled was given without --pick"),
    ("search f.npz --pick 1 --labelled x.txt", 3, "x.txt cannot be read"),
    (
        "search f.npz --pick 1 --labelled names.txt",
        3,
        "1 of 2 names in names.txt are not among the features, such as 'b'",
    ),
    ("search f.npz --pick 1 --uncertainty f.npz", 3, "f.npz"),
    ("search f.npz --pick 1 --uncertainty header.npy", 3, "header.npy"),
    (
        "search f.npz --pick 1 --uncertainty nan.npy",
        3,
        "expected a number from 0 for each of the 11 feature rows",
    ),
    ("embed run --data photos --out f.csv", 2, "ends in .npz"),
    ("embed run --data photos --out run/encoder.safetensors", 2, "is there already"),
    ("embed run --data grays.npy --out grays.npy", 2, "is there already"),
    ("search f.npz --row 1 --sheet photos/02.png --data photos", 2, "is there already among the images"),
    (
        "search f.npz --query photos/00.png --run run --sheet photos/00.png --data photos",
        2,
        "is there already among the images",
    ),
    ("export run/encoder.safetensors --out run/encoder.safetensors", 2, "which the encoder comes from"),
    ("embed f.npz --data photos --out g.npz", 2, "f.npz is an array of numpy's; expected a run's folder"),
    ("embed grays.npy --data photos --out g.npz", 2, "grays.npy is an array of numpy's"),
    (
        "embed run/encoder.json --data photos --out g.npz",
        2,
        "is a description; expected a run's folder, an encoder",
    ),
    (
        "search f.npz --pick 1 --uncertainty sevens.npy",
        3,
        "rows that do not sum to 1; expected class probabilities",
    ),
    ("search f.npz --pick 1 --uncertainty minus.npy", 3, "holds NaN, infinity or negative numbers"),
    (
        "search nameless.npy --pick 1 --labelled names.txt",
        3,
        "These features have no names: give the numbers of rows, from 0",
    ),
    ("embed run --data photos --out photos", 2, "photos"),
    ("embed run --data photos --out /proc/f.npz", 2, "Nothing can be written to /proc"),
    ("search f.npz --row 1 --sheet /proc/s.png --data photos", 2, "Nothing can be written to /proc"),
    ("embed run --data nowhere --out g.npz", 3, "nowhere"),
    ("embed run --data photos --out g.npz --workers -1", 2, "workers is -1"),
    ("embed nowhere --data photos --out g.npz", 2, "no encoder at nowhere"),
]


@pytest.mark.parametrize(("words", "code", "says"), BAD, ids=[words for words, _, _ in BAD])
def test_bad_input_is_one_sentence_and_an_exit_code_and_leaves_nothing(here, capsys, words, code, says):
    np.save("nan.npy", np.array([[1, 2], [3, np.nan], [4, 5]], dtype=np.float32))
    np.save("grays.npy", np.zeros((3, 9, 9), dtype=np.uint8))
    np.save("sevens.npy", np.full((11, 3), 7.0))
    np.save("minus.npy", np.full(11, -1.0))
    np.save("nameless.npy", Features.load("f.npz").x)
    (here / "header.npy").write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{")  # of 4 GB
    (here / "names.txt").write_text("00.png\nb\n")
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert main(words.split()) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.startswith(f"byol {words.split()[0]}: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(here.rglob("*")) == before
