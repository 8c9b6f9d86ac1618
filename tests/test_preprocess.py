"""The one decode and resize: every policy of `tkfnet_engine.preprocess`, and that damage never becomes a picture."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tkfnet_engine import preprocess
from tkfnet_engine.errors import ImageError, UsageError
from tkfnet_engine.preprocess import check_crop, crop_box, decode_image, resize_crop, stack_crops

from .damaged_images import mutated

NOISE = np.random.default_rng(7).integers(0, 256, (23, 17, 3), np.uint8)
ACROSS, DOWN = np.meshgrid(np.linspace(0, 255, 40), np.linspace(0, 255, 48))
SMOOTH = np.stack([ACROSS, DOWN, np.full_like(DOWN, 90)], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, color, rows=b"", extra=b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


ENCODINGS = {
    "PNG": encoded(SMOOTH),
    "JPEG": encoded(SMOOTH, "JPEG", quality=90),
    "JPEG progressive": encoded(SMOOTH, "JPEG", progressive=True),
    "JPEG restarts": encoded(SMOOTH, "JPEG", restart_marker_blocks=2, comment="x" * 50),
    "WEBP": encoded(SMOOTH, "WEBP"),
    "WEBP lossless": encoded(SMOOTH, "WEBP", lossless=True),
    "BMP": encoded(SMOOTH, "BMP"),
    "BMP grey": encoded(Image.fromarray(SMOOTH).convert("L"), "BMP"),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_sources_agree(kind, tmp_path):
    data = ENCODINGS[kind]
    path = tmp_path / "face.jpg"
    path.write_bytes(data)
    image = decode_image(data)
    assert image.dtype == np.uint8 and image.shape == (48, 40, 3) and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, np.array(Image.open(io.BytesIO(data)).convert("RGB")))
    with open(path, "rb") as stream:
        for source in (str(path), path, bytearray(data), memoryview(data), io.BytesIO(data), stream):
            np.testing.assert_array_equal(decode_image(source), image)
    np.testing.assert_array_equal(decode_image(data + b"motion photo"), image)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(9))
def test_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", orientation
    data = encoded(SMOOTH, kind, exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), np.array(reference))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_orientation_byte_orders_and_damaged_tags(order):
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)
    good = head + struct.pack(order + "IH", 8, 1) + entry
    endless = head + struct.pack(order + "IH", 2**32 - 1, 1) + entry
    other = [good.replace(struct.pack(order + "H", 6), struct.pack(order + "H", v)) for v in (0, 9, 65535)]

    def shape(exif):
        return decode_image(png(2, 3, 8, 2, bytes(21), png_chunk(b"eXIf", exif))).shape[:2]

    assert shape(good) == (2, 3)
    for damaged in (b"", head, good[:-1], good[:9], endless, b"??" + good[2:], *other):
        assert shape(damaged) == (3, 2)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", ENCODINGS)
def test_truncated(kind, lenient, monkeypatch):
    """At every length: refused, or (a PNG that lacks only what follows its pixels) the same picture."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data, accepted = ENCODINGS[kind], 0
    whole = decode_image(data)
    for keep in range(len(data)):
        try:
            image = decode_image(data[:keep])
        except ImageError as error:
            assert "copy it" in str(error)
        else:
            np.testing.assert_array_equal(image, whole)
            accepted += 1
    assert accepted <= (20 if kind == "PNG" else 0) and ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_threads_while_another_library_is_lenient(monkeypatch):
    """No thread of ours decodes with the lenient setting, and it stands again once all are done."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    failures = []

    def work():
        try:
            for _ in range(100):
                np.testing.assert_array_equal(decode_image(ENCODINGS["PNG"]), SMOOTH)
                with pytest.raises(ImageError, match=r"truncated .*; copy it or download it again"):
                    decode_image(ENCODINGS["JPEG"][:-2])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and ImageFile.LOAD_TRUNCATED_IMAGES is True


def forged(kind: str, width: int, height: int) -> bytes:
    if kind == "PNG":
        return png(width, height, 8, 2)
    data = bytearray(encoded(np.zeros((1, 1, 3), np.uint8), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        data[12:12] = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides
        data[4:8] = struct.pack("<I", len(data) - 8)
    return bytes(data)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and an enforced memory limit")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_forged_size_is_refused_without_its_memory(kind, tmp_path):
    (tmp_path / "forged").write_bytes(forged(kind, 40_000, 40_000))
    script = (
        "import resource, sys; from tkfnet_engine.preprocess import decode_image, ImageError\n"
        "most = 2**26 + int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "try: decode_image(sys.argv[1])\n"
        "except ImageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "forged"]
    root = Path(preprocess.__file__).parents[1]
    said = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout
    assert "1600000000 pixels" in said and "at most 50,000,000 " in said and "shrink" in said


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [(10_000, 5_000, True), (10_000, 5_001, False), (16_384, 1, True), (16_385, 1, False), (1, 16_385, False)],
)
def test_size_limits_both_sides(width, height, fits):
    # Within the limits the forged file is refused further on, for having no pixels.
    with pytest.raises(ImageError, match="damaged" if fits else f"its header says {width} x {height} pixels"):
        decode_image(forged("PNG", width, height))


@pytest.mark.parametrize("limit", [500, 1000])
def test_pillows_own_size_limit_is_an_image_error(monkeypatch, limit):
    # Below half the picture's 1920 pixels Pillow raises, from there on it warns, and warnings may be errors.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="1920 pixels"):
            decode_image(ENCODINGS["PNG"])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 16_383)])
def test_odd_sizes(kind, shape):
    assert decode_image(encoded(np.full((*shape, 3), 128, np.uint8), kind)).shape == (*shape, 3)


# Modes


def test_grey_bilevel_palette_and_profile():
    grey = Image.fromarray(NOISE).convert("L")
    np.testing.assert_array_equal(decode_image(encoded(grey)), np.repeat(np.array(grey)[..., None], 3, 2))
    assert set(np.unique(decode_image(encoded(grey.convert("1"))))) == {0, 255}
    palette = Image.fromarray(NOISE).quantize(32)
    np.testing.assert_array_equal(decode_image(encoded(palette)), np.array(palette.convert("RGB")))
    np.testing.assert_array_equal(decode_image(encoded(NOISE, icc_profile=b"not a profile")), NOISE)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_blended_over_black(mode):
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = np.full((16, 16), 200, np.uint8)
    data = encoded(np.dstack([colour, colour, colour, alpha]))
    if mode == "LA":
        data = encoded(Image.merge("LA", [Image.fromarray(colour), Image.fromarray(alpha)]))
    elif mode == "PA":
        rows = b"".join(b"\0" + row.tobytes() for row in alpha)
        extra = png_chunk(b"PLTE", bytes([200]) * 768) + png_chunk(b"tRNS", bytes(range(256)))
        data = png(16, 16, 8, 3, rows, extra)
    image = decode_image(data)
    assert np.abs(image - np.round(200.0 * alpha / 255)[..., None]).max() <= 1
    assert image[0, 0].max() == 0 and image[-1, -1].min() == 200


def test_colour_keys_and_invisible_pictures():
    rows = b"".join(b"\0" + bytes([10, 20, 30, 40, 50, 60]) for _ in range(2))
    keyed = png(2, 2, 8, 2, rows, png_chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30)))
    assert decode_image(keyed)[0].tolist() == [[0, 0, 0], [40, 50, 60]]
    palette = png(2, 1, 8, 3, b"\0\0\1", png_chunk(b"PLTE", bytes([9, 9, 9, 7, 7, 7])) + png_chunk(b"tRNS", b"\0"))
    assert decode_image(palette).tolist() == [[[0, 0, 0], [7, 7, 7]]]
    assert not decode_image(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))).any()


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_keeps_the_high_byte(color, channels):
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    samples = np.repeat(ramp[..., None], channels, 2)
    if color >= 4:
        samples[..., -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    np.testing.assert_array_equal(decode_image(png(64, 64, 16, color, rows))[..., 0], ramp >> 8)


@pytest.mark.parametrize("marked", [True, False])
def test_cmyk_follows_adobe(marked):
    data = encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95, subsampling=0)
    if not marked:
        at = data.index(b"\xff\xee")
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert np.abs(decode_image(data).astype(int) - SMOOTH).max() <= 12


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "MPO"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert image.shape == (10, 20, 3) and np.abs(image.astype(int) - (255, 0, 0)).max() <= 1


# Sources


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"), (b"<!DOCTYPE html><html>not found</html>", "HTML"), (b"II*\0" + bytes(40), "TIFF"),
        (b"GIF89a" + bytes(40), "GIF"), (b"%PDF-1.7", "PDF"), (bytes(4) + b"ftypheic", "HEIC"),
        (b"\0\1\2", "00 01 02"), (b"\xff\xd8\xff\xd9", "ff d8 ff d9"),
    ],
)  # fmt: skip
def test_what_is_no_image_says_what_it_is(content, found, tmp_path):
    path = tmp_path / "face.jpg"
    path.write_bytes(content)
    for source, name in ((path, "face.jpg"), (content, "^<bytes>")):
        with pytest.raises(ImageError, match=f"{name}: .*{found}"):
            decode_image(source)


def test_paths_that_are_no_file(tmp_path):
    for path, found in (
        (tmp_path / "none.jpg", "none.jpg: no such file"),
        (tmp_path, "a folder|Permission"),
        ("a\0b.jpg", r"a\\x00b\.jpg: cannot be read"),
        ("x" * 5000, "cannot be read"),
        (tmp_path / "two\nlines.jpg", r"two\\nlines\.jpg: no such file"),
    ):
        with pytest.raises(ImageError, match=found) as caught:
            decode_image(path)
        assert "\n" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_named_pipes_and_devices_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(ImageError, match=r"a pipe or a device"):
            decode_image(path)


def test_streams():
    used, closed = io.BytesIO(ENCODINGS["PNG"]), io.BytesIO(b"x")
    used.read()
    closed.close()
    for stream, found in ((used, "rewind"), (closed, "closed"), (io.StringIO("text"), "mode 'rb'")):
        with pytest.raises(ImageError, match=found):
            decode_image(stream)

    class Trickle(io.RawIOBase):
        rest = ENCODINGS["JPEG"]

        def read(self, size=-1):
            part, self.rest = self.rest[:100], self.rest[100:]
            return part

    np.testing.assert_array_equal(decode_image(Trickle()), decode_image(ENCODINGS["JPEG"]))
    for other in (None, 3, NOISE):
        with pytest.raises(ImageError, match=f"got {type(other).__name__}, expected a path"):
            decode_image(other)


def test_overlong_input(monkeypatch, tmp_path):
    monkeypatch.setattr(preprocess, "MAX_BYTES", 1000)
    (tmp_path / "long.png").write_bytes(b"\x89PNG" + bytes(2000))
    for source in (tmp_path / "long.png", io.BytesIO(bytes(2000)), bytes(2000)):
        with pytest.raises(ImageError, match="more than 1,000 bytes"):
            decode_image(source)


# Damage


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_mutated_files(monkeypatch):
    """2,000 damaged files: refused with `ImageError` or a well-formed picture, the same whatever Pillow is set to."""
    rng = np.random.default_rng(11)
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [encoded(SMOOTH, kind, exif=exif) for kind in ("JPEG", "WEBP")]
    seeds += [encoded(Image.fromarray(NOISE).quantize(16)), *ENCODINGS.values()]

    def outcome(data, lenient):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
        try:
            image = decode_image(data)
        except ImageError as error:
            assert str(error).startswith("<bytes>: ") and "\n" not in str(error)
            return None
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
        return image

    refused = 0
    for number in range(2000):
        data = mutated(seeds[number % len(seeds)], rng)
        strict = outcome(data, lenient=False)
        np.testing.assert_array_equal(outcome(data, lenient=True), strict)
        refused += strict is None
    assert 200 < refused < 2000


# Crops


def test_crop_box():
    cut = crop_box(NOISE, (2, 3, 5, 7))
    np.testing.assert_array_equal(cut, NOISE[3:10, 2:7])
    assert cut.flags.c_contiguous and not np.shares_memory(cut, NOISE)
    np.testing.assert_array_equal(crop_box(NOISE, np.array([0, 0, 17, 23])), NOISE)
    outside = [(-1, 0, 3, 3), (0, 0, 18, 1), (0, 0, 1, 24), (16, 22, 2, 1), (0, 0, 0, 4), (0, 0, 4, -1)]
    for box in (*outside, (1, 2, 3), (0, 0, 1.5, 2), None, "abcd"):
        with pytest.raises(ImageError, match="box: got"):
            crop_box(NOISE, box)


def test_resize_crop():
    for size in (1, 7, 64):
        out = resize_crop(NOISE, size)
        reference = Image.fromarray(NOISE).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(out, np.array(reference))
        assert out.dtype == np.uint8 and out.shape == (size, size, 3) and out.flags.c_contiguous
    square = resize_crop(NOISE)
    assert square.shape == (224, 224, 3) and resize_crop(square) is square
    # Shrinking averages: a one-pixel checkerboard becomes grey, not black or white.
    board = np.repeat(((np.indices((256, 256)).sum(0) % 2) * 255).astype(np.uint8)[..., None], 3, 2)
    assert np.abs(resize_crop(board, 32).astype(int) - 127).max() < 8
    for size in (0, -1, 1.5, True, "224", None, 16_385):
        with pytest.raises(UsageError, match="size: got"):
            resize_crop(NOISE, size)


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (NOISE / 255.0, r"float64 \[23, 17, 3\].*\* 255"), (NOISE.astype(np.float32), "round"),
        (NOISE / 100.0 - 1, "normalisation"), (np.full((4, 4, 3), np.nan), "float64"),
        (np.full((4, 4, 3), "a"), "expected an array uint8"), (NOISE.astype(np.int64), "int64.*astype"),
        (NOISE > 9, "bool.*255"), (NOISE[..., 0], "grey"), (NOISE[..., :1], "grey"), (NOISE[None], "batch"),
        (NOISE.transpose(2, 0, 1), r"transpose\(1, 2, 0\)"), (np.zeros((5, 5, 4), np.uint8), "alpha.*OpenCV"),
        (np.zeros((0, 5, 3), np.uint8), "empty"), (np.zeros(5, np.uint8), "R, G and B"),
        (Image.fromarray(NOISE), "got Image.*np.asarray"), ("face.jpg", "got str.*decode_image"), ([], "got list"),
    ],
)  # fmt: skip
def test_check_crop_says_what_was_meant(image, hint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=f"image: .*{hint}"):
            check_crop(image)


def test_check_crop_accepts_any_strides():
    assert np.shares_memory(check_crop(NOISE), NOISE)
    for view in (NOISE[::-1, ::2], NOISE[..., ::-1], np.asfortranarray(NOISE), NOISE.transpose(1, 0, 2)):
        assert check_crop(view).flags.c_contiguous
        np.testing.assert_array_equal(check_crop(view), view)


def test_stack_crops():
    stack = stack_crops([NOISE, NOISE[:5], np.zeros((9, 9, 3), np.uint8)], 9)
    assert stack.shape == (3, 9, 9, 3) and stack.dtype == np.uint8 and stack.flags.c_contiguous
    np.testing.assert_array_equal(stack[0], resize_crop(NOISE, 9))
    np.testing.assert_array_equal(stack_crops(np.stack([NOISE, NOISE]), 9)[1], stack[0])
    assert stack_crops(stack, 9) is stack
    for none in ([], (), np.empty((0, 5, 5, 3), np.uint8), np.array([])):
        assert stack_crops(none).shape == (0, 224, 224, 3) and stack_crops(none).dtype == np.uint8
    with pytest.raises(ImageError, match=r"crop 1 .*float"):
        stack_crops([NOISE, NOISE / 255.0])
    with pytest.raises(ImageError, match=r"one array \[23, 17, 3\].*in a list"):
        stack_crops(NOISE)
    for wrong in ("face.jpg", None, 3):
        with pytest.raises(ImageError, match="images: got"):
            stack_crops(wrong)
    with pytest.raises(UsageError, match="size"):
        stack_crops([], 0)
