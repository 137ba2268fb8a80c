"""Against Pillow and numpy: what every kind of picture becomes."""

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import decode, encoded, photo, png_16
from PIL import Image, ImageFile, ImageOps

from byol.data.decode import BadImage, Reading

LOSSLESS = ["PNG", "BMP", "TIFF", "WEBP"]
ORIENTATION = 0x0112


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels_that_were_saved(kind: str) -> None:
    pixels = photo()
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encoded(pixels, kind, **options)), pixels)


def test_jpeg_gives_what_pillow_gives(tmp_path: Path) -> None:
    data = encoded(photo(), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    assert np.array_equal(decode(data), np.asarray(Image.open(tmp_path / "a.jpg")))
    assert np.abs(decode(data).astype(int) - photo()).mean() < 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_many_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(decode(data), np.asarray(frames[0]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_opaque_mode_becomes_rgb_or_gray(mode: str, channels: int) -> None:
    picture = Image.fromarray(photo()).convert(mode)
    pixels = decode(encoded(picture), channels=channels)
    colours = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    assert np.array_equal(pixels, colours.reshape(40, 60, channels))


def test_transparency_is_laid_on_white() -> None:
    alpha = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
    on_white = (photo() * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)).round()
    rgba = np.dstack([photo(), alpha])
    assert np.abs(decode(encoded(rgba)) - on_white).max() <= 1
    gray = np.asarray(Image.fromarray(photo()).convert("L"))
    gray_on_white = gray * (alpha / 255) + 255 * (1 - alpha / 255)
    la = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])
    assert np.abs(decode(encoded(la), channels=1)[..., 0] - gray_on_white).max() <= 1


def test_a_transparent_palette_colour_is_white() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 2), 1)
    pixels = decode(encoded(palette, transparency=0))
    assert pixels[2, 1].tolist() == [200, 100, 50]
    assert (np.delete(pixels.reshape(-1, 3), 2 * 4 + 1, axis=0) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(kind: str) -> None:
    samples = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
    expected = (samples / 65535 * 255).round()
    for channels in (1, 3):
        pixels = decode(encoded(samples, kind), channels=channels)
        assert pixels.shape == (256, 256, channels)
        assert np.abs(pixels - expected[..., None]).max() <= 1


def test_float_tiff_from_0_to_1_is_scaled() -> None:
    samples = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    assert np.abs(decode(encoded(samples, "TIFF"))[..., 0] - samples * 255).max() <= 0.5 + 1e-4
    samples[3, 3] = np.nan
    with pytest.raises(BadImage, match="not finite"):
        decode(encoded(samples, "TIFF"))
    samples[3, 3] = 3000  # one picture alone does not tell what is white
    with pytest.raises(BadImage, match=r"from 0 to 3000; .*--data\.white"):
        decode(encoded(samples, "TIFF"))


def test_cmyk_jpeg_becomes_rgb() -> None:
    cmyk = Image.fromarray(photo()).convert("CMYK")
    assert np.abs(decode(encoded(cmyk, "JPEG", quality=95)).astype(int) - photo()).mean() < 4


def with_orientation(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"tiffinfo": exif} if kind == "TIFF" else {}
    return encoded(photo(), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str, tmp_path: Path) -> None:
    data = with_orientation(orientation, kind)
    (tmp_path / "a").write_bytes(data)
    with Image.open(tmp_path / "a") as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    assert expected.shape[:2] == ((60, 40) if orientation >= 5 else (40, 60))
    assert np.array_equal(decode(data), expected)
    assert Reading().size(data) == expected.shape[:2]


def test_damaged_exif_leaves_a_sound_picture_as_it_is() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert np.array_equal(decode(data), decode(encoded(photo(), "JPEG")))


def jpeg_claiming(height: int, width: int) -> bytes:
    data = bytearray(encoded(photo(), "JPEG"))
    place = data.index(b"\xff\xc0")  # start of frame: length, precision, height, width
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of_ones(height: int, width: int) -> bytes:
    """A black 1-bit PNG of any size in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = b"\0" * (1 + -(-width // 8))
    packed = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_the_pixel_limit_is_checked_on_the_header() -> None:
    data = encoded(photo())
    assert decode(data, max_pixels=40 * 60).shape == (40, 60, 3)
    with pytest.raises(BadImage, match=r"60x40 pixels are more than the limit of 2,399"):
        decode(data, max_pixels=40 * 60 - 1)
    assert Reading().size(jpeg_claiming(15_000, 15_001)) == (15_000, 15_001)  # more than Pillow's own limit
    with pytest.raises(BadImage, match="limit of 225,000,000"):
        decode(jpeg_claiming(15_000, 15_001), max_pixels=225_000_000)
    with pytest.raises(Image.DecompressionBombError):  # which others' use of Pillow keeps
        Image.open(BytesIO(jpeg_claiming(15_000, 15_001)))


def test_a_bomb_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_claiming(65_000, 65_000))
    (tmp_path / "b.jpg").write_bytes(jpeg_claiming(10_000, 10_000))
    (tmp_path / "c.png").write_bytes(png_of_ones(15_000, 15_000))
    assert (tmp_path / "c.png").stat().st_size < 50_000
    script = """
import sys, resource
from byol.data.decode import BadImage, Reading
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**31,) * 2)  # a bomb that goes off ends this process alone
for path in sys.argv[1:]:
    try:
        Reading().picture(open(path, "rb").read())
    except BadImage as failure:
        assert "more than the limit of 62,000,000" in str(failure), failure
    else:
        raise SystemExit(path + " was decoded")
