"""Calibration on images: what is looked at, which images are refused, and what is kept for the next build."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tkfnet_engine.data import open_data
from tkfnet_engine.data.faceset import FaceSet
from tkfnet_engine.errors import CheckpointError, DataError, UsageError
from tkfnet_engine.export import calibration_images, ranges_from_data
from tkfnet_engine.export.calibration_images import DEFAULT_DATA, MIN_IMAGES, check_images, draw_calibration_set
from tkfnet_engine.export.calibration_table import CalibrationData, CalibrationTable
from tkfnet_engine.export.histogram import Histogram
from tkfnet_engine.export.ranges_from_data import (
    cached_table,
    calibrate,
    calibrate_ranges,
    equalising_shifts,
    table_from_images,
)
from tkfnet_engine.export.scales_from_histogram import METHODS, Scale
from tkfnet_engine.export.verify import DEFAULT_DATA as VERIFICATION_DATA
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.equalise import equalise, shifts_from_peaks
from tkfnet_engine.model.fold import fold
from tkfnet_engine.spec import LABELS, Preprocessing, TKFNetConfig

SMALL = Preprocessing(size=64)


class Pictures(FaceSet):
    """Noise under the labels given, no files behind it."""

    def __init__(self, name: str, labels, noise):
        super().__init__(name, [f"{i}.png" for i in range(len(labels))], labels)
        self._noise = noise

    def image(self, i: int) -> np.ndarray:
        return self._noise(1, 64, seed=int(self._paths[i].partition(".")[0]))[0]

    def _identity(self, i: int) -> tuple[str, int]:
        return self._paths[i], 0


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint_path):
    return load_checkpoint(small_checkpoint_path)


@pytest.fixture(scope="module")
def folded(checkpoint):
    return fold(checkpoint.model, checkpoint.preprocessing)


@pytest.fixture(scope="module")
def network(folded):
    return network_of(folded)


@pytest.fixture(scope="module")
def images(noise):
    return noise(MIN_IMAGES + 2, 64, seed=4)


@pytest.fixture
def pictures(noise, monkeypatch):
    """pictures(labels) makes noise under them what every name of data opens; pictures.opened is what was asked for."""

    def replace(labels, name="faces-train", skipped=()):
        def opened(text, split):
            replace.opened.append((text, split))
            faces = Pictures(name, labels, noise)
            faces.skipped = skipped
            return faces

        monkeypatch.setattr(calibration_images, "open_data", opened)

    replace.opened = []
    return replace


def _alternating(count: int) -> list[int]:
    return [i % 7 for i in range(count)]


# --- what is looked at -------------------------------------------------------------------------------------


def _by_hand(folded, images) -> dict[str, torch.Tensor]:
    """Some maps of the network, computed without its modules' hooks."""
    with torch.inference_mode():
        x = torch.from_numpy(images).float().permute(0, 3, 1, 2) - folded.pixel_mean
        found = {"stem.output": folded.stem(x)}
        x = F.max_pool2d(F.relu(found["stem.output"]), 3, stride=2, padding=1)
        for index, block in enumerate(folded.blocks):
            name = f"layer{index // 2 + 1}.{index % 2}"
            inner = F.relu(block.convs[0](x))
            found |= {name: x, f"{name}.conv1.output": block.convs[0](x)}
            found |= {f"{name}.conv2": inner, f"{name}.conv2.output": block.convs[1](inner)}
            if block.project is not None:
                found[f"{name}.project.output"] = block.project(x)
            x = block(x)
        tafe = folded.tafe
        y, z = tafe.split(x).chunk(2, dim=1)
        found |= {"tafe.split": x, "tafe.split.output": tafe.split(x), "tafe.detail": tafe.detail_dw(y)}
        found["tafe.detail.output"] = tafe.detail_pw(found["tafe.detail"])
        variance = z.var((2, 3), unbiased=False, keepdim=True)
        found["tafe.gate"] = tafe.of_pool * z.amax((2, 3), keepdim=True) + tafe.of_variance * variance
        found["tafe.gate.output"] = tafe.gate(found["tafe.gate"])
        gate, detail = F.gelu(found["tafe.gate.output"]), F.gelu(found["tafe.detail.output"])
        found["tafe.merge"] = torch.cat([z * gate, detail], 1)
        found["tafe.merge.output"] = tafe.merge(found["tafe.merge"])
    return found


