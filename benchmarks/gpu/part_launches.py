"""Every launch of one engine's plans: right against plain PyTorch on rendered faces, then timed beside its roofline.

Each launch runs where it stands in its plan, on what the launches before it made, over an arena that was NaN. It is
timed alone, repeated in one CUDA graph: its operands are as warm in the caches as they fit, and only its own next turn
can overlap it. The plan as a whole is repeated likewise. What a graph's start takes is in neither figure: it is the
longer graph less the shorter one.

What int8 products alone go into must come out to the bit. A launch's roofline is at the chip's peak for its products.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from gpu_common import (
    EngineParts,
    Faces,
    add_precision,
    exact_float32,
    exact_products,
    part_parser,
    this_arch,
)
from gpu_state import RIGHT, WRONG, write_json

from tkfnet_engine.compare import compare
from tkfnet_engine.export.cubins_from_plan import compile_launches
from tkfnet_engine.export.plan_on_gpu import PlanOnGpu, threads_of
from tkfnet_engine.export.verify import REQUIRED_SQNR_DB
from tkfnet_engine.kernels.chips import CHIPS, Chip, default_chip
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.plan import SPACES, Buffer, Launch, Plan
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.kernels.reference import Difference, differences
from tkfnet_engine.kernels.roofline import product_precision, roofline_seconds
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import fold

BATCHES = (1, 3, 8, 32, 256)
# A NaN in FP16, FP8 and float32; -1 in int8.
POISON = 0xFF
_TILE = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT")


def chip_of(name: str, arch: str) -> Chip:
    """The table's entry for the GPU that the driver calls `name`, else the one that stands for its architecture."""
    words = f" {name.lower().replace('-', ' ')} "
    fitting = [c for c in CHIPS.values() if c.arch == arch and f" {c.name.lower().replace('-', ' ')} " in words]
    return fitting[0] if fitting else CHIPS[default_chip(arch)]


def tile_cell(launch: Launch) -> str:
    """Block, split, warps, stages: "64x32x64/8, 4w 3s"."""
    facts = dict(launch.constexprs)
    sizes = [facts[name] for name in _TILE if name in facts] if _TILE[0] in facts else []
    split = f"/{sizes.pop()}" if len(sizes) == len(_TILE) else ""
    return f"{'x'.join(map(str, sizes))}{split}, {launch.warps}w {launch.stages}s".lstrip(", ")


def timed(memory: PlanOnGpu, plan: Plan, launch: Launch, chip: Chip) -> dict[str, Any]:
    us = memory.time_us(plan, [launch])
    precision = product_precision(launch)
    least = 1e6 * roofline_seconds(chip, launch.flops, launch.bytes, precision)
    return {
        "precision": precision,
        "us": round(us, 3),
        "roofline_us": round(least, 3),
        "fraction": round(least / us, 4),
        "tflops": round(launch.flops / us / 1e6, 2),
        "gbs": round(launch.bytes / us / 1e3, 1),
    }


def error_cell(found: Difference) -> str:
    """ "0.1 of 0.2"; of a quantised map that may differ in few values, how many do as well."""
    unequal = f", {found.unequal} of {found.allowed_unequal} unequal" if found.allowed_unequal or found.unequal else ""
    return f"{found.error:.3g} of {found.allowed:.3g}{unequal}"


