"""The facts that everything else agrees on: labels, the network, preprocessing, precisions.

Each spec is a frozen dataclass with a JSON form (`to_dict` / `from_dict`) that rejects unknown keys, so
that a file written by a newer version is refused by name rather than half understood.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, get_args, get_type_hints

from .errors import UsageError

# RAF-DB's order (label file value minus 1), which is the published code's.
LABELS: tuple[str, ...] = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

INPUT_SIZE = 224

PRECISIONS: tuple[str, ...] = ("float32", "float16", "int8", "float8")

# How a face comes to be a crop; `face_crops.cut_face` does it.
CROPS: tuple[str, ...] = ("given", "margin", "five-point")


class _Spec:
    """JSON round trip shared by the frozen dataclasses below."""

    _what: ClassVar[str] = "spec"

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON types (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, facts: Any):
        """Reads `to_dict`'s form. `UsageError` for a missing or unknown key or a value of another type."""
        if not isinstance(facts, dict):
            raise UsageError(f"{cls._what}: got {type(facts).__name__}, expected an object with named fields")
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if set(facts) != known:
            raise UsageError(
                f"{cls._what}: unknown fields {sorted(set(facts) - known)}, missing fields "
                f"{sorted(known - set(facts))}; it was written by another version of tkfnet-engine"
            )
        hints = get_type_hints(cls)
        return cls(**{k: _checked(cls._what, k, v, hints[k]) for k, v in facts.items()})


def _checked(what: str, key: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type; bool is no int, and an int is taken where a float is expected."""
    if hint in (str, bool, int) and type(value) is hint:
        return value
    if hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    args = get_args(hint)
    if args and isinstance(value, (list, tuple)):
        return tuple(_checked(what, key, v, args[0]) for v in value)
    raise UsageError(f"{what}.{key}: got {value!r}, expected {getattr(hint, '__name__', hint)}")


@dataclass(frozen=True)
class TKFNetConfig(_Spec):
    """Which TKFNet. The default is the published network: 14,017,289 parameters.

    backbone: "resnet18", "resnet34" or "resnet50".
    width: scales every backbone channel count (rounded to a multiple of 8); below 1 only for tests and demos.
    pool: "max" (the paper) or "nearest" (the published code: it samples one pixel).
    tafe, dcif: switch a block off, for ablations.
    """

    _what: ClassVar[str] = "TKFNetConfig"

    backbone: str = "resnet18"
    width: float = 1.0
    pool: str = "max"
    tafe: bool = True
    dcif: bool = True
    classes: int = len(LABELS)

    BACKBONES: ClassVar[tuple[str, ...]] = ("resnet18", "resnet34", "resnet50")
    POOLS: ClassVar[tuple[str, ...]] = ("max", "nearest")

    def __post_init__(self) -> None:
        if self.backbone not in self.BACKBONES:
            raise UsageError(f"backbone: got {self.backbone!r}, expected one of {', '.join(self.BACKBONES)}")
        if self.pool not in self.POOLS:
            raise UsageError(f"pool: got {self.pool!r}, expected one of {', '.join(self.POOLS)}")
        if not 0.0625 <= self.width <= 4:
            raise UsageError(f"width: got {self.width!r}, expected a number from 0.0625 to 4")
        if not 2 <= self.classes <= 1000:
            raise UsageError(f"classes: got {self.classes!r}, expected 2 to 1000")

    def scaled(self, channels: int) -> int:
        """`channels` of the published network at this width."""
        return max(8, int(channels * self.width / 8 + 0.5) * 8)

    @property
    def features(self) -> int:
        """C: channels of the backbone's last feature map (512 for ResNet-18)."""
        return self.scaled(64 * 8) * (4 if self.backbone == "resnet50" else 1)


@dataclass(frozen=True)
class Preprocessing(_Spec):
    """What turns a face crop into the network's input; it travels with checkpoint and engine.

    size: side of the square input, pixels. mean, std: per RGB channel, of pixels scaled to 0..1.
    resize: the filter of `preprocess.resize_crop`. crop: how the faces it was trained on were cut out, one of `CROPS`;
    "given" where that was not recorded.
    """

    _what: ClassVar[str] = "Preprocessing"

    size: int = INPUT_SIZE
    color: str = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: str = "bilinear-antialias"
    crop: str = "given"

    def __post_init__(self) -> None:
        # One decode-and-resize path serves every backend; only its constants are free.
        if self.color != "RGB" or self.resize != "bilinear-antialias" or self.crop not in CROPS:
            raise UsageError(
                f"Preprocessing: got color={self.color!r}, resize={self.resize!r}, crop={self.crop!r}, "
                f"expected 'RGB', 'bilinear-antialias', one of {', '.join(CROPS)}; this version applies no other"
            )
        # From 481 on TAFE would pool the map to more than one pixel, which the folded form does not hold.
        if not 32 <= self.size <= 480:
            raise UsageError(f"Preprocessing.size: got {self.size}, expected 32 to 480")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UsageError(f"Preprocessing: got mean={self.mean}, std={self.std}, expected 3 values each, std > 0")