def test_every_point_sees_its_map(folded, network, images):
    found, warnings = calibrate_ranges(folded, network, images, batch=len(images))
    expected = _by_hand(folded, images)
    assert list(found) == [point.name for point in placement_of(network).points] and found.keys() == expected.keys()
    assert warnings == ()
    for name, histogram in found.items():
        values = expected[name]
        assert histogram.count == values.numel(), name
        # The variance is computed another way here.
        scale = max(histogram.maximum, -histogram.minimum)
        assert histogram.minimum == pytest.approx(float(values.min()), abs=1e-4 * scale), name
        assert histogram.maximum == pytest.approx(float(values.max()), abs=1e-4 * scale), name
        power = float((values.double() ** 2).sum())
        assert histogram.bins().power == pytest.approx(power, rel=1e-3), name


def test_channels_are_equalised_by_what_they_peak_at(folded, images):
    chosen = images[np.linspace(0, len(images) - 1, ranges_from_data.EQUALISING_IMAGES).astype(np.int64)]
    maps = _by_hand(folded, chosen)
    merge, gate = (maps[name].abs().amax((0, 2, 3)) for name in ("tafe.merge", "tafe.gate"))
    found = equalising_shifts(folded, images)
    expected = shifts_from_peaks(folded, merge, gate)
    assert len(found.gated) == len(found.statistics) == len(gate) and any(found.gated) and _hooks(folded) == 0
    # A peak on the edge between two powers may round to either.
    differ = np.subtract(found.gated + found.statistics, expected.gated + expected.statistics)
    assert np.count_nonzero(differ) <= 1 and np.abs(differ).max() <= 1


def test_a_table_is_of_the_equalised_network(checkpoint, folded, network, images, quick_scales):
    seen = CalibrationData("noise", "0" * 64, len(images), dict.fromkeys(LABELS, 0), ("odd",))
    table = table_from_images(checkpoint, images, seen)
    assert table.shifts == equalising_shifts(folded, images) and table.data == seen
    equal, _ = calibrate_ranges(equalise(folded, table.shifts), network, images)
    plain, _ = calibrate_ranges(folded, network, images)
    for name in ("tafe.merge", "tafe.gate"):
        assert (
            table.points[name].maximum == equal[name].maximum and equal[name].bins().power != plain[name].bins().power
        )


@pytest.mark.parametrize("changes", [{"backbone": "resnet50"}, {"tafe": False}], ids=str)
def test_other_networks(changes, images):
    from tkfnet_engine.model.net import TKFNet

    folded = fold(TKFNet(TKFNetConfig(width=0.125, **changes)).eval(), SMALL)
    found, _ = calibrate_ranges(folded, network_of(folded), images)
    points = placement_of(network_of(folded)).points
    assert list(found) == [point.name for point in points] and all(h.count for h in found.values())
    assert all(found[point.name].minimum >= 0 for point in points if point.positive)
    assert len(equalising_shifts(folded, images).gated) == network_of(folded).channels * folded.config.tafe


def test_batches_of_another_size_give_the_same_ranges(folded, network, images):
    whole, _ = calibrate_ranges(folded, network, images, batch=len(images))
    parts, _ = calibrate_ranges(folded, network, images, batch=9)
    for point in placement_of(network).points[::5]:
        a, b = (ranges_from_data.range_of_histogram(point, found[point.name]) for found in (whole, parts))
        # The same counts; but a convolution may round another way in another batch.
        assert a.count == b.count and a.maximum == pytest.approx(b.maximum, rel=1e-5)
        for kind, scale in a.scales.items():
            assert scale.scale == pytest.approx(b.scales[kind].scale, rel=0.01)
            assert scale.sqnr_db[scale.method] == pytest.approx(b.scales[kind].sqnr_db[b.scales[kind].method], abs=0.02)


def _hooks(folded) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in folded.modules())