assert peak() - before < 20, peak() - before
"""
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.png")]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


def large(kind: str, width: int, height: int) -> bytes:
    """A picture of one colour in one of the kinds that differ in the memory they take."""
    form, mode = {"transparent": ("PNG", "RGBA"), "webp": ("WEBP", "RGB"), "gray, see-through": ("PNG", "LA"),
                  "16 bits": ("PNG", "I;16"), "png": ("PNG", "RGB")}.get(kind, ("JPEG", "RGB"))  # fmt: skip
    picture, options = (
        Image.new(mode, (width, height), 90 if mode[0] in "LI" else (90, 20, 30, 100)[: len(mode)]),
        {},
    )
    if mode == "LA":
        picture.putalpha(100)
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    if kind == "webp":
        options["method"] = 0  # the fastest
    if kind == "progressive":
        options["progressive"] = True
    if kind == "one transparent colour":
        picture, form, options = picture.convert("P"), "PNG", {"transparency": 0}
    return encoded(picture, form, **options)


LIGHT, HEAVY = ("plain", "png", "turned"), (
    "transparent", "gray, see-through", "one transparent colour", "16 bits", "webp", "progressive",
)  # fmt: skip


@pytest.mark.parametrize("kind", LIGHT + HEAVY)
def test_what_takes_twice_the_memory_may_have_half_the_pixels(kind: str) -> None:
    data = large(kind, 64, 64)
    most = 64 * 64 * (1 if kind in LIGHT else 2)
    assert decode(data, max_pixels=most).shape[:2] == (64, 64)
    with pytest.raises(BadImage, match=r"64x64 pixels are more than the limit of"):
        decode(data, max_pixels=most - 2)


@pytest.mark.parametrize(("channels", "part"), [(3, 4), (4, 6)])
def test_colours_of_16_bits_may_have_a_quarter_of_the_pixels_and_fewer_with_alpha(channels, part) -> None:
    data = png_16(np.zeros((64, 64, channels), np.uint16))
    assert decode(data, max_pixels=part * 64 * 64).shape == (64, 64, 3)
    with pytest.raises(BadImage, match=r"64x64 pixels are more than the limit of 4,095"):
        decode(data, max_pixels=part * 64 * 64 - part)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["plain", "turned", "transparent", "16 bits", "colours of 16 bits", "and alpha", "webp", "progressive"],
)
def test_the_largest_picture_takes_no_more_than_500_MB_over_its_file(kind: str, tmp_path: Path) -> None:
    channels = {"colours of 16 bits": 3, "and alpha": 4}.get(kind)
    width = 7874 if kind in LIGHT else {None: 5567, 3: 3937, 4: 3214}[channels]
    path = tmp_path / (
        "a.jpg" if kind in (*LIGHT, "progressive") else "a.webp" if kind == "webp" else "a.png"
    )
    deep = channels and png_16(np.zeros((width, width, channels), np.uint16))
    path.write_bytes(deep or large(kind, width, width))
    script = """
