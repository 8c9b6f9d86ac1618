"""`info --plan`: what it says of a fused engine file, without Triton and PyTorch, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tkfnet_engine.bundle import read_bundle, write_bundle
from tkfnet_engine.kernels.builder import PlanBuilder
from tkfnet_engine.kernels.chips import CHIPS
from tkfnet_engine.kernels.plan import Buffer, Plan
from tkfnet_engine.kernels.roofline import image_bytes, weight_bytes
from tkfnet_engine.plan_report import Code, network_of_config, report, text_of_report
from tkfnet_engine.spec import LABELS, Preprocessing, TKFNetConfig

FACTS = {
    "backend": "fused",
    "device": "cuda",
    "precision": "float16",
    "max_batch": 4,
    "labels": list(LABELS),
    "model": TKFNetConfig(width=0.125).to_dict(),
    "preprocessing": Preprocessing(size=64).to_dict(),
}
NETWORK = network_of_config(TKFNetConfig(width=0.125), Preprocessing(size=64))
FLOOR = (image_bytes(NETWORK), weight_bytes(NETWORK))


def _plan(batch: int, arch: str) -> Plan:
    """Two launches, the second with products."""
    builder = PlanBuilder({}, 256)
    x, y = builder.buffer("f16", 100 * batch), builder.buffer("f16", 200 * batch)
    shared = {"warps": 4, "stages": 3, "flops": 0, "reads": 1000, "writes": 500 * batch, "loads": 4000}
    pixels = Buffer("pixels", 0, "u8", batch * 64 * 64 * 3)
    builder.launch({"p": pixels, "x": x}, {}, name="pack_pixels", kernel="pack_kernel", grid=(batch, 1, 1), **shared)
    product = shared | {"flops": 10**9, "warps": 8}
    builder.launch({"x": x, "y": y}, {"N": 8}, name="layer1.0.conv1", kernel="conv_kernel", grid=(33, 4, 1), **product)
    return builder.finish(batch=batch, precision="float16", arch=arch, size=64, classes=7)


def _index(plan: Plan) -> dict:
    pack, conv = (launch.variant for launch in plan.launches)
    entry = {"entry": "k", "registers": 40, "spilled_bytes": 0, "shared_bytes": 0, "tensor_core": {}}
    product = {"registers": 128, "spilled_bytes": 16, "shared_bytes": 65536, "tensor_core": {"HGMMA": 12}}
    return {"driver": 12000, "cubins": {pack: entry, conv: entry | product}}


def _write(path, facts=FACTS, index=_index, archs=("sm_90", "sm_80"), batches=(1, 2, 4), **more):
    tensors = {"weights.packed": bytes(256)} | more
    for arch in archs:
        tensors |= {f"plans/{arch}/{batch}": _plan(batch, arch).to_json() for batch in batches}
        tensors[f"cubins/{arch}/index"] = json.dumps(index(_plan(1, arch))).encode()
    write_bundle(path, tensors, facts)
    return path


@pytest.fixture
def engine(tmp_path):
    return _write(tmp_path / "fused.tkf")


def _json(shown):
    assert shown.code == 0 and shown.err == "", shown.err
    return json.loads(shown.out)


def test_json(command, engine):
    found = _json(command("info", "--plan", engine, "--json"))
    assert list(found) == ["arch", "chip", "batch", "precision", "launches", "totals", "floor_bytes"]
    assert (found["arch"], found["chip"], found["batch"], found["precision"]) == ("sm_90", "H200", 1, "float16")
    pack, conv = found["launches"]
    assert pack["name"] == "pack_pixels" and pack["blocks"] == 1 and pack["bytes"] == 1500
    # 128 registers allow two blocks of eight warps; 64 KiB of shared memory, three.
    assert conv == {
        "name": "layer1.0.conv1", "kernel": "conv_kernel", "grid": [33, 4, 1], "blocks": 132, "waves": 0.5, "warps": 8,
        "registers": 128, "spilled_bytes": 16, "shared_bytes": 65536, "occupancy": 0.25, "flops": 10**9, "bytes": 1500,
        "loads": 4000, "tensor_core": {"HGMMA": 12}, "roofline_us": 1.011,
    }  # fmt: skip
    totals = found["totals"]
    assert (totals["launches"], totals["flops"], totals["bytes"], totals["loads"]) == (2, 10**9, 3000, 8000)
    assert (totals["spilled_bytes"], totals["weight_bytes"], totals["arena_bytes"]) == (16, 256, 768)
    assert totals["roofline_us"] == pytest.approx(pack["roofline_us"] + 1.011, abs=2e-3)
    assert found["floor_bytes"] == sum(FLOOR) and totals["bytes_over_floor"] == round(3000 / sum(FLOOR), 4)


def test_batch_architecture_and_chip(command, engine):
    found = _json(command("info", "--plan", engine, "--json", "--batch", "3", "--arch", "sm_80"))
    assert (found["arch"], found["chip"], found["batch"]) == ("sm_80", "A100-SXM-80GB", 4)
    assert found["floor_bytes"] == 4 * FLOOR[0] + FLOOR[1] and found["launches"][0]["blocks"] == 4
    found = _json(command("info", "--plan", engine, "--json", "--chip", "a100-sxm-80gb"))
    assert (found["arch"], found["chip"]) == ("sm_80", "A100-SXM-80GB")
    found = _json(command("info", "--plan", engine, "--json", "--chip", "H100-SXM"))
    assert (found["arch"], found["chip"], found["launches"][1]["roofline_us"]) == ("sm_90", "H100-SXM", 1.011)


def test_without_the_default_architecture(command, tmp_path):
    path = _write(tmp_path / "other.tkf", archs=("sm_120", "sm_86"))
    assert _json(command("info", "--plan", path, "--json"))["chip"] == "RTX-3090"


def test_text(command, engine):
    shown = command("info", "--plan", engine)
    assert shown.code == 0 and shown.err == ""
    head, pack, conv, gap, *totals = shown.out.splitlines()
    assert gap == "" and len(head) <= 120 and pack.startswith("pack_pixels ") and pack.endswith("  -")
    assert conv.split() == [
        "layer1.0.conv1", "132", "0.50", "8", "128", "16", "64", "25%", "1000.0", "0.00", "0.0", "1.01", "12", "HGMMA"
    ]  # fmt: skip
    # Numbers end where their heads do.
    ends = [[match.end() for match in re.finditer(r"\S+", line)] for line in (head, conv)]
    assert ends[0][1:5] == ends[1][1:5]
    text = " ".join(totals)
    for part in (
        "sm_90, float16, batch 1: 2 launches, 1.000 GFLOP",
        "16 bytes spilled",
        "the floor of 0.55 MB",
        "H200",
    ):
        assert part in text


def test_the_widest_line_fits():
    plan = _plan(1, "sm_90")
    code = {launch.variant: Code(255, 1860, 232448, {"HGMMA": 144}) for launch in plan.launches}
    network = network_of_config(TKFNetConfig(), Preprocessing())
    found = report(plan, code, CHIPS["H200"], network)
    found["launches"][0] |= {
        "name": "tafe.detail_and_gate", "blocks": 200704, "waves": 1234.56, "flops": 60 * 10**9, "bytes": 2 * 10**9,
        "loads": 40 * 10**9, "roofline_us": 12345.678,
    }  # fmt: skip
    table = text_of_report(found).splitlines()
    assert max(map(len, table)) <= 120 and "detail_and_gate 200704" in table[1].replace("  ", " ")


def test_it_needs_neither_torch_nor_triton(engine):
    code = f"""
