"""What each architecture allows a thread block, and how fast named chips are. Data from NVIDIA's own documents.

Architectures: CUDA programming guide, "Technical Specifications per Compute Capability"
(https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError

KIB, MIB = 1024, 1024**2


@dataclass(frozen=True)
class Arch:
    """Limits of one architecture. shared_per_block: bytes of dynamic shared memory that a launch may ask for;
    shared_per_sm: bytes that a multiprocessor's resident blocks share."""

    name: str
    shared_per_block: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    registers_per_sm: int = 65536

    @property
    def number(self) -> int:
        """The compute capability without its dot: 90."""
        return int(self.name.removeprefix("sm_"))

    @property
    def wgmma(self) -> bool:
        """Whether products are those of warp groups, with both operands in shared memory: compute capability 9.0."""
        return self.number == 90

    @property
    def operands_in_registers(self) -> bool:
        """Whether products read both operands from registers: all but 9.0 and, with its tensor memory, 10.0."""
        return self.number not in (90, 100)

    @property
    def fp8(self) -> bool:
        """Whether there are products of FP8: from compute capability 8.9 on."""
        return self.number >= 89

    @property
    def pdl(self) -> bool:
        """Whether programmatic dependent launch exists: from compute capability 9.0 on."""
        return self.number >= 90


ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("sm_80", 163 * KIB, 164 * KIB, 2048, 32),
        Arch("sm_86", 99 * KIB, 100 * KIB, 1536, 16),
        Arch("sm_89", 99 * KIB, 100 * KIB, 1536, 24),
        Arch("sm_90", 227 * KIB, 228 * KIB, 2048, 32),
        Arch("sm_100", 227 * KIB, 228 * KIB, 2048, 32),
        Arch("sm_120", 99 * KIB, 100 * KIB, 1536, 24),
    )
}


@dataclass(frozen=True)
class Chip:
    """A product. fp16_flops, int8_ops, float8_flops: peaks of dense products per second, those of floats with float32
    sums; float8_flops is None where there is no FP8. bandwidth: of device memory, bytes per second; l2_bytes: of its
    last cache; source: where these stand."""

    name: str
    arch: str
    multiprocessors: int
    fp16_flops: float
    int8_ops: float
    float8_flops: float | None
    bandwidth: float
    l2_bytes: int
    source: str

    def peak(self, precision: str) -> float:
        """Operations per second of products in "float16", "int8" or "float8". `UsageError` where there are none."""
        peaks = {"float16": self.fp16_flops, "int8": self.int8_ops, "float8": self.float8_flops}
        if (found := peaks.get(precision)) is None:
            has = " or ".join(name for name, peak in peaks.items() if peak is not None)
            raise UsageError(f"precision: got {precision!r} on {self.name}, expected {has}")
        return found


# Where a data sheet has only the figure with sparsity, half of it. GeForce boards sum products of floats into float32
# at half the rate that is printed largest. The first chip of an architecture is its default.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            "A100-SXM-80GB", "sm_80", 108, 312e12, 624e12, None, 2039e9, 40 * MIB,
            "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
            "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf; multiprocessors, L2: "
            "https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/nvidia-ampere-architecture-whitepaper.pdf",
        ),
        Chip(
            "RTX-3090", "sm_86", 82, 71e12, 284e12, None, 936e9, 6 * MIB,
            "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
        ),
        Chip(
            "L4", "sm_89", 58, 121e12, 242e12, 242e12, 300e9, 48 * MIB,
            "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/"
            "nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf",
        ),
        Chip(
            "RTX-4090", "sm_89", 128, 165.2e12, 660.6e12, 330.3e12, 1008e9, 72 * MIB,
            "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/"
            "nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf",
        ),
        Chip(
            "H200", "sm_90", 132, 989.4e12, 1978.9e12, 1978.9e12, 4800e9, 50 * MIB,
            "https://www.nvidia.com/en-us/data-center/h200/; multiprocessors, L2: as of H100-SXM, the same die",
        ),
        Chip(
            "H100-SXM", "sm_90", 132, 989.4e12, 1978.9e12, 1978.9e12, 3352e9, 50 * MIB,
            "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper",
        ),
        Chip(
            "B200", "sm_100", 148, 2250e12, 4500e12, 4500e12, 8000e9, 126 * MIB,
            "https://resources.nvidia.com/en-us-blackwell-architecture; multiprocessors, L2: "
            "https://chipsandcheese.com/p/nvidias-b200-keeping-the-cuda-juggernaut",
        ),
        Chip(
            "RTX-5090", "sm_120", 170, 209.5e12, 838e12, 419e12, 1792e9, 96 * MIB,
            "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
        ),
    )
}  # fmt: skip


def arch_named(name: str) -> Arch:
    """`UsageError` for one that no kernel is compiled for."""
    if name not in ARCHS:
        raise UsageError(f"architecture: got {name!r}, expected one of {', '.join(ARCHS)}")
    return ARCHS[name]


def chip_named(name: str, arch: str | None = None) -> Chip:
    """The chip, in any case. `UsageError` if it is not in the table, or not of architecture `arch`."""
    known = {key.lower(): chip for key, chip in CHIPS.items() if arch in (None, chip.arch)}
    if name.lower() not in known:
        of_arch = f" of {arch}" if arch else ""
        names = ", ".join(chip.name for chip in known.values())
        raise UsageError(f"chip: got {name!r}, expected one{of_arch}: {names}")
    return known[name.lower()]


def default_chip(arch: str) -> str:
    """The name of the chip that stands for `arch`. `UsageError` for an unknown architecture."""
    return next(chip.name for chip in CHIPS.values() if chip.arch == arch_named(arch).name)


def has_float8(arch: str) -> bool:
    """Whether the tensor cores of `arch` multiply FP8: from compute capability 8.9 on."""
    return CHIPS[default_chip(arch)].float8_flops is not None
