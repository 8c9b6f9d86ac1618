"""The calibration table: the scale of every quantised map, and what it was measured on. One table serves all backends.

A small JSON file, to be read by people. Its digest covers the rest, so that a table changed by hand is refused, and it
names the checkpoint and the preprocessing it was made of, so that it is refused for others (`CalibrationTable.check`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..atomic import open_regular
from ..compare import SQNR_CAP_DB
from ..errors import FileError, UsageError
from ..kernels.network import Network
from ..kernels.placement import placement_of
from ..model.equalise import MOST_SHIFT, Shifts
from ..spec import LABELS, Preprocessing
from ..strict_json import StrictJsonError, canonical, parse
from .scales_from_histogram import KINDS, METHODS, UINT8_MOST, Scale

FORMAT = "tkfnet-calibration"
FORMAT_VERSION = 1
# A table of ResNet-50 is 60 KB.
MAX_BYTES = 4 * 2**20
_AGAIN = "make it with `python -m tkfnet_engine.calibrate`"
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class CalibrationData:
    """What was looked at. name: of the data set; fingerprint: of the images drawn from it (`FaceSet.fingerprint`).

    classes: how many images of each label, in the order of `spec.LABELS`. warnings: what looked odd about them.
    """

    name: str
    fingerprint: str
    images: int
    classes: Mapping[str, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointRange:
    """A map's values: how many, the exact least and largest (float32), and a `Scale` for each of `KINDS`."""

    count: int
    minimum: float
    maximum: float
    scales: Mapping[str, Scale]


@dataclass(frozen=True)
class CalibrationTable:
    """checkpoint: SHA-256 (hex) of its file. shifts: that equalised it before its maps were looked at. points: in the
    network's order, by the name of `placement.Point`."""

    checkpoint: str
    preprocessing: Preprocessing
    data: CalibrationData
    shifts: Shifts
    points: Mapping[str, PointRange]

    def scales(self, kind: str) -> dict[str, float]:
        """The scale of every point, exactly a float32. kind: "int8", "uint8" or "float8"; `UsageError` otherwise."""
        if kind not in KINDS:
            raise UsageError(f"scales: got kind {kind!r}, expected one of {', '.join(KINDS)}")
        return {name: found.scales[kind].scale for name, found in self.points.items()}

    def affine(self, point: str) -> tuple[float, int]:
        """(scale, zero point) of uint8; the zero point stands for 0.0 exactly. `UsageError` for an unknown point."""
        if point not in self.points:
            raise UsageError(f"calibration table: got no point {point!r}, expected one of {', '.join(self.points)}")
        found = self.points[point].scales["uint8"]
        return found.scale, found.zero_point

    def check(self, checkpoint_sha256: str, preprocessing: Preprocessing, network: Network) -> None:
        """`UsageError` unless this table is of that checkpoint, with its preprocessing and its points."""
        if self.checkpoint != checkpoint_sha256:
            raise UsageError(
                f"calibration table: got one of the checkpoint {self.checkpoint[:12]}.., expected one of "
                f"{checkpoint_sha256[:12]}..; {_AGAIN} for this checkpoint"
            )
        if self.preprocessing != preprocessing:
            mine, other = self.preprocessing.to_dict(), preprocessing.to_dict()
            differ = ", ".join(f"{k} {mine[k]} (expected {other[k]})" for k in mine if mine[k] != other[k])
            raise UsageError(f"calibration table: got one of another preprocessing: {differ}; {_AGAIN} again")
        points = placement_of(network).points
        expected = [point.name for point in points]
        if list(self.points) != expected:
            missing, extra = sorted({*expected} - {*self.points}), sorted({*self.points} - {*expected})
            what = f"missing {_some(missing)}; unknown {_some(extra)}"
            raise UsageError(
                f"calibration table: got {len(self.points)} points, expected the network's {len(expected)} in its "
                f"order ({what}); {_AGAIN} with this version"
            )
        widths, width = (len(self.shifts.gated), len(self.shifts.statistics)), network.channels if network.pool else 0
        if widths != (width, width):
            raise UsageError(
                f"calibration table: equalisation: got {widths[0]} and {widths[1]} shifts, expected {width} of each; "
                f"{_AGAIN} with this version"
            )
        for point in points:
            if point.positive and (self.points[point.name].minimum < 0 or self.affine(point.name)[1] != 0):
                raise UsageError(
                    f"calibration table: {point.name}: got values below zero, expected none after a ReLU; {_AGAIN}"
                )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything else in the file."""
        return _digest(self._rest())

    def _rest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "checkpoint": self.checkpoint,
            "preprocessing": self.preprocessing.to_dict(),
            "data": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "images": self.data.images,
                "classes": dict(self.data.classes),
                "warnings": list(self.data.warnings),
            },
            "equalisation": {
                "gated": list(self.shifts.gated),
                "statistics": list(self.shifts.statistics),
            },
            "points": [{"name": name} | _dict_from_range(found) for name, found in self.points.items()],
        }

    def to_dict(self) -> dict[str, Any]:
        """The file's content as JSON types."""
        rest = self._rest()
        return rest | {"digest": _digest(rest)}

    def to_json(self) -> str:
        """The file's text: one line per kind of a point. Equal tables give equal bytes."""
        content = self.to_dict()
        points = []
        for point in content.pop("points"):
            head = json.dumps({k: v for k, v in point.items() if k not in KINDS})[1:-1]
            points.append(f"    {{{head},\n" + ",\n".join(f'     "{k}": {json.dumps(point[k])}' for k in KINDS) + "}")
        shifts = ",\n".join(f'    "{k}": {json.dumps(v)}' for k, v in content.pop("equalisation").items())
        text = json.dumps(content, indent=2)
        return (
            text[:-2]
            + ',\n  "equalisation": {\n'
            + shifts
            + "\n  }"
            + ',\n  "points": [\n'
            + ",\n".join(points)
            + "\n  ]\n}\n"
        )

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "calibration table") -> CalibrationTable:
        """Reads `to_json`'s form. `UsageError` for anything else, and for a table that was changed."""
        try:
            content = parse(text)
        except StrictJsonError as error:
            raise UsageError(f"{where}: got {error}; it is no calibration table: {_AGAIN}") from None
        return _Reader(where).table(content)