import sys, resource
from byol.data.images import open_images
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
images = open_images([sys.argv[1]])
assert images.array(0).size == 3 * int(sys.argv[2]) ** 2
print(peak() - before)
"""
    words = [sys.executable, "-c", script, str(path), str(width)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 500


def test_a_text_chunk_bomb_is_a_bad_image() -> None:
    data = encoded(photo())
    text = b"Comment\0\0" + zlib.compress(b"a" * 80_000_000, 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    with pytest.raises(BadImage):
        decode(data[:33] + chunk + data[33:])


def in_parts(kind: str, count: int) -> bytes:
    """A picture and so many little parts that mean nothing."""
    data = encoded(photo(), "PNG" if "chunk" in kind else "GIF" if "GIF" in kind else "JPEG")
    part = {
        "segments of a JPEG": b"\xff\xef\0\2", "fill bytes of a JPEG": b"\xff",
        "Exif segments of a JPEG": b"\xff\xe1\0\x09Exif\0\0x",
        "comments of a GIF": b"!\xfe\1a\0",
    }.get(kind, struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt")))  # fmt: skip
    start = 33 if "chunk" in kind else 13 + 3 * 2 ** ((data[10] & 7) + 1) if "GIF" in kind else 2
    start = len(data) - 12 if "behind" in kind else start
    return data[:start] + count * part + data[start:]


PARTS = {
    "segments of a JPEG": 100_000, "fill bytes of a JPEG": 200_000, "Exif segments of a JPEG": 1000,
    "comments of a GIF": 100_000, "chunks of a PNG": 100_000, "chunks behind a PNG's pixels": 100_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_a_picture_in_a_million_parts_is_a_bad_image(kind: str) -> None:
    """20 MB of them took 700 MB of memory, 30 MB of Exif segments a minute: for 40 x 60 pixels."""
    with pytest.raises(BadImage, match="far more parts"):
        decode(in_parts(kind, PARTS[kind]))
    assert decode(in_parts(kind, 50)).shape == (40, 60, 3)


def test_a_tiff_of_a_million_strips_is_a_bad_image() -> None:
    """Each takes 8 bytes in the file and 250 in memory, wherever it ends."""
    for order, large in (("<", False), (">", False), ("<", True)):
        for count in (40, 300_000):
            head, entry, size = (16, "HHQQ", 20) if large else (8, "HHLL", 12)
            start = head + (8 if large else 2) + 9 * size + (8 if large else 4)
            ends = start + 60 * 40
            held = {
                256: 60,
                257: 40,
                258: 8,
                259: 1,
                262: 1,
                273: ends,
                277: 1,
                278: 1,
                279: ends + 4 * count,
            }
            data = {"<": b"II", ">": b"MM"}[order]
            data += struct.pack(order + "HHHQ", 43, 8, 0, 16) if large else struct.pack(order + "HL", 42, 8)
            data += struct.pack(order + ("Q" if large else "H"), len(held))
            for tag, value in held.items():
                data += struct.pack(order + entry, tag, 4, count if tag in (273, 279) else 1, value)
            data += bytes(8 if large else 4) + bytes(range(240)) * 10
            starts = [start + 60 * (strip % 40) for strip in range(count)]
            data += struct.pack(f"{order}{2 * count}L", *starts, *[60] * count)
            if count > 40:
                with pytest.raises(BadImage, match="it has 300,000 strips or tiles"):
                    decode(data)
            else:
                assert decode(data, channels=1).tobytes() == bytes(range(240)) * 10


def test_a_packed_bmp_that_pillow_reads_byte_by_byte_is_a_picture() -> None:
    rows = b"".join(bytes([1, column % 251]) for column in range(400)) + b"\0\0"
    pixels, palette = rows * 400 + b"\0\1", b"".join(bytes([v, v, v, 0]) for v in range(256))
    head = struct.pack("<LLLHHLLLLLL", 40, 400, 400, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + len(head) + len(palette)
    data = b"BM" + struct.pack("<LLL", start + len(pixels), 0, start) + head + palette + pixels
    expected = np.tile(np.arange(400) % 251, (400, 1))
    assert np.array_equal(decode(data, channels=1)[:, :, 0], expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_picture_is_a_bad_image(kind: str) -> None:
    data = encoded(photo(120, 160), kind)
    cuts = [len(data) // 10, len(data) // 2]
    if kind in ("JPEG", "WEBP", "BMP"):  # the others' last bytes hold no pixels
        cuts.append(len(data) - 2)
    for cut in cuts:
        with pytest.raises(BadImage):
            decode(data[:cut])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_counts_when_requested_with_what_pillow_makes_of_it(kind: str) -> None:
    pixels = photo(120, 160)
    data = encoded(pixels, kind)
    cut = data[: len(data) // 2]
    found = decode(cut, truncated=True)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        expected = np.asarray(Image.open(BytesIO(cut)).convert("RGB"))
    assert np.array_equal(found, expected)
    whole = decode(data)
    assert np.array_equal(found[:16], whole[:16])  # its rows come from above
    assert not np.array_equal(found, whole)
    assert np.array_equal(decode(data, truncated=True), whole)
    with pytest.raises(BadImage):
        decode(b"<html>" + bytes(100), truncated=True)


def test_pictures_with_a_side_below_the_limit_are_bad_images() -> None:
    for height, width in ((20, 30), (30, 20)):
        data, raw = encoded(photo(height, width), "PNG"), photo(height, width)
        for image in (data, raw):
            assert np.asarray(Reading(min_side=20).picture(image)).shape == (height, width, 3)
            with pytest.raises(BadImage, match=rf"{width}x{height} pixels have a side below the limit of 21"):
                Reading(min_side=21).picture(image)


@pytest.mark.parametrize("gray", [False, True])
def test_a_jpeg_whose_data_end_too_soon_is_a_bad_image(gray: bool) -> None:
    """Pillow makes gray of what is missing and says nothing."""
    pixels = photo(120, 160)[..., 0] if gray else photo(120, 160)
    data = encoded(pixels, "JPEG", quality=95)
    half, late = len(data) * 3 // 5, len(data) - 12
    for damaged in (
        data[:half] + b"\xff\xd9",
        data[:half] + b"\xff\xe7" + data[half:],
        data[:late] + b"\xff\xd9",  # of the last row a part is there
        data[:half] + data[half + 60 :],
    ):
        assert np.asarray(Image.open(BytesIO(damaged))).shape == pixels.shape
        with pytest.raises(BadImage, match=r"damaged|truncated"):
            decode(damaged)


def test_a_jpeg_whose_data_go_on_behind_its_last_pixel_is_a_bad_image() -> None:
    """As after a flipped bit that had the decoder take several codes for one; Pillow says nothing."""
    data = encoded(photo(120, 160), "JPEG", quality=95)
    half = len(data) // 2
    with pytest.raises(BadImage, match="damaged"):
        decode(data[:half] + data[half - 400 :])
    for spare in (b"\xff" * 500, bytes(500), b"\x12\x34\x56\x78"):  # as some programs and cameras write it
        assert np.array_equal(decode(data[:-2] + spare + data[-2:]), decode(data))
    assert np.array_equal(decode(data + data[half:]), decode(data))  # a film behind it


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_flipped_bit_is_a_bad_image_or_what_pillow_makes_of_it(kind: str) -> None:
    """A PNG has checksums; of a JPEG most such bits only change colours, and nobody can tell."""
    generator, told, tried = np.random.default_rng(0), 0, 0
    for seed in range(5):
        noise = generator.normal(0, 12, (120, 160, 3))
        data = encoded((photo(120, 160, seed) + noise).clip(0, 255).astype(np.uint8), kind, quality=90)
        first, end = (data.index(b"\xff\xda") + 14, -2) if kind == "JPEG" else (data.index(b"IDAT") + 4, -16)
        for place in generator.integers(first, len(data) + end, 40):
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(generator.integers(8))
            tried += 1
            try:
                found = decode(bytes(damaged))
            except BadImage:
                told += 1
            else:
                assert np.array_equal(found, np.asarray(Image.open(BytesIO(damaged)).convert("RGB")))
    assert told == tried if kind == "PNG" else 20 < told < 100


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_a_sound_jpeg_may_be_gray_below(options: dict[str, Any]) -> None:
    for side in range(1, 70):
        pixels = photo(side + 20, side)
        pixels[side // 2 :] = 128
        data = encoded(pixels, "JPEG", subsampling=side % 3, optimize=bool(side % 2), **options)
        assert np.array_equal(decode(data), np.asarray(Image.open(BytesIO(data))))


@pytest.mark.parametrize("kind", ["L", "RGB", "CMYK"])
def test_sound_jpegs_of_every_quality_and_size_are_what_pillow_makes_of_them(kind: str) -> None:
    for side in (1, 7, 8, 9, 16, 33, 300):
        picture = Image.fromarray(photo(side, 2 * side)).convert(kind)
        for quality in (1, 30, 75, 100):
            data = encoded(picture, "JPEG", quality=quality, subsampling=quality % 3)
            expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
            assert np.array_equal(decode(data), expected)


def test_a_jpeg_of_hundreds_of_scans_is_a_bad_image() -> None:
    """A few bytes have the decoder go through the whole picture again: 400 times take minutes."""
    data = encoded(Image.new("RGB", (800, 800)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match="scans"):
        decode(data[:last] + 400 * data[last:-2] + data[-2:])
    hidden = b"\xff\xef" + struct.pack(">H", 2 + 80) + 40 * b"\xff\xda"
    with pytest.raises(BadImage, match="scans"):  # in segments that would take minutes to go through
        decode(data[:last] + 100_000 * b"\xff\xef\0\2" + hidden + data[last:])
    film = encoded(photo(), "JPEG") + 400 * b"\xff\xda...."  # a phone's moving picture behind it
    assert decode(film).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>404</html>", "a web page or XML"),
        (b"\n  <svg xmlns='http://www.w3.org/2000/svg'/>", "a web page or XML"),
        (b"These are no pixels.", "none of JPEG, PNG, WEBP, BMP, TIFF, GIF"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, "none of JPEG"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
            "none of JPEG",
        ),  # Pillow alone would start Ghostscript
    ],
)
def test_what_is_not_a_picture_says_what_it_is(data: bytes, reason: str) -> None:
    for read in (decode, Reading().size):
        with pytest.raises(BadImage, match=reason):
            read(data)


@pytest.mark.parametrize("size", [(1, 1), (2, 400), (400, 2)])
def test_extreme_shapes_are_decoded(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 7, dtype=np.uint8)
    assert np.array_equal(decode(encoded(pixels)), pixels)


def test_pictures_are_loaded_and_of_one_mode() -> None:
    for channels, mode in ((3, "RGB"), (1, "L")):
        for source in (encoded(photo(), "JPEG"), Image.fromarray(photo())):
            picture = Reading(channels).picture(source)
            assert isinstance(picture, Image.Image)
            assert (picture.mode, picture.size) == (mode, (60, 40))