import sys
for name in ("torch", "triton", "cuda", "onnxruntime"):
    sys.modules[name] = None
from tkfnet_engine.info import main
main(["--plan", {str(engine)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "H200" in done.stdout, done.stderr


def _refused(shown, code, *words):
    assert shown.code == code and shown.out == "", shown.err
    *_, last = shown.err.splitlines()
    assert "Traceback" not in shown.err and all(word in last for word in words), shown.err


def test_refusals(command, engine, engine_path, monkeypatch):
    _refused(command("info", "--plan", engine, "--batch", "5"), 64, "got 5", "1 to 4")
    _refused(command("info", "--plan", engine, "--batch", "0"), 64, "got 0")
    _refused(command("info", "--plan", engine, "--arch", "sm_75"), 64, "'sm_75'", "sm_80")
    _refused(command("info", "--plan", engine, "--arch", "sm_100"), 64, "sm_100", "built for: sm_80, sm_90")
    _refused(command("info", "--plan", engine, "--chip", "H300"), 64, "'H300'", "H200")
    _refused(command("info", "--plan", engine, "--chip", "H200", "--arch", "sm_80"), 64, "'H200'", "A100")
    _refused(command("info", "--plan", engine, "--chip", "B200"), 64, "sm_100", "built for")
    _refused(command("info", "--plan", engine, "--width", "0.5"), 64, "--width", "engine file")
    _refused(command("info", "--plan", engine_path), 64, "onnxruntime", "no launch plan", "--device cuda")
    _refused(command("info", engine, "--batch", "1", "--chip", "H200"), 64, "--batch, --chip", "--plan")
    _refused(command("info", "--arch", "sm_90"), 64, "--plan")
    _refused(command("info", "--plan", "--arch", "sm_75"), 64, "'sm_75'")
    _refused(command("info", "--plan", "--batch", "0"), 64, "batch", "got 0")
    _refused(command("info", "--plan", "--width", "9"), 64, "width", "9")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "triton" else ...)
    _refused(command("info", "--plan"), 7, "triton", "pip install")


def _of_the_first(**changes):
    def index(plan):
        index = _index(plan)
        first = next(iter(index["cubins"]))
        return index | {"cubins": {v: e | changes if v == first else e for v, e in index["cubins"].items()}}

    return index


@pytest.mark.parametrize(
    "index",
    [
        lambda plan: [], lambda plan: {}, lambda plan: {"cubins": {}}, lambda plan: {"driver": 1, "cubins": []},
        lambda plan: {"driver": 1, "cubins": {}},
        lambda plan: {"driver": 1, "cubins": {v: {} for v in _index(plan)["cubins"]}},
        lambda plan: {"driver": 1, "cubins": dict.fromkeys(_index(plan)["cubins"])},
        _of_the_first(registers="40"), _of_the_first(registers=-1), _of_the_first(spilled_bytes=True),
        _of_the_first(shared_bytes=1.5), _of_the_first(tensor_core=[]), _of_the_first(tensor_core={"HMMA": None}),
    ],
)  # fmt: skip
def test_a_damaged_index_is_refused(command, tmp_path, index):
    path = _write(tmp_path / "damaged.tkf", index=index)
    none = index(_plan(1, "sm_90")) == {"driver": 1, "cubins": {}}
    _refused(command("info", "--plan", path), 3, "it needs kernel" if none else "damaged")


def test_a_damaged_plan_is_refused(command, tmp_path):
    good = read_bundle(_write(tmp_path / "good.tkf"))
    tensors = {name: good.bytes(name) for name in good.names()} | {"plans/sm_90/2": b"{}"}
    write_bundle(tmp_path / "bad.tkf", tensors, FACTS)
    _refused(
        command("info", "--plan", tmp_path / "bad.tkf", "--batch", "2"), 3, "launch plan", "build the engine again"
    )
    assert command("info", "--plan", tmp_path / "bad.tkf").code == 0


def test_code_that_fits_no_multiprocessor(command, tmp_path):
    path = _write(tmp_path / "large.tkf", index=_of_the_first(shared_bytes=300_000))
    row = _json(command("info", "--plan", path, "--json"))["launches"][0]
    assert (row["waves"], row["occupancy"]) == (None, 0)
    assert command("info", "--plan", path).out.splitlines()[1].split()[2] == "-"
