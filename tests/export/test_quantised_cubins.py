"""The machine code of eight bits: products of the right kind, nothing spilled, and every rounding where it belongs."""

from __future__ import annotations

import pytest

from tkfnet_engine.errors import BackendError
from tkfnet_engine.export.cubin_facts import operand_precisions
from tkfnet_engine.export.cubins_from_plan import compile_launches
from tkfnet_engine.kernels.chips import ARCHS

from .test_cubins import PRODUCTS, QUICK, _faults, _plan

# Of eight bits the quick run compiles one launch of each kind: with and without a split, a shortcut added and rounded.
QUICK_LAUNCHES = ("pack_pixels", "stem", "layer1.0.conv2", "layer4.0.conv2", "tafe.split", "tafe.detail_and_gate",
                  "tafe.merge")  # fmt: skip
EIGHT_BITS = [
    pytest.param(precision, arch, batch, id=f"{precision}-{arch}-{batch}", marks=marks)
    for precision in ("int8", "float8")
    for arch in ARCHS
    for batch in (1, 32, 256)
    for marks in [[] if (arch, batch) == QUICK else pytest.mark.full]
    if precision == "int8" or arch not in ("sm_80", "sm_86")
]


@pytest.mark.parametrize(("precision", "arch", "batch"), EIGHT_BITS)
def test_code_of_eight_bits(precision, arch, batch):
    """Products of the right kind on the tensor cores, nothing spilled, and no multiplication contracted with an
    addition: the emulator rounds after each."""
    launches = _plan(arch, batch, precision).launches
    if (arch, batch) == QUICK:
        launches = [launch for launch in launches if launch.name in QUICK_LAUNCHES]
    cubins = compile_launches(launches, arch)
    wrong = []
    for launch in launches:
        cubin = cubins[launch.variant]
        wrong += _faults(launch, cubin, arch)
        # FP16 shifts a map by a pixel in the stem and in TAFE's split; FP8's stem is FP16.
        expected = {precision} if launch.kernel in PRODUCTS else set()
        if launch.kernel in ("stem_kernel", "split_kernel"):
            expected = {"float16", *(expected if precision == "int8" or launch.kernel == "split_kernel" else ())}
        if (found := operand_precisions(cubin.tensor_core)) != expected:
            wrong.append(f"{launch.name}: {cubin.tensor_core}, which multiply {found}, expected {expected}")
        # The error function is a polynomial of its own.
        if launch.quantised and launch.kernel != "detail_and_gate_kernel" and "fma.rn" in cubin.ptx:
            wrong.append(f"{launch.name}: contracts")
        if not launch.quantised and "fma.rn" not in cubin.ptx and launch.kernel == "classify_kernel":
            wrong.append(f"{launch.name}: does not contract")
    assert not wrong, "\n".join(wrong)


def test_units_that_stay_fp16_compile_beside_eight_bits():
    """Every mixture at a boundary: FP16 products that write int8, that add it, and a split that writes it."""
    kept = ("stem", "layer1.0.conv2", "layer3.0", "tafe.split")
    names = ("stem", "layer1.0.conv1", "layer1.0.conv2", "layer3.0.conv2", "tafe.split")
    launches = [launch for launch in _plan("sm_90", 1, "int8", kept).launches if launch.name in names]
    cubins = compile_launches(launches, "sm_90")
    kinds = {launch.name: operand_precisions(cubins[launch.variant].tensor_core) for launch in launches}
    assert kinds == {name: {"int8"} if name == "layer1.0.conv1" else {"float16"} for name in names}
    assert not [fault for launch in launches for fault in _faults(launch, cubins[launch.variant], "sm_90")]


def test_kinds_of_instructions():
    assert operand_precisions(["IMMA", "IGMMA", "UTCIMMA"]) == {"int8"} and operand_precisions({}) == set()
    assert operand_precisions({"QMMA": 3}) == operand_precisions(["QGMMA", "UTCQMMA"]) == {"float8"}
    assert operand_precisions(["HMMA", "UTCHMMA", "HGMMA", "QGMMA"]) == {"float16", "float8"}
    with pytest.raises(BackendError, match="DMMA: got a kind unknown"):
        operand_precisions(["HMMA", "DMMA"])