def read_table(path: str | os.PathLike) -> CalibrationTable:
    """The table in the file `path`. `UsageError` where it cannot be read or is no sound table."""
    try:
        with open_regular(path) as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = str(error) if isinstance(error, (FileError, ValueError)) else error.strerror
        raise UsageError(f"{path}: cannot be read ({reason}); expected a calibration table: {_AGAIN}") from None
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path}: got more than {MAX_BYTES} bytes, expected a calibration table: {_AGAIN}")
    return CalibrationTable.from_json(text, os.fsdecode(path))


def _digest(rest: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(rest).encode()).hexdigest()


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "none"


def short(value: float) -> float:
    """The float64 with the fewest digits that is `value` again in float32."""
    return float(str(np.float32(value)))


def _dict_from_range(found: PointRange) -> dict[str, Any]:
    kinds = {}
    for kind in KINDS:
        one = found.scales[kind]
        zero_point = {"zero_point": one.zero_point} if kind == "uint8" else {}
        kinds[kind] = {"scale": short(one.scale)} | zero_point | {"method": one.method, "sqnr_db": dict(one.sqnr_db)}
    return {"count": found.count, "minimum": short(found.minimum), "maximum": short(found.maximum)} | kinds


class _Reader:
    """Takes a table apart, and stops at the first thing that is not as `to_json` writes it."""

    def __init__(self, where: str):
        self._where = where

    def table(self, content: Any) -> CalibrationTable:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            self._fail("the format", None if not isinstance(content, dict) else content.get("format"), repr(FORMAT))
        version = content.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            self._fail("format_version", version, f"{FORMAT_VERSION}, the one that this version reads")
        keys = ("format", "format_version", "checkpoint", "preprocessing", "data", "digest", "equalisation", "points")
        self._object("the file", content, keys)
        digest = _digest({k: v for k, v in content.items() if k != "digest"})
        if content["digest"] != digest:
            raise UsageError(
                f"{self._where}: its content does not match its digest, expected a table as it was written: it was "
                f"changed or damaged since; {_AGAIN} again"
            )
        try:
            preprocessing = Preprocessing.from_dict(content["preprocessing"])
        except UsageError as error:
            raise UsageError(f"{self._where}: {error}") from None
        points = content["points"]
        if not isinstance(points, list) or not points:
            self._fail("points", points, "a list of them")
        found = dict(self._point(number, point) for number, point in enumerate(points))
        if len(found) != len(points):
            self._fail("points", f"{len(points)} of which {len(found)} differ", "every name once")
        return CalibrationTable(
            self._sha256("checkpoint", content["checkpoint"]),
            preprocessing,
            self._data(content["data"]),
            self._shifts(content["equalisation"]),
            found,
        )

    def _shifts(self, value: Any) -> Shifts:
        self._object("equalisation", value, ("gated", "statistics"))
        for name, shifts in value.items():
            if not isinstance(shifts, list):
                self._fail(f"equalisation.{name}", shifts, "a list of whole numbers")
            for shift in shifts:
                self._int(f"equalisation.{name}", shift, -MOST_SHIFT, MOST_SHIFT)
        return Shifts(tuple(value["gated"]), tuple(value["statistics"]))

    def _data(self, value: Any) -> CalibrationData:
        self._object("data", value, ("name", "fingerprint", "images", "classes", "warnings"))
        images = self._int("data.images", value["images"], 1, 2**53)
        self._object("data.classes", value["classes"], LABELS)
        counts = {label: self._int("data.classes", value["classes"][label], 0, images) for label in LABELS}
        if sum(counts.values()) != images:
            self._fail("data.classes", f"{sum(counts.values())} images", f"{images}, as data.images says")
        warnings = value["warnings"]
        if not isinstance(warnings, list) or any(type(text) is not str for text in warnings):
            self._fail("data.warnings", warnings, "a list of texts")
        name = value["name"]
        if type(name) is not str or not name:
            self._fail("data.name", name, "a name")
        return CalibrationData(
            name, self._sha256("data.fingerprint", value["fingerprint"]), images, counts, tuple(warnings)
        )

    def _point(self, number: int, value: Any) -> tuple[str, PointRange]:
        self._object(f"points[{number}]", value, ("name", "count", "minimum", "maximum", *KINDS))
        name = value["name"]
        if type(name) is not str or not name:
            self._fail(f"points[{number}].name", name, "a name")
        count = self._int(f"{name}.count", value["count"], 1, 2**53)
        minimum = self._float(f"{name}.minimum", value["minimum"], -_MOST, _MOST)
        maximum = self._float(f"{name}.maximum", value["maximum"], minimum, _MOST)
        return name, PointRange(
            count, minimum, maximum, {kind: self._scale(f"{name}.{kind}", value[kind]) for kind in KINDS}
        )

    def _scale(self, name: str, value: Any) -> Scale:
        affine = name.endswith(".uint8")
        self._object(name, value, ("scale", *(("zero_point",) if affine else ()), "method", "sqnr_db"))
        self._object(f"{name}.sqnr_db", value["sqnr_db"], METHODS)
        decibels = {
            method: self._float(f"{name}.sqnr_db", value["sqnr_db"][method], -SQNR_CAP_DB, SQNR_CAP_DB, exact=False)
            for method in METHODS
        }
        if value["method"] not in METHODS:
            self._fail(f"{name}.method", value["method"], f"one of {', '.join(METHODS)}")
        return Scale(
            self._float(f"{name}.scale", value["scale"], _LEAST, _MOST),
            self._int(f"{name}.zero_point", value["zero_point"], 0, UINT8_MOST) if affine else 0,
            value["method"],
            decibels,
        )

    def _object(self, name: str, value: Any, keys: Collection[str]) -> None:
        if not isinstance(value, dict):
            self._fail(name, value, "an object")
        if value.keys() != {*keys}:
            unknown, missing = sorted({*value} - {*keys}), sorted({*keys} - {*value})
            self._fail(name, f"unknown fields {unknown}, missing fields {missing}", "the fields of this version")

    def _sha256(self, name: str, value: Any) -> str:
        if type(value) is not str or not re.fullmatch("[0-9a-f]{64}", value):
            self._fail(name, value, "64 hexadecimal digits")
        return value

    def _int(self, name: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            self._fail(name, value, f"a whole number from {low} to {high}")
        return value

    def _float(self, name: str, value: Any, low: float, high: float, exact: bool = True) -> float:
        """exact: a float32, which then comes as it is."""
        if type(value) is float and exact:
            with np.errstate(over="ignore"):  # to infinity, which is out of range
                value = float(np.float32(value))
        if type(value) is not float or not low <= value <= high:
            self._fail(name, value, f"a number from {low:g} to {high:g}")
        return value

    def _fail(self, name: str, got: Any, expected: str) -> NoReturn:
        shown = got if isinstance(got, str) else repr(got)
        raise UsageError(f"{self._where}: {name}: got {shown[:200]}, expected {expected}; {_AGAIN} again")
