"""Ahead-of-time compilation: each kernel once, the same bytes everywhere, and code that is fast and free of races.

Compiling needs no GPU, so this is where races that the interpreter cannot see are looked for: in the PTX.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tkfnet_engine.bundle import read_bundle, write_bundle
from tkfnet_engine.errors import BackendError, UsageError
from tkfnet_engine.export.cubin_facts import tritons_tool
from tkfnet_engine.export.cubins_from_plan import compile_launches, cubin_tensors, least_driver
from tkfnet_engine.kernels.chips import ARCHS
from tkfnet_engine.kernels.plan import Buffer, Launch

ROOT = Path(__file__).resolve().parents[2]
# Kernels whose work is products: each must run on the tensor cores.
PRODUCTS = ("stem_kernel", "conv_kernel", "split_kernel", "detail_and_gate_kernel", "merge_kernel")

# Kernels of these tests: a product with split-K, with and without what makes it safe.
KERNELS = """
import os
import triton
import triton.language as tl

@triton.jit
def product_kernel(
    a_ptr, b_ptr, part_ptr, out_ptr, count_ptr, M,
    N: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PDL: tl.constexpr, BARRIER: tl.constexpr, LATE: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    if PDL and not LATE:
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(part * (K // SPLIT), (part + 1) * (K // SPLIT), BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + m[:, None] * K + k[None, :], mask=m[:, None] < M, other=0.0)
        acc = tl.dot(a, tl.load(b_ptr + n[None, :] * K + k[:, None]), acc)
    if PDL and LATE:
        tl.extra.cuda.gdc_wait()
    o = m[:, None] * N + n[None, :]
    if SPLIT == 1:
        tl.store(out_ptr + o, acc.to(tl.float16), mask=m[:, None] < M)
    else:
        tl.store(part_ptr + part * M * N + o, acc, mask=m[:, None] < M)
        if BARRIER:
            tl.debug_barrier()
        before = tl.atomic_add(count_ptr + tl.program_id(0), 1, sem="acq_rel" if BARRIER else "relaxed")
        if before == SPLIT - 1:
            total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for j in range(SPLIT):
                total += tl.load(part_ptr + j * M * N + o, mask=m[:, None] < M, other=0.0)
            tl.store(out_ptr + o, total.to(tl.float16), mask=m[:, None] < M)

def kernel_named(name):
    if name == "fatal_kernel":
        print("the compiler's last words", flush=True)
        os._exit(3)
    return globals()[name]
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The name of a module with `KERNELS`, importable here and by the compiler's processes."""
    name, folder = f"kernels_of_{tmp_path.name.replace('-', '_')}", tmp_path / "modules"
    folder.mkdir()
    (folder / f"{name}.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(folder)
    return name


def _product(kernel="product_kernel", split=1, tile=(64, 32, 64), warps=4, stages=3, args=None, **constexprs) -> Launch:
    buffers = {"a_ptr": "f16", "b_ptr": "f16", "part_ptr": "f32", "out_ptr": "f16", "count_ptr": "i32"}
    sizes = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile))
    chosen = {"N": 256, "K": 2048, "SPLIT": split, **sizes, "PDL": False, "BARRIER": True, "LATE": False} | constexprs
    arguments = (*((name, Buffer("arena", 0, dtype, 64)) for name, dtype in buffers.items()), ("M", 5))
    return Launch(
        "layer", kernel, (1, 1, 1), args or arguments, tuple(chosen.items()), warps, stages, 0, 0, 0, 0
    )  # fmt: skip


# --- what the PTX must show ------------------------------------------------------------------------------

_GLOBAL = re.compile(
    r"\b(ld|st|atom|red|prefetch)\.(?!shared|param|local|const)\S*global|\bcp\.(async|reduce)\.(?!commit|wait)|\bmultimem"
)
_STORE = re.compile(r"\bst\.\S*global")
_LOAD = re.compile(r"\bld\.\S*global")
_ATOMIC = re.compile(r"\b(atom|red)\.\S*global")
_BARRIER = re.compile(r"\b(bar|barrier)(\.cta)?\.sync\b")
_WAIT = re.compile(r"\bgriddepcontrol\.wait\b")


def races_in_ptx(ptx: str, split: int, pdl: bool) -> list[str]:
    """What is wrong with a kernel's order of memory accesses, as they stand in its PTX."""
    lines = [line.strip() for line in ptx.splitlines() if line.strip() and not line.strip().startswith("//")]

    def where(pattern: re.Pattern, start: int = 0, end: int | None = None) -> list[int]:
        return [i for i in range(start, len(lines) if end is None else end) if pattern.search(lines[i])]

    found = []
    atomics = where(_ATOMIC)
    if bool(atomics) != (split > 1):
        found.append(f"{len(atomics)} atomic instructions in a kernel with SPLIT {split}")
    for at in atomics:
        if not re.search(r"\bacq_rel\b", lines[at].replace(".", " ")):
            found.append(f"does not release and acquire: {lines[at]}")
        # The parts are stored before the counter is; between them every thread has to arrive.
        stores = where(_STORE, end=at)
        if not stores or not where(_BARRIER, stores[-1], at):
            found.append(f"no barrier between the last store and: {lines[at]}")
        loads = where(_LOAD, at)
        if not loads or not where(_BARRIER, at, loads[0]):
            found.append(f"no barrier between the first load of the parts and: {lines[at]}")
    waits, accesses = where(_WAIT), where(_GLOBAL)
    if bool(waits) != pdl:
        found.append(f"{len(waits)} waits for the kernel before in one with PDL {pdl}")
    if pdl and (not accesses or (waits and waits[0] > accesses[0])):
        found.append(f"touches memory before it waits: {lines[accesses[0]] if accesses else 'never'}")
    return found


def _races(cubin, launch) -> list[str]:
    constexprs = dict(launch.constexprs)
    return races_in_ptx(cubin.ptx, constexprs.get("SPLIT", 1), constexprs["PDL"])


def test_the_check_for_races_finds_them(library):
    sound, relaxed = _product(split=4, PDL=True), _product(split=4, BARRIER=False)
    late = _product(PDL=True, LATE=True)
    cubins = compile_launches([sound, relaxed, late], "sm_90", library=library)
    assert _races(cubins[sound.variant], sound) == []
    assert any("does not release" in race for race in _races(cubins[relaxed.variant], relaxed))
    assert any("touches memory before" in race for race in _races(cubins[late.variant], late))
    ptx = cubins[sound.variant].ptx
    assert races_in_ptx(ptx, 1, True) and races_in_ptx(ptx, 4, False)
    assert races_in_ptx(ptx.replace("griddepcontrol.wait", "//"), 4, True)
    # Barriers stand there for other reasons as well, so those before and after the counter go one side at a time.
    before, atomic, after = re.split(r"(atom\.global.*\n)", ptx)
    at = before.rindex("st.global")
    unordered = before[:at] + before[at:].replace("bar.sync", "// bar") + atomic + after
    assert any("between the last store" in race for race in races_in_ptx(unordered, 4, True))
    at = after.index("ld.global")
    unordered = before + atomic + after[:at].replace("bar.sync", "// bar") + after[at:]
    assert any("between the first load" in race for race in races_in_ptx(unordered, 4, True))


# --- the machinery ---------------------------------------------------------------------------------------


def test_each_variant_is_compiled_once(library, capfd):
    small, wide, split = _product(), _product(tile=(128, 128, 64), warps=8), _product(split=8)
    cubins = compile_launches([small, wide, small, split, small], "sm_90", library=library)
    assert list(cubins) == [small.variant, wide.variant, split.variant]
    for cubin in cubins.values():
        assert cubin.code.startswith(b"\x7fELF") and cubin.entry == "product_kernel"
        assert 0 < cubin.registers <= 255 and cubin.spilled_bytes == 0
        assert set(cubin.tensor_core) == {"HGMMA"} and ".target sm_90a" in cubin.ptx
    assert cubins[small.variant].shared_bytes == 3 * 2 * (64 + 32) * 64
    assert cubins[wide.variant].registers > cubins[small.variant].registers
    # Nothing on standard output: results go there.
    assert capfd.readouterr().out == ""
    assert compile_launches([], "sm_90", library=library) == {}


@pytest.mark.parametrize(
    ("arch", "instruction"),
    [("sm_80", "HMMA"), ("sm_86", "HMMA"), ("sm_89", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA"),
     ("sm_120", "HMMA")],
)  # fmt: skip
def test_every_architecture_compiles(library, arch, instruction):
    launch = _product()
    cubin = compile_launches([launch], arch, library=library)[launch.variant]
    assert list(cubin.tensor_core) == [instruction] and f".target {arch}" in cubin.ptx
    assert 12000 <= least_driver(arch, cubin.ptx) < 14000
    # The first system KiB of shared memory is not the kernel's.
    assert 0 < cubin.shared_bytes < 3 * 2 * (64 + 32) * 64 + 1024


def test_spills_are_the_assemblers(library, tmp_path):
    launch = _product(tile=(128, 256, 64))
    cubin = compile_launches([launch], "sm_80", library=library)[launch.variant]
    (tmp_path / "k.ptx").write_text(cubin.ptx)
    command = [tritons_tool("ptxas"), "-v", "--gpu-name=sm_80", "-lineinfo", "-suppress-debug-info"]
    # As the installed Triton calls it.
    option = "--regAllocOptLevel=2"
    compiler = Path(find_spec("triton").origin).parent / "backends" / "nvidia" / "compiler.py"
    command += [option] if option in compiler.read_text() else []
    log = subprocess.run([*command, tmp_path / "k.ptx", "-o", os.devnull], capture_output=True, text=True).stderr
    pattern = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    assert cubin.spilled_bytes == max(map(int, re.search(pattern, log).groups())) > 0
    assert cubin.registers == int(re.search(r"Used (\d+) registers", log)[1])


def test_the_callers_settings_change_nothing(library, tmp_path, monkeypatch):
    launch = _product(split=2)
    plain = compile_launches([launch], "sm_90", library=library)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "triton.py").write_text("raise ImportError('this is not Triton')")
    for name, value in {
        "TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "0", "TRITON_OVERRIDE_ARCH": "sm80",
        "TRITON_CACHE_DIR": str(folder / "cache"), "TRITON_KERNEL_DUMP": "1", "TRITON_DISABLE_LINE_INFO": "0",
        "PTXAS_OPTIONS": "-O0", "DISABLE_PTXAS_OPT": "1", "HOME": str(folder), "TMPDIR": str(folder),
        "PYTHONHASHSEED": "7",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    assert compile_launches([launch], "sm_90", jobs=1, library=library) == plain
    assert [path.name for path in folder.iterdir()] == ["triton.py"]


def test_what_does_not_compile_is_named(library, tmp_path, monkeypatch):
    def refused(launch, *words, arch="sm_90"):
        with pytest.raises(BackendError) as refusal:
            compile_launches([launch], arch, library=library)
        assert "\n" not in str(refusal.value)
        for word in (launch.kernel, arch, *words):
            assert word in str(refusal.value), str(refusal.value)

    refused(_product(tile=(64, 48, 64)), "power of 2")
    refused(_product(PDL=True), "requires .target sm_90", arch="sm_80")
    refused(_product("absent_kernel"), "KeyError")
    refused(_product("fatal_kernel"), "ended with 3", "the compiler's last words")
    refused(_product(args=(("a_ptr", Buffer("arena", 0, "f16", 8)),)), "the launch gives", "the kernel takes")
    refused(_product(more=1), "the launch gives")
    refused(_product(tile=(128, 128, 64), warps=8, stages=5), "bytes of shared memory", "101376", arch="sm_86")


def test_failures_can_be_collected_and_cost_nobody_else(library):
    """Also one that takes the compiler's process along: the next launch gets another process."""
    bad = [_product("fatal_kernel"), _product(tile=(64, 48, 64)), _product(tile=(128, 128, 64), warps=8, stages=8)]
    good, failed = _product(), {}
    cubins = compile_launches([*bad, good], "sm_90", jobs=1, library=library, failed=failed)
    assert list(cubins) == [good.variant] and list(failed) == [launch.variant for launch in bad]
    assert "bytes of shared memory" in str(failed[bad[2].variant])


def test_bad_requests(monkeypatch):
    with pytest.raises(UsageError, match="'sm_75', expected one of sm_80"):
        compile_launches([], "sm_75")
    monkeypatch.setattr("tkfnet_engine.export.cubins_from_plan.find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install triton"):
        compile_launches([], "sm_90")


@pytest.mark.parametrize(
    ("arch", "version", "driver"),
    [
        ("sm_80", "8.8", 12000), ("sm_90", "8.0", 12000), ("sm_90", "9.0", 13000), ("sm_90", "9.4", 13000),
        ("sm_100", "8.7", 12080), ("sm_120", "8.8", 12080), ("sm_100", "9.1", 13000), ("sm_80", "10.0", 14000),
    ],
)  # fmt: skip
def test_least_driver(arch, version, driver):
    assert least_driver(arch, f"//\n.version {version}\n.target {arch}a\n") == driver


def test_least_driver_of_nothing():
    with pytest.raises(BackendError, match="names no version"):
        least_driver("sm_90", "")


def test_tensors_of_an_engine_file(library, tmp_path):
    launches = [_product(), _product(split=8)]
    cubins = compile_launches(launches, "sm_90", library=library)
    tensors = cubin_tensors(cubins, "sm_90")
    # The order in which they were compiled shows nowhere.
    assert tensors == cubin_tensors(dict(reversed(cubins.items())), "sm_90")
    assert list(tensors) == list(cubin_tensors(dict(reversed(cubins.items())), "sm_90"))
    index = json.loads(tensors["cubins/sm_90/index"])
    assert tensors["cubins/sm_90/index"] == json.dumps(index, sort_keys=True, separators=(",", ":")).encode()
    assert index["driver"] in (12000, 13000) and index["cubins"].keys() == cubins.keys()
    for variant, cubin in cubins.items():
        assert tensors[f"cubins/sm_90/{variant}"] == cubin.code
        assert index["cubins"][variant] == {
            "entry": "product_kernel", "registers": cubin.registers, "spilled_bytes": 0,
            "shared_bytes": cubin.shared_bytes, "tensor_core": cubin.tensor_core,
        }  # fmt: skip
    write_bundle(tmp_path / "e.tkf", tensors, {})
    assert set(read_bundle(tmp_path / "e.tkf").names()) == set(tensors)


# --- the network's own kernels ---------------------------------------------------------------------------


@functools.cache
def _plan(arch: str, batch: int, precision: str = "float16", kept: tuple[str, ...] = ()):
    from tkfnet_engine.kernels.planner import plan_from_network
    from tkfnet_engine.plan_report import network_of_config
    from tkfnet_engine.spec import Preprocessing, TKFNetConfig

    network = network_of_config(TKFNetConfig(), Preprocessing())
    return plan_from_network(network, batch, precision, arch, kept_float=kept)


_COMPILED: dict[str, dict] = {}


def _compiled(arch: str, batch: int) -> tuple[tuple[Launch, ...], dict]:
    """The plan's launches and their code; what one plan has in common with another is compiled once per session."""
    launches, known = _plan(arch, batch).launches, _COMPILED.setdefault(arch, {})
    known |= compile_launches([launch for launch in launches if launch.variant not in known], arch)
    return launches, known


QUICK = ("sm_90", 1)
MATRIX = [
    pytest.param(arch, batch, id=f"{arch}-{batch}", marks=[] if (arch, batch) == QUICK else pytest.mark.full)
    for arch in ARCHS
    for batch in (1, 32, 256)
]


def _faults(launch: Launch, cubin, arch: str) -> list[str]:
    """What is wrong with the code of any launch."""
    wrong = []
    if cubin.spilled_bytes:
        wrong.append(f"{cubin.spilled_bytes} bytes spilled")
    if cubin.registers * 32 * launch.warps > ARCHS[arch].registers_per_sm:
        wrong.append(f"{cubin.registers} registers, {launch.warps} warps")
    if cubin.shared_bytes > ARCHS[arch].shared_per_block:
        wrong.append(f"{cubin.shared_bytes} bytes of shared memory")
    if dict(launch.constexprs)["PDL"] != ARCHS[arch].pdl:
        wrong.append(f"PDL {dict(launch.constexprs)['PDL']}")
    return [f"{launch.name}: {fault}" for fault in wrong + _races(cubin, launch)]


@pytest.mark.parametrize(("arch", "batch"), MATRIX)
def test_code_of_the_network(arch, batch):
    launches, cubins = _compiled(arch, batch)
    wrong = []
    for launch in launches:
        cubin = cubins[launch.variant]
        wrong += _faults(launch, cubin, arch)
        if launch.kernel in PRODUCTS:
            expected = {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}.get(arch, "HMMA")
            if expected not in cubin.tensor_core:
                wrong.append(f"{launch.name}: {cubin.tensor_core}, without {expected}")
    assert not wrong, "\n".join(wrong)


def test_the_plan_splits_and_the_checks_see_it():
    launches, cubins = _compiled(*QUICK)
    split = [launch for launch in launches if dict(launch.constexprs).get("SPLIT", 1) > 1]
    assert len(split) > 5 and all("atom.global" in cubins[launch.variant].ptx for launch in split)


_DIGESTS = """
import hashlib, json, sys
from tkfnet_engine.export.cubins_from_plan import compile_launches
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.plan_report import network_of_config
from tkfnet_engine.spec import Preprocessing, TKFNetConfig
import tkfnet_engine.kernels
arch, batch, kernels = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
network = network_of_config(TKFNetConfig(), Preprocessing())
launches = [l for l in plan_from_network(network, batch, "float16", arch).launches if l.variant in kernels]
cubins = compile_launches(launches, arch, jobs=1)
sha256 = lambda data: hashlib.sha256(data).hexdigest()
digests = {variant: [sha256(cubin.code), sha256(cubin.ptx.encode())] for variant, cubin in cubins.items()}
print(json.dumps([tkfnet_engine.kernels.__file__, digests]))
"""


def _copy_of_the_tree(folder: Path) -> Path:
    """The package as an installation has it, somewhere else."""
    package = folder / "a copy" / "tkfnet_engine"
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "tkfnet_engine", package, ignore=ignored)
    for name in ("kernels", "export"):
        shutil.copytree(ROOT / name, package / name, ignore=ignored)
    return package.parent


@pytest.mark.parametrize(("arch", "batch"), MATRIX)
def test_the_same_code_from_another_folder(arch, batch, tmp_path):
    launches, cubins = _compiled(arch, batch)
    variants = {launch.variant for launch in launches}
    if (arch, batch) == QUICK:
        # One of each kernel will do, and one that splits.
        first = {(l.kernel, dict(l.constexprs).get("SPLIT", 1) > 1): l.variant for l in reversed(launches)}  # noqa: E741
        variants = set(first.values())
    copy = _copy_of_the_tree(tmp_path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _DIGESTS, arch, str(batch), ",".join(variants)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.fspath(copy), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    module, digests = json.loads(done.stdout)
    assert module.startswith(os.fspath(copy)) and digests.keys() == variants
    for variant, (code, ptx) in digests.items():
        assert ptx == hashlib.sha256(cubins[variant].ptx.encode()).hexdigest(), variant
        # CUDA 12.9's assembler has given two results for one PTX of sm_100; elsewhere never.
        assert code == hashlib.sha256(cubins[variant].code).hexdigest() or arch == "sm_100", variant
        assert os.fspath(ROOT).encode() not in cubins[variant].code


# --- the command -----------------------------------------------------------------------------------------


def test_info_plans_and_compiles(command, monkeypatch):
    launches, cubins = _compiled(*QUICK)
    monkeypatch.setattr("tkfnet_engine.export.cubins_from_plan.compile_launches", lambda launches, arch: cubins)
    shown = command("info", "--plan", "--json")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert (found["arch"], found["chip"], found["batch"]) == ("sm_90", "H200", 1)
    assert [row["name"] for row in found["launches"]] == [launch.name for launch in launches]
    assert found["floor_bytes"] == 9_336_860 + 28_030_176
    assert found["totals"]["bytes"] == sum(row["bytes"] for row in found["launches"]) >= found["floor_bytes"]
    assert found["totals"]["flops"] == sum(launch.flops for launch in launches)
    assert found["totals"]["spilled_bytes"] == 0 and found["totals"]["launches"] <= 24
    table = command("info", "--plan").out
    assert all(len(line) <= 120 for line in table.splitlines()) and "HGMMA" in table
