"""tkf_prepare: preprocess.py's pixels, NV12 by a float64 reference, refusals, and not a byte read beyond the frame."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine.preprocess import crop_box, resize_crop

from . import c_api
from .c_api import ChromaSiting, Crop, Frame, PixelFormat, Status, YuvMatrix, YuvRange
from .conftest import NATIVE
from .frames import CHANNELS, NOTHING, YUV, Guarded, nv12, picture, prepared

CORPUS = Path(__file__).parent / "corpus" / "frame"


def geometries() -> list[tuple[int, int, tuple[int, int, int, int], int]]:
    """(frame's width, height, box, size): the extremes, then what chance gives."""
    sides = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (1, 50), (50, 1), (5, 97), (97, 5), (31, 33), (64, 64), (65, 64)]
    made = [(w, h, (0, 0, w, h), size) for w, h in sides for size in (1, 2, 3, 10, 11, 64, 65)]
    strips = [(16384, 1), (1, 16384), (16384, 3), (3, 16384)]
    made += [(w, h, (0, 0, w, h), size) for w, h in strips for size in (1, 7, 224)]
    # Around where Pillow begins to resize rows first.
    made += [(w, h, (0, 0, w, h), 40) for w in (1, 39, 41, 60) for h in (39, 41, 2 * w - 40, 2 * w - 39) if h > 0]
    made += [(40, 30, (x, y, w, h), 24) for w, h in [(24, 24), (24, 25), (25, 24), (17, 13)]
             for x in (0, 40 - w) for y in (0, 30 - h)]  # fmt: skip
    draw = np.random.default_rng(11)
    while len(made) < 600:
        width, height = map(int, draw.integers(1, 300 if draw.random() < 0.8 else 1200, 2))
        x, y = int(draw.integers(0, width)), int(draw.integers(0, height))
        w, h = int(draw.integers(1, width - x + 1)), int(draw.integers(1, height - y + 1))
        sizes = (int(draw.integers(1, 257)), w, h)
        made.append((width, height, (x, y, w, h), min(256, sizes[draw.choice(3, p=(0.8, 0.1, 0.1))])))
    return made