def run_plan(memory: PlanOnGpu, plan: Plan, parts: EngineParts, faces: Faces, chip: Chip) -> dict[str, Any]:
    """Runs, checks and times one plan, launch by launch."""
    count = min(plan.batch, len(faces.pixels))
    pixels = torch.from_numpy(faces.pixels[:count])
    if count < plan.batch:
        pixels = pixels.repeat(-(-plan.batch // count), 1, 1, 1)[: plan.batch]
    memory.write(Buffer("pixels", 0, "u8", plan.nbytes("pixels")), pixels)
    for space in ("arena", "logits"):
        memory.read(Buffer(space, 0, "u8", plan.nbytes(space))).fill_(POISON)
    torch.cuda.synchronize()
    rows, wrong, worst = [], [], 0.0
    for launch in plan.launches:
        memory.run(plan, [launch])
        found = differences(launch, memory.read)
        for one in found:
            worst = max(worst, min(one.error / max(one.allowed, 1e-30), 1e6))
            if not one.right:
                wrong.append(f"{launch.name}.{one.output}: error {error_cell(one)}")
        cubin = parts.cubins[launch.variant]
        row = {"name": launch.name, "kernel": launch.kernel, "tile": tile_cell(launch), "blocks": launch.blocks}
        row |= {"registers": cubin.registers, "spilled_bytes": cubin.spilled_bytes, "shared_bytes": cubin.shared_bytes}
        row |= {"error": {one.output: error_cell(one) for one in found}}
        rows.append(row | timed(memory, plan, launch, chip))
    logits = memory.read(Buffer("logits", 0, "f32", plan.batch * plan.classes)).reshape(plan.batch, -1)
    sqnr, required = None, REQUIRED_SQNR_DB[plan.precision]
    if count > 1:
        got = logits[:count].cpu().numpy()
        sqnr = compare(faces.logits[:count], got, required).to_dict()["sqnr_db"]
    # Of few images the spread says little: the build has judged all of them.
    if sqnr is not None and count >= 32 and sqnr < required:
        wrong.append(f"logits: SQNR {sqnr} dB")
    return {
        "launches": rows,
        "sum_us": round(sum(row["us"] for row in rows), 2),
        "plan_us": round(memory.time_us(plan, plan.launches), 2),
        "roofline_us": round(sum(row["roofline_us"] for row in rows), 2),
        "worst": round(worst, 4),
        "wrong": wrong,
        "sqnr_db": sqnr,
    }


def print_rows(batch: int, found: dict[str, Any]) -> None:
    print(f"\nbatch {batch}: sum {found['sum_us']} us, plan {found['plan_us']} us, roofline {found['roofline_us']} us")
    print(f"{'launch':<22} {'tile':<26} {'blocks':>7} {'us':>9} {'roofline':>9} {'part':>6} {'TFLOP/s':>8} {'GB/s':>7}")
    for row in found["launches"]:
        print(
            f"{row['name']:<22} {row['tile']:<26} {row['blocks']:>7} {row['us']:>9.2f} {row['roofline_us']:>9.2f} "
            f"{row['fraction']:>6.0%} {row['tflops']:>8.1f} {row['gbs']:>7.0f}"
        )
    for line in found["wrong"]:
        print(f"WRONG {line}", flush=True)


def main() -> int:
    p = part_parser(__doc__)
    p.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    add_precision(p)
    args = p.parse_args()
    exact_float32()
    if args.precision != "float16":
        exact_products()
    torch.set_grad_enabled(False)
    arch, faces = this_arch(), Faces.read(args.out)
    parts = EngineParts.read(args.out, arch, args.precision)
    chip = chip_of(torch.cuda.get_device_name(), arch)
    plans = [parts.plans.get(batch) or _exact_plan(args, batch, arch, parts.kept_float) for batch in args.batches]
    launches = [launch for plan in plans for launch in plan.launches]
    if missing := [launch for launch in launches if launch.variant not in parts.cubins]:
        parts.cubins.update(compile_launches(missing, arch))
    memory = PlanOnGpu({space: max(plan.nbytes(space) for plan in plans) for space in SPACES}, parts.weights)
    memory.load({launch.variant: parts.cubins[launch.variant] for launch in launches}, threads_of(launches))
    result: dict[str, Any] = {"chip": chip.name, "precision": args.precision, "batches": {}}
    for plan in plans:
        result["batches"][str(plan.batch)] = found = run_plan(memory, plan, parts, faces, chip)
        print_rows(plan.batch, found)
        wrong = [line for one in result["batches"].values() for line in one["wrong"]]
        worst = max(one["worst"] for one in result["batches"].values())
        done = ", ".join(result["batches"])
        result["summary"] = f"batches {done}: all right, at worst {worst:.2f} of the allowed error"
        if wrong:
            result["reason"] = f"{len(wrong)} outputs are wrong: {'; '.join(wrong[:3])}"
        write_json(args.result, result)
    return WRONG if "reason" in result else RIGHT


def _exact_plan(args: argparse.Namespace, batch: int, arch: str, kept_float: Sequence[str]) -> Plan:
    """For a batch that is no bucket."""
    loaded = load_checkpoint(args.checkpoint)
    network = network_of(fold(loaded.model, loaded.preprocessing))
    return plan_from_network(network, batch, args.precision, arch, kept_float=kept_float)


if __name__ == "__main__":
    sys.exit(main())
