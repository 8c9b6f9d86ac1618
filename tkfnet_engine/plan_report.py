"""`python -m tkfnet_engine.info --plan`: what each launch of a fused network costs, by its code and by arithmetic."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .bundle import Bundle, read_bundle
from .engine import checked_facts
from .errors import BackendError, BundleError, UsageError
from .kernels.chips import ARCHS, CHIPS, Chip, arch_named, chip_named, default_chip
from .kernels.cubin_index import index_from_json
from .kernels.network import Block, Conv, Network
from .kernels.plan import Launch, Plan, bucket_for
from .kernels.roofline import floor_bytes, occupancy, product_precision, roofline_seconds
from .spec import Preprocessing, TKFNetConfig

DEFAULT_ARCH = "sm_90"
# Residual blocks per stage, as `model.backbone` has them; that one needs PyTorch.
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


@dataclass(frozen=True)
class Code:
    """What the report says of a launch's machine code, per architecture and variant."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    tensor_core: Mapping[str, int]


def report_of_network(config: TKFNetConfig, batch: int, arch: str | None, chip: str | None) -> dict[str, Any]:
    """Plans a network that was never built and compiles its kernels, on any machine with Triton and PyTorch."""
    for library in ("torch", "triton"):
        if importlib.util.find_spec(library) is None:
            raise BackendError(
                f"planning a network needs {library}, which is not installed; pip install "
                "'tkfnet-engine[build,triton]', or name a fused engine file: its plans and kernels are in it"
            )
    from .export.cubins_from_plan import compile_launches
    from .kernels.planner import plan_from_network

    target = _target(arch, chip, tuple(ARCHS))
    network = network_of_config(config, Preprocessing())
    plan = plan_from_network(network, batch, "float16", target.arch)
    cubins = compile_launches(plan.launches, target.arch)
    code = {v: Code(c.registers, c.spilled_bytes, c.shared_bytes, c.tensor_core) for v, c in cubins.items()}
    return report(plan, code, target, network)


def report_of_engine(path: str, batch: int, arch: str | None, chip: str | None) -> dict[str, Any]:
    """Reads the plan that a fused engine file runs `batch` images with. Nothing is compiled, no library is needed."""
    bundle = read_bundle(path)
    facts = checked_facts(path, bundle.facts)
    batches: dict[str, list[int]] = {}
    for name in bundle.names():
        folder, _, rest = name.partition("/")
        if folder == "plans" and rest.partition("/")[2].isdecimal():
            batches.setdefault(rest.partition("/")[0], []).append(int(rest.partition("/")[2]))
    if not batches:
        raise UsageError(
            f"{path}: it was built for {facts['backend']} and holds no launch plan, expected a fused engine; build one "
            "with `python -m tkfnet_engine.build --fp16 --device cuda`, or leave the file out"
        )
    target = _target(arch, chip, tuple(a for a in ARCHS if a in batches))
    buckets = tuple(sorted(batches[target.arch]))
    if not 1 <= batch <= buckets[-1]:
        raise UsageError(f"--batch: got {batch}, expected 1 to {buckets[-1]}, the largest batch of {path}")
    plan = Plan.from_json(bundle.bytes(f"plans/{target.arch}/{bucket_for(batch, buckets)}"))
    network = network_of_config(TKFNetConfig.from_dict(facts["model"]), Preprocessing.from_dict(facts["preprocessing"]))
    return report(plan, _code(path, bundle, target.arch), target, network)


def _target(arch: str | None, chip: str | None, archs: tuple[str, ...]) -> Chip:
    """The chip to count for. archs: those that there is code for; without a choice `DEFAULT_ARCH` or else the first."""
    if chip is not None:
        found = chip_named(chip, arch if arch is None else arch_named(arch).name)
    else:
        fallback = DEFAULT_ARCH if DEFAULT_ARCH in archs else archs[0]
        found = CHIPS[default_chip(fallback if arch is None else arch)]
    if found.arch not in archs:
        raise UsageError(
            f"architecture: got {found.arch}, expected one that the engine is built for: {', '.join(archs)}"
        )
    return found


def _code(path: str, bundle: Bundle, arch: str) -> dict[str, Code]:
    index = bundle.bytes(f"cubins/{arch}/index")
    try:
        entries = index_from_json(index)["cubins"]
        fields = Code.__dataclass_fields__
        code = {variant: Code(**{name: entry[name] for name in fields}) for variant, entry in entries.items()}
        counts = [n for c in code.values() for n in (c.spilled_bytes, *c.tensor_core.values())]
        if not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("a count that is no whole number")
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a BundleError too, which knows no path
        why = error if isinstance(error, BundleError) else repr(error)
        raise BundleError(
            f"{path}: its index of kernels is damaged ({why}); build the engine again", "cubins"
        ) from None
    return code


