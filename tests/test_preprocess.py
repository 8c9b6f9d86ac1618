"""The one decode and resize: every policy of `tkfnet_engine.preprocess`, and that damage never becomes a picture."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tkfnet_engine import preprocess
from tkfnet_engine.errors import ImageError, UsageError
from tkfnet_engine.preprocess import check_crop, crop_box, decode_image, resize_crop, stack_crops

RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (23, 17, 3), np.uint8)
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
EXACT = ("PNG", "WEBP lossless", "BMP")


@pytest.mark.parametrize("kind", ENCODINGS)
def test_sources_agree(kind, tmp_path):
    data = ENCODINGS[kind]
    path = tmp_path / "face.jpg"
    path.write_bytes(data)
    image = decode_image(data)
    assert image.dtype == np.uint8 and image.shape == (48, 40, 3) and image.flags.c_contiguous and image.flags.writeable
    reference = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(image, reference)
    for source in (str(path), path, bytearray(data), memoryview(data), io.BytesIO(data)):
        np.testing.assert_array_equal(decode_image(source), image)
    with open(path, "rb") as stream:
        np.testing.assert_array_equal(decode_image(stream), image)
    if kind in EXACT:
        np.testing.assert_array_equal(image, SMOOTH)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(9))
def test_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    data = encoded(SMOOTH, kind, exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), np.array(reference))


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_byte_orders_and_damaged_tags(order):
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)
    good = head + struct.pack(order + "IH", 8, 1) + entry

    def shape(exif):
        rows = b"".join(b"\0" + bytes(6) for _ in range(3))
        return decode_image(png(2, 3, 8, 2, rows, png_chunk(b"eXIf", exif))).shape[:2]

    assert shape(good) == (2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for damaged in (
            b"",
            head,
            good[:-1],
            good[:9],
            head + struct.pack(order + "IH", 2**32 - 1, 1) + entry,
            b"??" + good[2:],
        ):
            assert shape(damaged) == (3, 2)
        for value in (0, 9, 65535):
            assert shape(good.replace(struct.pack(order + "H", 6), struct.pack(order + "H", value))) == (3, 2)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", ENCODINGS)
def test_truncated(kind, lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = ENCODINGS[kind]
    decode_image(data)
    for keep in range(len(data)):
        with pytest.raises(ImageError, match=r"truncated|not an image|empty"):
            decode_image(data[:keep])


def test_truncated_names_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(ENCODINGS["JPEG"][:-2])
    with pytest.raises(ImageError, match=r"half\.jpg: truncated JPEG.*copy or download it again"):
        decode_image(path)


def test_trailing_bytes_are_harmless():
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        np.testing.assert_array_equal(decode_image(ENCODINGS[kind] + b"motion photo"), decode_image(ENCODINGS[kind]))


def forged(kind: str, width: int, height: int) -> bytes:
    data = bytearray(encoded(np.zeros((1, 1, 3), np.uint8), kind, **({"lossless": False} if kind == "WEBP" else {})))
    if kind == "PNG":
        return png(width, height, 8, 2)
    if kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        body = (
            b"VP8X"
            + struct.pack("<I", 10)
            + bytes(4)
            + (width - 1).to_bytes(3, "little")
            + (height - 1).to_bytes(3, "little")
        )
        data[12:12] = body
        data[4:8] = struct.pack("<I", len(data) - 8)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_size_is_refused_from_the_header(kind):
    data = forged(kind, 40_000, 40_000)
    tracemalloc.start()
    try:
        start = time.perf_counter()
        with pytest.raises(ImageError, match=r"40000 x 40000 pixels.*shrink"):
            decode_image(data)
        assert time.perf_counter() - start < 0.05
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [
        (10_000, 5_000, True),
        (10_000, 5_001, False),
        (16_384, 1, True),
        (16_385, 1, False),
        (1, 16_385, False),
        (0, 9, False),
    ],
)
def test_size_limits_both_sides(width, height, fits):
    # Within the limits the forged file is refused further on, for having no pixels.
    with pytest.raises(ImageError, match="damaged|truncated" if fits else "its header says"):
        decode_image(forged("PNG", width, height))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (3, 16_383)])
def test_odd_sizes(kind, shape):
    assert decode_image(encoded(np.full((*shape, 3), 128, np.uint8), kind)).shape == (*shape, 3)


# Modes


def test_grey_and_bilevel():
    grey = Image.fromarray(NOISE).convert("L")
    image = decode_image(encoded(grey))
    np.testing.assert_array_equal(image, np.repeat(np.array(grey)[..., None], 3, 2))
    assert set(np.unique(decode_image(encoded(grey.convert("1"))))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_composited_over_black(mode):
    alpha = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
    colour = np.full((16, 16), 200, np.uint8)
    if mode == "RGBA":
        data = encoded(Image.fromarray(np.dstack([colour, colour, colour, alpha])))
    elif mode == "LA":
        data = encoded(Image.merge("LA", [Image.fromarray(colour), Image.fromarray(alpha)]))
    else:
        indices = b"".join(b"\0" + bytes(range(row * 16, row * 16 + 16)) for row in range(16))
        extra = png_chunk(b"PLTE", bytes([200]) * 768) + png_chunk(b"tRNS", bytes(range(256)))
        data = png(16, 16, 8, 3, indices, extra)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(data)
    expected = np.round(200 * alpha.astype(float) / 255)[..., None]
    assert np.abs(image - expected).max() <= 1 and image[0, 0].max() == 0 and image[-1, -1].min() == 200


def test_transparency_colour_key():
    rows = b"".join(b"\0" + bytes([10, 20, 30, 40, 50, 60]) for _ in range(2))
    keyed = png(2, 2, 8, 2, rows, png_chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30)))
    assert decode_image(keyed)[0].tolist() == [[0, 0, 0], [40, 50, 60]]
    palette = png(2, 1, 8, 3, b"\0\0\1", png_chunk(b"PLTE", bytes([9, 9, 9, 7, 7, 7])) + png_chunk(b"tRNS", b"\0"))
    assert decode_image(palette).tolist() == [[[0, 0, 0], [7, 7, 7]]]


def test_invisible_picture_is_refused():
    with pytest.raises(ImageError, match="fully transparent"):
        decode_image(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))


def test_palette():
    palette = Image.fromarray(NOISE).quantize(32)
    np.testing.assert_array_equal(decode_image(encoded(palette)), np.array(palette.convert("RGB")))


@pytest.mark.parametrize("color", [0, 2, 4, 6])
def test_16_bit_keeps_the_high_byte(color):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    samples = np.repeat(ramp[..., None], channels, 2)
    if color >= 4:
        samples[..., -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    np.testing.assert_array_equal(decode_image(png(64, 64, 16, color, rows))[..., 0], ramp >> 8)


def adobe(data: bytes, present: bool) -> bytes:
    at = data.index(b"\xff\xee")
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    return data if present else data[:at] + data[at + 2 + length :]


@pytest.mark.parametrize("present", [True, False])
def test_cmyk_follows_adobe(present):
    data = adobe(encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95, subsampling=0), present)
    assert np.abs(decode_image(data).astype(int) - SMOOTH).max() <= 12


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert image.shape == (10, 20, 3) and (image == (255, 0, 0)).all()


def test_icc_profile_is_ignored():
    np.testing.assert_array_equal(decode_image(encoded(NOISE, icc_profile=b"not a profile")), NOISE)


def test_bmp_top_down_and_compressed():
    data = bytearray(ENCODINGS["BMP"])
    data[22:26] = struct.pack("<i", -48)
    np.testing.assert_array_equal(decode_image(bytes(data)), SMOOTH[::-1])
    data[30:34] = struct.pack("<I", 1)
    with pytest.raises(ImageError, match=r"compressed BMP.*PNG"):
        decode_image(bytes(data))


# Sources


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>not found</html>", "HTML"),
        (b"II*\0" + bytes(40), "TIFF"),
        (b"GIF89a" + bytes(40), "GIF"),
        (b"%PDF-1.7", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (bytes(4) + b"ftypheic", "HEIC"),
        (b"\0\1\2", "00 01 02"),
        (b"\xff\xd8\xff\xd9", "without a picture"),
    ],
)
def test_what_is_no_image_says_what_it_is(content, found, tmp_path):
    path = tmp_path / "face.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"face.jpg: .*{found}"):
        decode_image(path)
    with pytest.raises(ImageError, match=f"^<bytes>: .*{found}"):
        decode_image(content)


def test_paths_that_are_no_file(tmp_path):
    for path, found in (
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path, "a folder"),
        ("a\0b.jpg", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ):
        with pytest.raises(ImageError, match=found) as caught:
            decode_image(path)
        assert "\n" not in str(caught.value) and caught.value.__cause__ is None
    with pytest.raises(ImageError, match=r"two\\nlines\.jpg: no such file"):
        decode_image(tmp_path / "two\nlines.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe.jpg: a pipe or a device"):
        decode_image(tmp_path / "pipe.jpg")


def test_streams():
    used = io.BytesIO(ENCODINGS["PNG"])
    used.read()
    closed = io.BytesIO(b"x")
    closed.close()
    for stream, found in ((used, "rewind"), (closed, "closed"), (io.StringIO("text"), "mode 'rb'")):
        with pytest.raises(ImageError, match=f"<stream>: .*{found}"):
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


# Independence from the process


def test_pillow_settings_and_warnings_do_not_matter(monkeypatch):
    """Threads decode while the process forbids large images and turns warnings into errors; none is changed."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    expected = {kind: np.array(image) for kind, image in ((k, decode_image(d)) for k, d in ENCODINGS.items())}
    failures = []

    def work():
        try:
            for _ in range(20):
                for kind, data in ENCODINGS.items():
                    np.testing.assert_array_equal(decode_image(data), expected[kind])
        except BaseException as error:
            failures.append(error)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        before, show = list(warnings.filters), warnings.showwarning
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before and warnings.showwarning is show
    assert not failures and not seen and Image.MAX_IMAGE_PIXELS == 4


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, len(damaged) if rng.random() < 0.5 else min(64, len(damaged))))
        match rng.integers(0, 4):
            case 0:
                damaged[at] = rng.integers(0, 256)
            case 1:
                damaged[at : at + 4] = rng.bytes(4)
            case 2:
                del damaged[at : at + int(rng.integers(1, 40))]
            case 3:
                damaged[at:at] = damaged[at : at + int(rng.integers(1, 40))]
    return bytes(damaged)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks claim to be intact, so that damage reaches the decoder."""
    at, data = 8, bytearray(data)
    while at + 12 + (length := int.from_bytes(data[at : at + 4], "big")) <= len(data):
        end = at + 8 + length
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def test_mutated_files(monkeypatch):
    """2,000 damaged files: refused with `ImageError` or a well-formed picture, the same whatever Pillow is set to."""
    rng = np.random.default_rng(11)
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [
        encoded(SMOOTH, "JPEG", exif=exif),
        encoded(SMOOTH, "WEBP", exif=exif),
        encoded(Image.fromarray(NOISE).quantize(16)),
    ]
    seeds += ENCODINGS.values()

    def outcome(data):
        try:
            image = decode_image(data)
        except ImageError as error:
            assert str(error).startswith("<bytes>: ") and "\n" not in str(error)
            return None
        assert (
            image.dtype == np.uint8
            and image.ndim == 3
            and image.shape[2] == 3
            and image.size
            and image.flags.c_contiguous
        )
        return image

    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(2000):
            data = mutated(seeds[number % len(seeds)], rng)
            if data.startswith(b"\x89PNG"):
                data = with_right_checksums(data)
            monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
            strict = outcome(data)
            monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
            np.testing.assert_array_equal(outcome(data), strict)
            refused += strict is None
    assert 200 < refused < 2000


# Crops


def test_crop_box():
    image = decode_image(encoded(NOISE))
    cut = crop_box(image, (2, 3, 5, 7))
    np.testing.assert_array_equal(cut, NOISE[3:10, 2:7])
    assert cut.flags.c_contiguous and not np.shares_memory(cut, image)
    np.testing.assert_array_equal(crop_box(image, np.array([0, 0, 17, 23])), NOISE)
    for box in (
        (-1, 0, 3, 3),
        (0, 0, 18, 1),
        (0, 0, 1, 24),
        (16, 22, 2, 1),
        (0, 0, 0, 4),
        (0, 0, 4, -1),
        (1, 2, 3),
        (0, 0, 1.5, 2),
        None,
        "abcd",
    ):
        with pytest.raises(ImageError, match="box: got"):
            crop_box(image, box)


def test_resize_crop():
    image = NOISE.copy()
    for size in (1, 7, 64):
        out = resize_crop(image, size)
        np.testing.assert_array_equal(
            out, np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        )
        assert out.dtype == np.uint8 and out.shape == (size, size, 3) and out.flags.c_contiguous
    square = resize_crop(image)
    assert square.shape == (224, 224, 3) and resize_crop(square) is square
    # Shrinking averages: a one-pixel checkerboard becomes grey, not black or white.
    board = np.repeat(((np.indices((256, 256)).sum(0) % 2) * 255).astype(np.uint8)[..., None], 3, 2)
    assert np.abs(resize_crop(board, 32).astype(int) - 127).max() < 8
    for size in (0, -1, 1.5, True, "224", None, 16_385):
        with pytest.raises(UsageError, match="size: got"):
            resize_crop(image, size)


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (NOISE / 255.0, r"float64 \[23, 17, 3\].*\* 255"),
        (NOISE.astype(np.float32), "round"),
        (NOISE / 100.0 - 1, "normalisation"),
        (np.full((4, 4, 3), np.nan), "float64"),
        (NOISE.astype(np.int64), "int64.*astype"),
        (NOISE > 9, "bool.*255"),
        (NOISE[..., 0], "grey"),
        (NOISE[..., :1], "grey"),
        (NOISE.transpose(2, 0, 1), r"transpose\(1, 2, 0\)"),
        (NOISE[None], "batch"),
        (np.zeros((5, 5, 4), np.uint8), "alpha.*OpenCV"),
        (np.zeros((5, 5, 2), np.uint8), "R, G and B"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros(5, np.uint8), "R, G and B"),
        (Image.fromarray(NOISE), "got Image.*np.asarray"),
        ("face.jpg", "got str.*decode_image"),
        (NOISE.tolist(), "got list"),
        (None, "got NoneType"),
    ],
)
def test_check_crop_says_what_was_meant(image, hint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=f"(?s)image: .*{hint}"):
            check_crop(image)


def test_check_crop_accepts_any_strides():
    assert check_crop(NOISE) is NOISE or np.shares_memory(check_crop(NOISE), NOISE)
    for view in (NOISE[::-1, ::2], NOISE[..., ::-1], np.asfortranarray(NOISE), NOISE.transpose(1, 0, 2)):
        out = check_crop(view)
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(out, view)


def test_stack_crops():
    crops = [NOISE, NOISE[:5], np.zeros((9, 9, 3), np.uint8)]
    stack = stack_crops(crops, 9)
    assert stack.shape == (3, 9, 9, 3) and stack.dtype == np.uint8 and stack.flags.c_contiguous
    np.testing.assert_array_equal(stack[0], resize_crop(NOISE, 9))
    np.testing.assert_array_equal(stack_crops(np.stack([NOISE, NOISE]), 9)[1], stack[0])
    assert stack_crops(stack, 9) is stack
    for none in ([], (), np.empty((0, 5, 5, 3), np.uint8), np.array([])):
        assert stack_crops(none).shape == (0, 224, 224, 3) and stack_crops(none).dtype == np.uint8
    with pytest.raises(ImageError, match=r"crop 1 .*float"):
        stack_crops([NOISE, NOISE / 255.0])
    with pytest.raises(ImageError, match=r"one array uint8 \[23, 17, 3\].*\[crop\]"):
        stack_crops(NOISE)
    for wrong in ("face.jpg", None, 3):
        with pytest.raises(ImageError, match="images: got"):
            stack_crops(wrong)
    with pytest.raises(UsageError, match="size"):
        stack_crops([], 0)
