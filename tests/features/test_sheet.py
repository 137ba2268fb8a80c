"""Picture sheets: what is drawn where."""

import os
import pickle
import tarfile
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol.data.images import open_images
from byol.errors import ByolError, ConfigError, DataError
from byol.features.features import Features
from byol.features.sheet import COLUMNS, GAP, LINE, SIDE, Cell, pictures, shortened, write_sheet

WIDE, TALL = SIDE + GAP, SIDE + GAP + 2 * LINE


def plain(colour: str, size: tuple[int, int] = (50, 50)) -> Image.Image:
    return Image.new("RGB", size, colour)


def drawn(groups, tmp_path) -> Image.Image:
    write_sheet(groups, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as page:
        return page.convert("RGB")


def colour_at(page: Image.Image, row: int, column: int) -> tuple[int, ...]:
    """Of the middle of a picture."""
    return page.getpixel((GAP + column * WIDE + SIDE // 2, GAP + row * TALL + SIDE // 2))


def test_each_group_starts_a_line_and_long_ones_go_on_below(tmp_path):
    groups = [
        [Cell(plain("red"), ("query", "a"), framed=True), Cell(plain("lime"), ("0.9", "b"))],
        [Cell(plain("blue"), ("1", "c"))] * (COLUMNS + 1),
    ]
    page = drawn(groups, tmp_path)
    assert page.size == (GAP + COLUMNS * WIDE, GAP + 3 * TALL)
    assert [colour_at(page, 0, column) for column in range(3)] == [(255, 0, 0), (0, 255, 0), (255, 255, 255)]
    assert {colour_at(page, 1, column) for column in range(COLUMNS)} == {(0, 0, 255)}
    assert [colour_at(page, 2, column) for column in range(2)] == [(0, 0, 255), (255, 255, 255)]
    assert page.getpixel((GAP - 2, GAP - 2)) == (0, 0, 0)  # the frame of the query
    assert page.getpixel((GAP + WIDE - 2, GAP - 2)) == (255, 255, 255)


def test_pictures_are_shown_whole_and_unstretched(tmp_path):
    for size, reach in (((400, 100), (60, 12)), ((10, 40), (12, 60))):
        page = drawn([[Cell(plain("red", size), ("", ""))]], tmp_path)
        middle = GAP + SIDE // 2
        for across, down in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            assert page.getpixel((middle + across * reach[0], middle + down * reach[1])) == (255, 0, 0)
        outside = (middle, GAP + 20) if size[0] > size[1] else (GAP + 20, middle)
        assert page.getpixel(outside) == (245, 245, 245)


def test_words_are_drawn_under_their_picture_and_stay_there(tmp_path):
    page = np.asarray(
        drawn([[Cell(plain("red"), ("0.9", "W" * 500)), Cell(plain("red"), ("", ""))]], tmp_path)
    )
    below = page[GAP + SIDE + 1 :, :, :].min(axis=2) < 128
    assert below[:, GAP : GAP + SIDE].any()
    assert not below[:, GAP + SIDE :].any()


def test_hostile_names_are_drawn_as_text(tmp_path):
    from PIL import ImageFont

    font = ImageFont.load_default(12)
    for name in (
        "line\nend",
        os.fsdecode(b"\xff\xfe.png"),
        "猫🐈.png",
        "\x1b[31m",
        "‮gnp.exe",
        "",
        "\x00",
        "x" * 5000,
    ):
        assert font.getlength(shortened(name, font)) <= SIDE
        assert "\n" not in shortened(name, font)
        drawn([[Cell(plain("red"), (name, name))]], tmp_path)
    assert shortened("folder/with a long name/the end.png", font).endswith("the end.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_suffix_decides_the_format(tmp_path, suffix):
    write_sheet([[Cell(plain("red"), ("",))]], tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as page:
        assert page.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]


@pytest.mark.parametrize("name", ["a.gif", "a", "folder.png"])
def test_a_sheet_that_cannot_be_written_is_told(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match="The sheet is"):
        write_sheet([[Cell(None, ("",))]], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_page_too_long_for_the_format_is_told_and_leaves_nothing(tmp_path):
    with pytest.raises(ByolError, match="cannot be written"):
        write_sheet([[Cell(None, ("",))]] * 120, tmp_path / "a.webp")  # at most 16,383 pixels
    assert not list(tmp_path.iterdir())


# Which picture belongs to which row


def test_pictures_are_found_by_name_and_only_among_the_given_images(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, colour in enumerate(("red", "lime", "blue")):
        plain(colour).save(tmp_path / "photos" / f"{number}.png")
    plain("red").save(tmp_path / "secret.png")
    (tmp_path / "photos" / "3.png").write_bytes(b"")
    names = ["2.png", "../secret.png", str(tmp_path / "secret.png"), "0.png", "3.png", "gone.png", "2.png"]
    found = pictures(open_images(tmp_path / "photos"), Features(np.eye(7), names=names), set(range(7)))
    assert {row: picture.getpixel((64, 64)) for row, picture in found.items()} == {
        0: (0, 0, 255), 3: (255, 0, 0), 6: (0, 0, 255)
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "tar", "urls"])
def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path, monkeypatch, kind):
    """Each colour in a file of its own, all called alike: by its name the row of blue is the blue picture."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    colours = ("red", "lime", "blue")
    for colour in colours:
        (tmp_path / "set" / colour).mkdir(parents=True)
        stream = BytesIO()
        plain(colour).save(stream, "PNG")
        path = tmp_path / "set" / colour / ("0.parquet" if kind == "parquet" else "0.tar")
        if kind == "parquet":
            pq.write_table(pa.table({"image": [{"bytes": stream.getvalue()}]}), path)
            continue
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("0.png")
            info.size = len(stream.getvalue())
            archive.addfile(info, BytesIO(stream.getvalue()))
    urls = [f"file://{tmp_path}/set/{colour}/0.tar" for colour in sorted(colours)]
    images = open_images(urls if kind == "urls" else tmp_path / "set")
    ending = "parquet:0" if kind == "parquet" else "tar:0.png"
    names = [images.name(row) for row in range(3)]
    assert names == [f"{colour}/0.{ending}" for colour in sorted(colours)]
    found = pictures(images, Features(np.eye(3), names=names), {0, 2})
    assert {row: picture.getpixel((64, 64)) for row, picture in found.items()} == {
        0: (0, 0, 255), 2: (255, 0, 0)
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(images)).name(1) == names[1]
    alone = open_images(urls[:1] if kind == "urls" else tmp_path / "set" / "blue")
    assert alone.name(0) == f"0.{ending}"


def test_without_names_the_row_is_the_image_if_their_numbers_agree():
    images = open_images(np.stack([np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (0, 100, 200)]))
    assert pictures(images, Features(np.eye(3)), {2})[2].getpixel((64, 64)) == (200, 200, 200)
    with pytest.raises(DataError, match="None of the 1 images to show is in 3 images in"):
        pictures(images, Features(np.eye(4)), {2})


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels_are_shown(channels):
    images = open_images(np.full((3, 8, 8, channels), 90, dtype=np.uint8))
    assert pictures(images, Features(np.eye(3)), {1})[1].getpixel((64, 64)) == (90, 90, 90)


def test_other_images_than_those_embedded_are_told(tmp_path):
    plain("red").save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"None of the 2 images to show is in 1 image in .*as they were given to `byol embed`"
    ):
        pictures(open_images(tmp_path), Features(np.eye(2), names=["b.png", "c.png"]), {0, 1})