def report(plan: Plan, code: Mapping[str, Code], chip: Chip, network: Network) -> dict[str, Any]:
    """JSON types. Bytes: distinct memory, each once per launch; `loads`: what thread blocks ask for, with re-reads."""
    if missing := sorted({launch.variant for launch in plan.launches} - code.keys()):
        raise BundleError(f"launch plan: it needs kernel {missing[0]}, expected it among {len(code)}", "cubins")
    launches = [_row(launch, code[launch.variant], chip) for launch in plan.launches]
    floor = floor_bytes(network, plan.batch, plan.precision)
    totals = {name: sum(row[name] for row in launches) for name in ("flops", "bytes", "loads", "spilled_bytes")}
    return {
        "arch": plan.arch,
        "chip": chip.name,
        "batch": plan.batch,
        "precision": plan.precision,
        "launches": launches,
        "totals": {
            "launches": len(launches),
            **totals,
            "roofline_us": round(sum(row["roofline_us"] for row in launches), 3),
            "arena_bytes": plan.arena_bytes,
            "weight_bytes": plan.weight_bytes,
            "bytes_over_floor": round(totals["bytes"] / floor, 4),
        },
        "floor_bytes": floor,
    }


def _row(launch: Launch, code: Code, chip: Chip) -> dict[str, Any]:
    precision = product_precision(launch)
    fits = occupancy(ARCHS[chip.arch], chip, launch.blocks, code.registers, code.shared_bytes, launch.warps)
    return {
        "name": launch.name,
        "kernel": launch.kernel,
        "grid": list(launch.grid),
        "blocks": launch.blocks,
        "waves": None if fits.waves is None else round(fits.waves, 3),
        "warps": launch.warps,
        "registers": code.registers,
        "spilled_bytes": code.spilled_bytes,
        "shared_bytes": code.shared_bytes,
        "occupancy": round(fits.warps, 3),
        "flops": launch.flops,
        "bytes": launch.bytes,
        "loads": launch.loads,
        "tensor_core": dict(code.tensor_core),
        "roofline_us": round(1e6 * roofline_seconds(chip, launch.flops, launch.bytes, precision), 3),
    }


def text_of_report(found: Mapping[str, Any]) -> str:
    """A table of at most 120 columns (names of launches up to 20), and the totals."""
    heads = (
        "launch",
        "blocks",
        "waves",
        "warps",
        "regs",
        "spill",
        "KiB sh.",
        "occup.",
        "MFLOP",
        "MB",
        "MB asked",
        "us",
    )
    rows = [
        (
            row["name"],
            row["blocks"],
            "-" if row["waves"] is None else f"{row['waves']:.2f}",
            row["warps"],
            row["registers"],
            row["spilled_bytes"],
            f"{row['shared_bytes'] / 1024:.0f}",
            f"{row['occupancy']:.0%}",
            f"{row['flops'] / 1e6:.1f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['loads'] / 1e6:.1f}",
            f"{row['roofline_us']:.2f}",
            ", ".join(f"{count} {name}" for name, count in row["tensor_core"].items()) or "-",
        )
        for row in found["launches"]
    ]
    widths = (20, 7, 7, 6, 5, 6, 8, 7, 10, 8, 9, 8)
    lines = [
        f"{line[0]:<{widths[0]}}" + "".join(f"{v:>{w}}" for v, w in zip(line[1:-1], widths[1:])) + f"  {line[-1]}"
        for line in [(*heads, "tensor cores"), *rows]
    ]
    totals, chip = found["totals"], CHIPS[found["chip"]]
    unit = "TOP" if found["precision"] == "int8" else "TFLOP"
    return "\n".join(
        [
            *lines,
            "",
            f"{found['arch']}, {found['precision']}, batch {found['batch']}: {totals['launches']} launches, "
            f"{totals['flops'] / 1e9:.3f} GFLOP, arena {totals['arena_bytes'] / 1e6:.2f} MB, weights "
            f"{totals['weight_bytes'] / 1e6:.2f} MB, {totals['spilled_bytes']} bytes spilled",
            f"moved {totals['bytes'] / 1e6:.2f} MB, {totals['bytes_over_floor']:.3f} x the floor of "
            f"{found['floor_bytes'] / 1e6:.2f} MB; asked for by blocks {totals['loads'] / 1e6:.1f} MB",
            f"roofline {totals['roofline_us']:.1f} us on {chip.name} ({chip.multiprocessors} multiprocessors, "
            f"{chip.peak(found['precision']) / 1e12:g} {unit}/s, {chip.bandwidth / 1e9:g} GB/s)",
        ]
    )


def network_of_config(config: TKFNetConfig, preprocessing: Preprocessing) -> Network:
    """What `kernels.network.network_of` reads from a folded network, without one."""
    cin, blocks = config.scaled(64), []
    for stage, depth in enumerate(DEPTHS[config.backbone]):
        channels = config.scaled(64 << stage)
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            name = f"layer{stage + 1}.{index}"
            if config.backbone == "resnet50":
                shapes = ((cin, channels, 1, 1), (channels, channels, 3, stride), (channels, 4 * channels, 1, 1))
            else:
                shapes = ((cin, channels, 3, stride), (channels, channels, 3, 1))
            convs = tuple(Conv(f"{name}.conv{i + 1}", *shape) for i, shape in enumerate(shapes))
            cout = convs[-1].cout
            project = Conv(f"{name}.project", cin, cout, 1, stride) if stride != 1 or cin != cout else None
            blocks.append(Block(convs, project))
            cin = cout
    return Network(
        size=preprocessing.size,
        classes=config.classes,
        channel_means=tuple(255 * mean for mean in preprocessing.mean),
        stem=config.scaled(64),
        blocks=tuple(blocks),
        pool=config.pool if config.tafe else None,
        hidden=max(1, config.features // 16) if config.dcif else 0,
        wide=config.scaled(256),
        narrow=config.scaled(128),
    )