def test_declarations_are_the_headers():
    header = (NATIVE / "include" / "tkfnet.h").read_text()
    assert set(c_api.SIGNATURES) == set(re.findall(r"\b(tkf_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.S)))
    groups = {"TKF_PIXEL_": PixelFormat, "TKF_YUV_BT": YuvMatrix, "TKF_CHROMA_": ChromaSiting, "TKF_ERROR_": Status,
              "TKF_OUTPUT_": c_api.Output, "TKF_CPU_MATH_": c_api.CpuMath, "TKF_LOG_": c_api.LogLevel}  # fmt: skip
    for prefix, group in groups.items():
        numbers = {name: int(value) for name, value in re.findall(rf"\b{prefix}(\w+) = (\d+)", header)}
        names = {("BT" if prefix.endswith("BT") else "") + name: value for name, value in numbers.items()}
        assert names == {member.name: member.value for member in group if member is not Status.OK}
    assert "TKF_YUV_LIMITED = 0" in header and "TKF_YUV_FULL = 1" in header and "TKF_OK = 0" in header
    assert f"TKF_ABI_VERSION {c_api.ABI_VERSION}\n" in header and f"TKF_MAX_CLASSES {c_api.MAX_CLASSES}\n" in header


@pytest.mark.parametrize("part", range(4))
def test_pixels_are_those_of_preprocess(library, part):
    draw = np.random.default_rng(part)
    for number, (width, height, box, size) in enumerate(geometries()[part::4]):
        kind = list(CHANNELS)[(number + part) % 4]
        image = draw.integers(0, 256, (height, width, 3), np.uint8)
        if number % 5 == 0:
            image = np.where(image < 128, np.uint8(0), np.uint8(255))  # sums of weights above 1 must not wrap
        frame = picture(image, kind, gap=(0, 1, 13)[number % 3], at_end=number % 2 == 0)
        got = prepared(library, frame, [box], size)[0]
        want = resize_crop(crop_box(image, box), size)
        np.testing.assert_array_equal(got, want, f"{kind!r} {width, height, box, size}")


def test_white_stays_white(library):
    white = np.full((1, 16384, 3), 255, np.uint8)
    for size in range(1, 60):
        assert (prepared(library, picture(white, PixelFormat.RGB), [(0, 0, 16384 - size, 1)], size) == 255).all()


def test_many_crops_of_many_frames(library):
    draw = np.random.default_rng(5)
    images = [draw.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(50, 70), (33, 21), (90, 40), (64, 64)]]
    frames = [picture(image, kind, gap=3) for image, kind in zip(images, CHANNELS)]
    boxes = [(1, 2, 40, 40), (0, 0, 21, 33), (3, 50, 37, 40), (10, 10, 48, 48)]
    got = prepared(library, frames, boxes, 48)
    np.testing.assert_array_equal(got, [resize_crop(crop_box(i, b), 48) for i, b in zip(images, boxes)])


def exact_rgb(luma: np.ndarray, chroma: np.ndarray, yuv) -> np.ndarray:
    """float64 [H, W, 3], cut to 0..255 and not rounded: the definitions of BT.601 and BT.709, by interpolation."""
    matrix, value_range, siting = yuv
    height, width = luma.shape
    columns = np.arange(width // 2) * 2 + (0.5 if siting == ChromaSiting.CENTRE else 0.0)
    rows = np.arange(height // 2) * 2 + 0.5
    full = np.empty((height, width, 2))
    for c in range(2):
        wide = np.stack([np.interp(np.arange(width), columns, row) for row in chroma[..., c].astype(float)])
        full[..., c] = np.stack([np.interp(np.arange(height), rows, column) for column in wide.T], 1)
    limited = value_range == YuvRange.LIMITED
    y = (luma - 16.0) / 219 if limited else luma / 255.0
    cb, cr = np.moveaxis((full - 128) / (224 if limited else 255), -1, 0)
    kr, kb = (0.2126, 0.0722) if matrix == YuvMatrix.BT709 else (0.299, 0.114)
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([red, green, blue], -1) * 255, 0, 255)


def nv12_noise(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Half of it anything, half near grey, where no channel is cut."""
    draw = np.random.default_rng([seed, height, width])
    luma = draw.integers(0, 256, (height, width), np.uint8)
    chroma = draw.integers(0, 256, (height // 2, width // 2, 2), np.uint8)
    chroma[:, width // 4 :] = chroma[:, width // 4 :] // 4 + 96
    return luma, chroma


@pytest.mark.parametrize("yuv", YUV, ids=lambda v: "-".join(m.name for m in v))
def test_nv12_is_the_reference(library, yuv):
    # Rounding, and half a unit in the last place of three factors: of luma's 255, and twice of chroma's 128 * 16.
    bound = 0.5 + (255 + 2 * 128 * 16) * 2.0**-22
    layouts = [(2, 2, (0, 0), True), (2, 200, (3, 0), True), (200, 2, (0, 5), False), (70, 70, (0, 0), False),
               (90, 134, (7, 7), False), (66, 130, (2, 9), True)]  # fmt: skip
    for height, width, gaps, apart in layouts:
        luma, chroma = nv12_noise(height, width)
        frame, exact = nv12(luma, chroma, yuv, gaps, apart), exact_rgb(luma, chroma, yuv)
        side = min(height, width)
        for size in {1, 2, side // 2, side - 1, side} - {0}:
            boxes = [(x, y, size, size) for x in {0, 1, width // 3, width - size} for y in {0, 1, height - size}
                     if x + size <= width and y + size <= height]  # fmt: skip
            got = prepared(library, frame, boxes, size)
            for (x, y, w, h), pixels in zip(boxes, got):
                part = exact[y : y + h, x : x + w]
                assert np.abs(pixels - part).max() <= bound, (height, width, x, y, size)
                assert (pixels == np.floor(part + 0.5)).mean() > 0.99 or size < 9


def test_nv12_rounds_half_up_and_knows_its_greys(library):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = np.full((8, 8, 2), 128, np.uint8)
    for yuv in YUV:
        got = prepared(library, nv12(ramp, grey, yuv), [(0, 0, 16, 16)], 16)[0]
        exact = (ramp.astype(int) - 16) * 255 / 219 if yuv[1] == YuvRange.LIMITED else ramp
        np.testing.assert_array_equal(got, np.floor(np.clip(exact, 0, 255) + 0.5)[..., None].repeat(3, 2))


@pytest.mark.parametrize("yuv", [YUV[0], YUV[-1]], ids=["left", "centre"])
def test_a_crop_of_nv12_is_a_crop_of_the_converted_frame(library, yuv):
    luma, chroma = nv12_noise(150, 150, seed=1)
    frame = nv12(luma, chroma, yuv, (4, 0))
    whole = prepared(library, frame, [(0, 0, 150, 150)], 150)[0]
    draw = np.random.default_rng(2)
    for _ in range(150):
        x, y = (int(v) for v in draw.integers(0, 150, 2))
        w, h = int(draw.integers(1, 151 - x)), int(draw.integers(1, 151 - y))
        size = int(draw.choice([1, 9, 40, 64, 65, w, h]))
        got = prepared(library, frame, [(x, y, w, h)], size)[0]
        np.testing.assert_array_equal(got, resize_crop(crop_box(whole, (x, y, w, h)), size), f"{x, y, w, h, size}")


def ends(work) -> bool:
    """Whether `work` ends in a process of its own, or by touching what it may not."""
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGSEGV
    return status == 0


def test_no_byte_outside_of_the_frame_is_read(library):
    """All frames of these tests lie so. Here a touch fails one test instead of ending them all."""
    image = np.zeros((9, 40, 3), np.uint8)
    boxes = [(0, 0, 40, 9), (39, 8, 1, 1), (0, 8, 40, 1), (31, 0, 9, 9), (0, 0, 9, 9), (3, 1, 8, 8)]
    frames = [picture(image, kind, 5, at_end) for kind in CHANNELS for at_end in (True, False)]
    frames += [nv12(*nv12_noise(10, 40), gaps=(3, 2), apart=apart) for apart in (True, False)]
    assert ends(lambda: [prepared(library, f, boxes, size) for f in frames for size in (1, 8, 9, 40, 64)])
    frames[0].height += 1
    assert not ends(lambda: prepared(library, frames[0], [(0, 0, 40, 10)], 8))


NV12 = {"format": PixelFormat.NV12}
HUGE = 2**64 - 1
REFUSED = [
    ({"struct_size": 0}, "tkf_frame: struct_size is 0, expected 72; set it to sizeof(tkf_frame)"),
    ({"struct_size": 7}, "struct_size is 7, expected"),
    ({"struct_size": 4097}, "struct_size is 4097, expected"),
    ({"struct_size": HUGE}, "struct_size is 18446744073709551615, expected"),
    ({"struct_size": 8}, "frame: it has 0 x 0 pixels, expected 1 to 16384"),
    ({"format": 5}, "frame: format is 5, expected 0 to 4; use a tkf_pixel_format"),
    ({"format": -1}, "frame: format is -1, expected 0 to 4"),
    ({"width": 0}, "frame: it has 0 x 10 pixels, expected 1 to 16384 each way"),
    ({"width": 16385}, "frame: it has 16385 x 10 pixels"),
    ({"height": -(2**31)}, "frame: it has 12 x -2147483648 pixels"),
    ({"height": 16385}, "frame: it has 12 x 16385 pixels"),
    (NV12 | {"width": 11}, "frame: it has 11 x 10 pixels, expected even numbers of NV12"),
    (NV12 | {"height": 9}, "frame: it has 12 x 9 pixels, expected even numbers of NV12"),
    ({"data": None}, "frame: data is NULL, expected the first row"),
    ({"stride": 35}, "frame: stride is 35, expected at least the 36 bytes of a row"),
    ({"format": PixelFormat.BGRA, "stride": 47}, "frame: stride is 47, expected at least the 48 bytes of a row"),
    (NV12 | {"stride": 11}, "frame: stride is 11, expected at least the 12 bytes of a row"),
    ({"stride": HUGE - 35}, "frame: stride is 18446744073709551580, and 10 rows of it exceed all memory"),
    ({"stride": 2**63 // 9}, "and 10 rows of it exceed all memory"),
    (NV12 | {"chroma_stride": 11}, "frame: chroma_stride is 11, expected at least the 12 bytes of a row"),
    (NV12 | {"chroma_stride": 2**62}, f"frame: chroma_stride is {2**62}, and 5 rows of it exceed all memory"),
    (NV12 | {"chroma_stride": 2**60, "stride": 2**59}, "10 rows of it with the chroma behind them exceed all memory"),
    (NV12 | {"yuv_matrix": 2}, "frame: yuv_matrix is 2, expected 0 to 1; use a tkf_yuv_matrix"),
    (NV12 | {"yuv_range": -1}, "frame: yuv_range is -1, expected 0 to 1; use a tkf_yuv_range"),
    (NV12 | {"chroma_siting": 2}, "frame: chroma_siting is 2, expected 0 to 1; use a tkf_chroma_siting"),
]
BOXES = [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (0, 0, -1, 5), (8, 0, 5, 5), (0, 6, 5, 5),
         (2**31 - 1, 0, 2**31 - 1, 5), (0, 2**31 - 1, 5, 1), (0, 0, 13, 10), (-(2**31), 0, 1, 1)]  # fmt: skip


def refusal(library, crops, count: int, size: int = 16) -> str:
    rgb = np.full(4 * 16 * 16 * 3, NOTHING, np.uint8)
    assert library.tkf_prepare(crops, count, size, rgb.ctypes.data_as(c_api.Pixels)) == Status.ARGUMENT
    assert (rgb == NOTHING).all()
    return library.tkf_last_error(None).decode()


@pytest.mark.parametrize("changes, message", REFUSED, ids=[m for _, m in REFUSED])
def test_frames_that_are_refused(library, changes, message):
    frame = picture(np.zeros((10, 12, 3), np.uint8), PixelFormat.RGB)
    bad = Frame(**{"format": PixelFormat.RGB, "width": 12, "height": 10, "data": frame.data} | changes)
    good, bad = (Crop(ctypes.pointer(f), 1, 1, 4, 4) for f in (frame, bad))
    text = refusal(library, (Crop * 4)(good, good, good, bad), 4)
    assert text.startswith("crop 3 (counted from 0): ") and message in text


@pytest.mark.parametrize("box", BOXES)
def test_boxes_that_are_refused(library, box):
    frame = picture(np.zeros((10, 12, 3), np.uint8), PixelFormat.RGB)
    text = refusal(library, (Crop * 1)(Crop(ctypes.pointer(frame), *box)), 1)
    assert text.startswith("crop 0 (counted from 0): box: got x {}, y {}, width {}, height {}, ".format(*box))
    assert "inside the 12 x 10 pixels; clip the box" in text


def test_arguments_that_are_refused(library):
    frame = picture(np.zeros((10, 12, 3), np.uint8), PixelFormat.RGB)
    crops = (Crop * 1)(Crop(ctypes.pointer(frame), 0, 0, 12, 10))
    assert "frame is NULL, expected a tkf_frame" in refusal(library, (Crop * 1)(Crop(None, 0, 0, 1, 1)), 1)
    for size in (0, -1, 16385):
        assert str(size) in refusal(library, crops, 1, size)
    assert "0" in refusal(library, crops, 0)
    assert "crops" in refusal(library, None, 1)
    assert library.tkf_prepare(crops, 1, 16, None) == Status.ARGUMENT and b"rgb" in library.tkf_last_error(None)


def test_frames_of_other_versions(library):
    image = np.random.default_rng(3).integers(0, 256, (10, 12, 3), np.uint8)
    plain, want = picture(image, PixelFormat.RGB), resize_crop(image, 16)

    class Newer(ctypes.Structure):
        _fields_ = [("known", Frame), ("more", ctypes.c_int64 * 3)]

    newer = Newer(plain)
    newer.known.struct_size = ctypes.sizeof(Newer)
    frame = ctypes.cast(ctypes.pointer(newer), ctypes.POINTER(Frame)).contents
    np.testing.assert_array_equal(prepared(library, frame, [(0, 0, 12, 10)], 16)[0], want)
    newer.more[2] = 1 << 56
    text = refusal(library, (Crop * 1)(Crop(ctypes.pointer(frame), 0, 0, 12, 10)), 1)
    assert "tkf_frame: byte 95 of 96 is set, expected zero from byte 72" in text and "upgrade libtkfnet" in text

    # Before NV12 there was no need for more than `stride`, and nothing behind struct_size is read.
    start = Guarded(bytes(plain)[: (older := Frame.chroma.offset)])
    frame = Frame.from_address(start.address)
    frame.struct_size = older
    np.testing.assert_array_equal(prepared(library, frame, [(0, 0, 12, 10)], 16)[0], want)


def test_fields_of_nv12_do_not_matter_elsewhere(library):
    image = np.random.default_rng(4).integers(0, 256, (9, 11, 3), np.uint8)
    frame = picture(image, PixelFormat.BGR)
    frame.chroma, frame.chroma_stride, frame.yuv_matrix, frame.yuv_range, frame.chroma_siting = 1, 1, 99, -1, 7
    np.testing.assert_array_equal(prepared(library, frame, [(0, 0, 11, 9)], 16)[0], resize_crop(image, 16))


def test_threads_do_not_meet(library):
    luma, chroma = nv12_noise(120, 160, seed=3)
    image = np.random.default_rng(6).integers(0, 256, (120, 160, 3), np.uint8)
    frames = [nv12(luma, chroma), *(picture(image, kind) for kind in CHANNELS)]
    boxes = [(i, i, 100 - i, 100) for i in range(5)]

    def work(_) -> list[bytes]:
        return [prepared(library, frames, boxes, size).tobytes() for size in (64, 100, 224)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(40)))
    assert results == [work(None)] * 40


def test_the_fuzzers_inputs_end_well(native_build, tmp_path):
    """Kept inputs and noise: refused by the rules, or the same pixels with AVX2 as without."""
    kept = sorted(CORPUS.iterdir())
    assert len(kept) > 50 and sum(path.stat().st_size for path in kept) < 200_000
    draw = np.random.default_rng(8)
    for number in range(300):
        (path := tmp_path / str(number)).write_bytes(draw.integers(0, 256, 120, np.uint8).tobytes())
        kept.append(path)
    command = [native_build / "programs" / "replay_frame", *kept]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{len(kept)} inputs\n", done.stderr
