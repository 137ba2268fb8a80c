import numpy as np
from PIL import Image

from byol.cli import main


def test_the_sheet_shows_images_beside_their_two_views(labelled, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["views", str(labelled), "--out", str(sheet), "--count", "3"]) == 0
    assert "views      for photos: crops of 20 to 100 %" in capsys.readouterr().out
    pixels = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    middles = pixels[74, 74::138][:9]  # of an image and its two views, three times; a tile is 138 pixels wide
    assert middles.shape == (9, 3)
    assert middles[[0, 3, 6]].argmax(axis=1).tolist() == [2, 1, 0]  # folders by name: blue, green, red


def test_fewer_images_than_were_requested_are_shown_once_each(tmp_path):
    np.save(
        tmp_path / "images.npy", np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    )
    sheets = [tmp_path / "a.png", tmp_path / "b.png"]
    for sheet, count in zip(sheets, ("2", "15"), strict=True):
        assert main(["views", str(tmp_path / "images.npy"), "--out", str(sheet), "--count", count]) == 0
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_views_without_any_change_are_the_image(tmp_path, capsys):
    gradient = np.linspace(0, 255, 32, dtype=np.uint8)
    picture = np.stack(
        [gradient[:, None].repeat(32, 1), gradient[None].repeat(32, 0), np.full((32, 32), 90, np.uint8)], 2
    )
    np.save(tmp_path / "images.npy", picture[None].repeat(8, 0))
    off = "--views.crop-area 1 1 --views.crop-ratio 1 1 --views.flip 0 --views.jitter 0 --views.grayscale 0"
    flags = f"{off} --views.blur 0 0 --views.solarize 0 0 --image-size 32 --count 1 --kind paper".split()
    sheet = tmp_path / "sheet.png"
    assert main(["views", str(tmp_path / "images.npy"), "--out", str(sheet), *flags]) == 0
    pixels = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    image, view1, view2 = (pixels[10:138, 10 + 138 * place : 138 + 138 * place] for place in range(3))
    assert np.abs(view1 - image)[4:-4, 4:-4].max() <= 2
    assert np.abs(view2 - image)[4:-4, 4:-4].max() <= 2


def test_nothing_to_show_and_no_place_for_a_sheet_are_sentences(labelled, tmp_path, capsys):
    assert main(["views", str(labelled), "--out", str(tmp_path / "sheet.txt")]) == 2
    assert ".png" in capsys.readouterr().err
    for count in ("0", "-2"):
        assert main(["views", str(labelled), "--out", str(tmp_path / "a.png"), "--count", count]) == 2
        assert f"count is {count}" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["views", str(tmp_path / "empty"), "--out", str(tmp_path / "a.png")]) == 3