def test_no_hook_stays(folded, network, images, monkeypatch):
    calibrate_ranges(folded, network, images)
    assert _hooks(folded) == 0
    monkeypatch.setattr(Histogram, "add", lambda self, values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calibrate_ranges(folded, network, images)
    assert _hooks(folded) == 0


def test_a_network_that_overflows_is_refused_by_name(checkpoint, images):
    folded = fold(checkpoint.model, checkpoint.preprocessing)
    folded.blocks[2].convs[0].bias[1] = torch.inf
    with pytest.raises(CheckpointError, match=r"layer2\.0\.conv1\.output: got NaN or infinite values"):
        calibrate_ranges(folded, network_of(folded), images)


def test_a_network_in_half_is_refused(checkpoint, images):
    folded = fold(checkpoint.model, checkpoint.preprocessing)
    network = network_of(folded)
    with pytest.raises(UsageError, match=r"got a network in torch\.float16, expected float32"):
        calibrate_ranges(folded.half(), network, images)


# --- which images are refused ------------------------------------------------------------------------------


def _like_faces(images: np.ndarray) -> np.ndarray:
    """With the means and spreads that photographs of faces have."""
    shares = np.array([0.57, 0.45, 0.38]) + (images / 255 - 0.5) * 0.7
    return (shares.clip(0, 1) * 255).astype(np.uint8)


def _normalised(images: np.ndarray) -> np.ndarray:
    return (images / 255 - SMALL.mean) / SMALL.std


REFUSED = {
    "floats": (lambda x: x / 255, "got float64, expected uint8 pixels"),
    "normalised": (lambda x: _normalised(x).astype(np.float32), "got float32, expected uint8"),
    "signed": (lambda x: x.astype(np.int32), "got int32"),
    "another size": (lambda x: x[:, :32, :32], r"got shape \[130, 32, 32, 3\], expected \[N, 64, 64, 3\]"),
    "channels first": (lambda x: x.transpose(0, 3, 1, 2), r"got shape \[130, 3, 64, 64\]"),
    "one channel": (lambda x: x[..., :1], r"got shape \[130, 64, 64, 1\]"),
    "none": (lambda x: x[:0], "got 0, expected at least 128"),
    "one short": (lambda x: x[: MIN_IMAGES - 1], "got 127, expected at least 128; add more"),
    "one, often": (lambda x: np.repeat(x[:1], 130, 0), "got 130 of which 1 differ"),
    "too many twice": (lambda x: np.concatenate([x[:127], x[:3]]), "got 130 of which 127 differ"),
    "scaled, rounded": (lambda x: (x / 255).round().astype(np.uint8), "got pixels of 2 different values, 0 to 1"),
    "normalised, rounded": (lambda x: _normalised(x).clip(0).round().astype(np.uint8), "pixels of . different values"),
    "normalised, wrapped": (lambda x: _normalised(x).round().astype(np.int8).view(np.uint8), "pixels of . different"),
    "black and white": (lambda x: (x > 127) * np.uint8(255), "pixels of 2 different values, 0 to 255"),
    "almost one colour": (
        lambda x: (np.arange(130)[:, None, None, None] + x // 128).astype(np.uint8),
        "got 130 of 130 that are almost one colour, expected faces",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused(images, case):
    spoil, message = REFUSED[case]
    with pytest.raises(DataError, match=f"calibration images: .*{message}"):
        check_images(spoil(_like_faces(images)), SMALL)


ODD = {
    "BGR": (lambda x: x[..., ::-1], "red and blue may be swapped"),
    "grey": (lambda x: x[..., 1:2].repeat(3, 3), "130 of 130 images are grey"),
    "dark": (lambda x: x // 6, "pixels much darker than usual: channel means 0"),
    "bright": (lambda x: 255 - x // 6, "pixels much brighter than usual"),
    "flat": (lambda x: (100 + x / 8).astype(np.uint8), "another contrast than usual"),
    "twice": (lambda x: np.concatenate([x, x[:5]]), "5 of 135 images repeat another"),
    "some of one colour": (
        lambda x: np.concatenate([x, np.stack([np.full_like(x[0], 90 + i) for i in range(9)])]),
        "9 of 139 images are almost one colour",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_looks_odd_is_told(images, case):
    spoil, message = ODD[case]
    found = check_images(np.ascontiguousarray(spoil(_like_faces(images))), SMALL)
    assert any(warning.startswith(message) for warning in found), found


def test_what_looks_right_is_not():
    faces = open_data(DEFAULT_DATA, "train").subset(np.arange(0, 3584, 28))
    pixels = np.stack([faces.image(i)[::4, ::4] for i in range(MIN_IMAGES)])
    for constants in ({}, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}):
        assert check_images(pixels, Preprocessing(size=56, **constants)) == ()


def test_odd_images_are_told_while_calibrating(folded, network, images, capsys):
    grey = images[..., :1].repeat(3, 3)
    _, warnings = calibrate_ranges(folded, network, grey)
    assert warnings and f"warning: {warnings[0]}" in capsys.readouterr().err
    with pytest.raises(DataError):
        calibrate_ranges(folded, network, images[:50])


# --- which images are drawn --------------------------------------------------------------------------------


def test_training_images_are_drawn_evenly_over_each_label(checkpoint, pictures, capsys):
    # A step of seven, through labels that alternate by seven.
    pictures(_alternating(7 * 511 + 1))
    drawn = draw_calibration_set(checkpoint)
    assert pictures.opened == [(DEFAULT_DATA, "train")] and drawn.name == "faces-train" and drawn.warnings == ()
    assert len(drawn.faces) == 512 and set(drawn.classes.values()) == {73, 74} and tuple(drawn.classes) == LABELS
    places = [int(drawn.faces.source(i).partition(".")[0]) for i in range(512)]
    assert places == sorted(set(places)) and places[0] == 0 and 3500 < places[-1] <= 3577
    assert "warning" not in capsys.readouterr().err
    pictures([0] * 900 + [1] * 100)
    assert draw_calibration_set(checkpoint, "x", 200).classes == dict.fromkeys(LABELS, 0) | {
        "surprise": 180,
        "fear": 20,
    }


@pytest.mark.parametrize(
    ("labels", "wanted", "error", "message"),
    [
        ([], None, DataError, "got 0 training images, expected at least 128; name a larger set"),
        (_alternating(127), None, DataError, "got 127 training images"),
        ([2] * 200, None, DataError, "got disgust alone in 200 images, expected several expressions"),
        (_alternating(700), 127, UsageError, "--images: got 127, expected at least 128"),
        (_alternating(700), 0, UsageError, "--images: got 0"),
        (_alternating(700), -5, UsageError, "--images: got -5"),
    ],
)
def test_a_set_that_will_not_do_is_refused(checkpoint, pictures, labels, wanted, error, message):
    pictures(labels)
    with pytest.raises(error, match=message):
        draw_calibration_set(checkpoint, "folder:x", wanted)


@pytest.mark.parametrize(
    ("labels", "wanted", "message"),
    [
        (_alternating(140), None, "faces-train has 140 training images, fewer than the 512 wanted"),
        (_alternating(700), 1000, "faces-train has 700 training images, fewer than the 1000 wanted"),
        (_alternating(700), 128, "128 images: the scales are steadier from 512"),
        ([0, 1, 2, 3, 5, 6] * 100, None, "no image of sadness: their ranges are not seen"),
    ],
)
def test_a_set_that_may_do_is_told(checkpoint, pictures, capsys, labels, wanted, message):
    pictures(labels)
    assert draw_calibration_set(checkpoint, "folder:x", wanted).warnings == (message,)
    assert f"warning: {message}" in capsys.readouterr().err


def test_what_was_left_out_is_said(checkpoint, pictures, capsys):
    pictures(_alternating(700), skipped=(("a.txt", "not an image by its name"),))
    draw_calibration_set(checkpoint)
    assert "faces-train: left out 1: a.txt: not an image by its name" in capsys.readouterr().err


def test_rendered_faces_for_a_network_of_real_ones_are_told(checkpoint, pictures):
    pictures(_alternating(700))
    trained = {"data": "rafdb:/home/me/RAF-DB"}
    real = dataclasses.replace(checkpoint, training=trained)
    (told,) = draw_calibration_set(real).warnings
    # A table should not tell its readers where the data lie.
    assert "this checkpoint was trained on rafdb: name its data with --data" in told and "/home" not in told
    assert draw_calibration_set(real, "rafdb:x").warnings == ()
    rendered = dataclasses.replace(checkpoint, training={"data": "synthetic:n=16800,seed=0"})
    assert draw_calibration_set(rendered).warnings == ()


def test_no_person_is_seen_in_training_or_verification():
    seeds = {text.partition("seed=")[2] for text in (DEFAULT_DATA, VERIFICATION_DATA, "synthetic:n=16800,seed=0")}
    assert len(seeds) == 3 and calibration_images.SPLIT == "train"


def test_a_name_that_is_no_unicode_is_written_all_the_same(checkpoint, pictures, quick_scales):
    pictures(_alternating(130), name="faces-\udcff")
    table = calibrate(checkpoint, "x")
    assert CalibrationTable.from_json(table.to_json()) == table and table.data.name == "faces-\\udcff"


# --- the whole, and what is kept ---------------------------------------------------------------------------


@pytest.fixture
def quick_scales(monkeypatch):
    """Scales of nothing but the maximum: what they are is tested elsewhere, and choosing takes seconds."""

    def of_maximum(histogram, kind):
        scale = float(np.float32(max(histogram.maximum, -histogram.minimum) / 127))
        return Scale(
            scale, 128 if kind == "uint8" and histogram.minimum < 0 else 0, "max", dict.fromkeys(METHODS, 30.0)
        )

    monkeypatch.setattr(ranges_from_data, "best_scale", of_maximum)


@pytest.fixture
def cache(tmp_path, monkeypatch, quick_scales):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tkfnet-engine"


@pytest.fixture
def counted(monkeypatch):
    """How often the network was run on images, as a list."""
    runs, run = [], ranges_from_data.calibrate_ranges
    monkeypatch.setattr(ranges_from_data, "calibrate_ranges", lambda *a, **k: runs.append(1) or run(*a, **k))
    return runs


def test_a_table_is_of_its_checkpoint_and_its_images(checkpoint, network, pictures):
    pictures(_alternating(140))
    table = calibrate(checkpoint, "folder:x", 130)
    table.check(checkpoint.sha256, checkpoint.preprocessing, network)
    assert CalibrationTable.from_json(table.to_json()) == table
    assert table.data.images == sum(table.data.classes.values()) == 130 and table.data.name == "faces-train"
    assert table.data.fingerprint == draw_calibration_set(checkpoint, "folder:x", 130).faces.fingerprint()
    assert table.data.warnings == ("130 images: the scales are steadier from 512",)
    for found in table.points.values():
        for scale in found.scales.values():
            assert scale.sqnr_db[scale.method] >= 20


def test_the_cache_is_used_again_and_says_so(checkpoint, pictures, cache, counted, capsys):
    pictures(_alternating(140))
    first = cached_table(checkpoint, "folder:x")
    (path,) = cache.iterdir()
    assert CalibrationTable.from_json(path.read_text()) == first and len(counted) == 1
    capsys.readouterr()
    assert cached_table(checkpoint, "folder:x") == first and len(counted) == 1
    said = capsys.readouterr().err
    assert f"using the calibration of 140 images kept in {path}" in said and said.count("fewer than the 512") == 1


def test_warnings_of_the_pixels_are_told_again(checkpoint, pictures, cache, monkeypatch, capsys):
    pictures(_alternating(140))
    monkeypatch.setattr(ranges_from_data, "check_images", lambda *_: ("the pixels are odd",))
    for _ in range(2):
        table = cached_table(checkpoint, "folder:x")
        assert capsys.readouterr().err.count("warning: the pixels are odd") == 1
    assert table.data.warnings[-1] == "the pixels are odd"


def test_another_checkpoint_or_other_images_are_kept_apart(checkpoint, pictures, cache, counted):
    pictures(_alternating(140))
    cached_table(checkpoint)
    other = dataclasses.replace(checkpoint, sha256=hashlib.sha256(b"other").hexdigest())
    assert cached_table(other).checkpoint == other.sha256
    pictures(_alternating(150))
    cached_table(checkpoint)
    cached_table(checkpoint, None, 130)
    pictures(_alternating(140), name="others-train")
    cached_table(checkpoint)
    assert len(list(cache.iterdir())) == len(counted) == 5


@pytest.mark.parametrize("damage", ["empty", "changed", "another's", "other images", "a folder"])
def test_a_damaged_entry_is_made_again_and_said(checkpoint, pictures, cache, counted, capsys, damage):
    pictures(_alternating(140))
    first = cached_table(checkpoint)
    (path,) = cache.iterdir()
    text = path.read_text()
    path.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "changed":
        path.write_text(text.replace('"count": ', '"count": 1'))
    elif damage == "another's":
        path.write_text(dataclasses.replace(first, checkpoint="0" * 64).to_json())
    elif damage == "other images":
        data = dataclasses.replace(first.data, fingerprint="0" * 64)
        path.write_text(dataclasses.replace(first, data=data).to_json())
    else:
        path.mkdir()
    capsys.readouterr()
    assert cached_table(checkpoint) == first and len(counted) == 2
    said = capsys.readouterr().err
    assert "calibrating again, the kept table is not usable: " in said
    if damage == "a folder":
        assert "the calibration is not kept: " in said
    else:
        assert path.read_text() == text


def test_where_nothing_can_be_kept(checkpoint, pictures, quick_scales, tmp_path, monkeypatch, capsys):
    pictures(_alternating(140))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first = cached_table(checkpoint)
    assert capsys.readouterr().err.count("the calibration is not kept: ") == 1
    # Neither variable names a folder.
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    assert cached_table(checkpoint) == first
    assert capsys.readouterr().err.count("the calibration is not kept: there is no home folder") == 1
    assert os.listdir(tmp_path) == ["file"]


def test_the_cache_is_in_the_home_folder(checkpoint, pictures, quick_scales, tmp_path, monkeypatch):
    pictures(_alternating(140))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cached_table(checkpoint)
    (path,) = (tmp_path / ".cache" / "tkfnet-engine").iterdir()
    assert path.name.startswith("calibration-") and path.suffix == ".json"
