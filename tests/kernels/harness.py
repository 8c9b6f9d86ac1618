"""Launches run in the interpreter over memory that is NaN until it is written, and the one rule for their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter as triton_interpreter

from tkfnet_engine.kernels.builder import PlanBuilder
from tkfnet_engine.kernels.interpret import Interpreter
from tkfnet_engine.kernels.memory import TORCH_DTYPES
from tkfnet_engine.kernels.network import Block, Conv, Network
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.kernels.plan import ALIGNMENT, IMAGES, Buffer, Launch, Plan
from tkfnet_engine.kernels.planner import plan_from_network, weight_buffers, weight_layout
from tkfnet_engine.kernels.reference import differences
from tkfnet_engine.kernels.tiles import Tile

# What each kernel may write.
WRITTEN = {
    "pack_pixels_kernel": {"packed_ptr"},
    "stem_kernel": {"y_ptr"},
    "conv_kernel": {"y_ptr"},
    "split_kernel": {"x_ptr", "d_ptr", "s_ptr"},
    "detail_and_gate_kernel": {"h_ptr", "g_ptr"},
    "merge_kernel": {"z_ptr"},
    "classify_kernel": {"logits_ptr"},
}
OF_SPLIT_K = {"partial_ptr", "counter_ptr"}
# NaN in FP16, FP8 and float32. An int8 of -1 passes for a value, and so does NaN once it is quantised: what those tests
# do not want to see is looked for by poisoning with something else as well.
POISON, OTHER_POISON = 0xFF, 0x55


class Bench:
    """The launches of `builder` with memory of their own.

    blob: the packed weights. size, classes: of pixels and logits, where the launches touch them.
    """

    def __init__(self, builder: PlanBuilder, blob: bytes, batch: int, size: int = 1, classes: int = 1):
        plan = builder.finish(batch=batch, precision="float16", arch="sm_90", size=size, classes=classes)
        self.plan = Plan.from_json(plan.to_json())  # what an engine file would give back
        self.interpreter = Interpreter(self.plan, blob)

    def run(
        self,
        pixels: np.ndarray | None = None,
        clean: bool = True,
        images: int | None = None,
        poison: int = POISON,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Runs all launches; what each argument held right after its launch, flat, as "launch.argument".

        inputs: arguments of the first launch. clean: poison everything else first; without it, leftovers of the run
        before remain. images: how many the caller has, where no pixels say so. Fails where a launch writes outside its
        outputs or leaves a counter that is not zero, and where one that is quantised is wrong (`differences`).
        """
        for space in ("pixels", "arena", "logits") if clean else ():
            self._bytes(space).fill_(poison)
        arguments = dict(self.plan.launches[0].args)
        for name, value in inputs.items():
            view = self.interpreter.view(arguments[name])
            held_as = value.to(view.dtype).to(torch.float64)
            assert torch.equal(held_as.nan_to_num(), value.double().nan_to_num()), f"{name}: its buffer cannot hold it"
            view.copy_(value.reshape(-1))
        if pixels is None:
            pixels = np.zeros((images or self.plan.batch, self.plan.size, self.plan.size, 3), np.uint8)
        held: dict[str, Tensor] = {}
        before = {}

        def remember() -> None:
            before.update({space: self._bytes(space).clone() for space in ("weights", "arena", "counters", "logits")})

        def check(launch: Launch) -> None:
            if launch.quantised:
                args = tuple((n, len(pixels) if n == IMAGES else v) for n, v in launch.args)
                found = differences(replace(launch, args=args), self.interpreter.view)
                assert all(d.right for d in found), f"{launch.name}: {found}"
            for space, bytes_before in before.items():
                changed = self._bytes(space) != bytes_before
                for name, buffer in launch.args:
                    written = name in WRITTEN[launch.kernel] or name in OF_SPLIT_K
                    if isinstance(buffer, Buffer) and buffer.space == space and written:
                        changed[buffer.offset : buffer.offset + buffer.nbytes] = False
                where = changed.nonzero().flatten()
                assert not len(where), f"{launch.name} wrote {len(where)} foreign bytes of {space}: {where}"
            assert not self._bytes("counters")[:-ALIGNMENT].any(), f"{launch.name} left counters that are not zero"
            for name, buffer in launch.args:
                if isinstance(buffer, Buffer) and buffer.space in ("arena", "logits"):
                    held[f"{launch.name}.{name.removesuffix('_ptr')}"] = self.interpreter.view(buffer).clone()
            remember()

        remember()
        self.interpreter.run(pixels, check)
        return held

    def _bytes(self, space: str) -> Tensor:
        """All of a space, and what lies behind it."""
        return self.interpreter.view(Buffer(space, 0, "u8", max(self.plan.nbytes(space), 1) + ALIGNMENT))


# Bits of a number, and the least exponent of those that have them all.
_FORMATS = {torch.float16: (11, -14), torch.float32: (24, -126)}


def assert_as_good_as_pytorch(got: Tensor, exact: Tensor, own: Tensor, what: str = "", roundings: int = 1) -> None:
    """The rule for every kernel: its error, the largest and the root mean square, is at most twice that of plain
    PyTorch in the kernel's own precision, plus one rounding of the output.

    got: the kernel's output. exact: the reference in float64. own: the reference in FP16, or float32 where the kernel
    computes in that. roundings: how many the output is worth, where it is the end of a chain of layers.
    """
    assert got.shape == exact.shape == own.shape, f"{what}: {got.shape}, {exact.shape}, {own.shape}"
    assert exact.dtype == torch.float64 and got.dtype == own.dtype
    bits, least = _FORMATS[own.dtype]
    # Half the distance between neighbours.
    exponent = torch.frexp(exact).exponent - 1
    rounding = roundings * torch.ldexp(torch.ones_like(exact), exponent.clamp(min=least) - bits)
    for name, norm in (("largest", lambda e: e.abs().max()), ("RMS", lambda e: e.square().mean().sqrt())):
        error, bound = norm(got.double() - exact), 2 * norm(own.double() - exact) + norm(rounding)
        assert error <= bound, f"{what}: the {name} error is {error:.3g}, allowed are {bound:.3g}"


def in_float64(reference: Callable, *arguments: Any) -> Any:
    """`reference` in float64 throughout, also where it asks for float32."""
    with mock.patch.object(Tensor, "float", Tensor.double):
        return reference(*(_converted(a, torch.float64) for a in arguments))


def in_half(reference: Callable, *arguments: Any) -> Any:
    return reference(*(_converted(a, torch.float16) for a in arguments))


def in_float32(reference: Callable, *arguments: Any) -> Any:
    return reference(*(_converted(a, torch.float32) for a in arguments))


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_converted(v, dtype) for v in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class Draw:
    """Random tensors in float64 whose values FP16 holds."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._generator) * scale).half().double()

    def whole(self, *shape: int, largest: int) -> Tensor:
        """Whole numbers from -largest to largest: their sums of products are exact in float32, in any order."""
        return torch.randint(-largest, largest + 1, shape, generator=self._generator).double()

    def quantised(self, dtype: str, *shape: int, positive: bool = False) -> Tensor:
        """What a map or a weight of `dtype` may hold, over its whole range."""
        if dtype == "i8":
            return torch.randint(0 if positive else -127, 128, shape, generator=self._generator).double()
        value = torch.randn(shape, generator=self._generator) * (100.0 if dtype == "f8" else 1.0)
        value = (value.abs() if positive else value).clamp(-448, 448)
        return value.to(TORCH_DTYPES[dtype]).double()

    def positive(self, *shape: int, scale: float) -> Tensor:
        """From half of `scale` to all of it, in float32."""
        return (scale * (0.5 + 0.5 * torch.rand(shape, generator=self._generator))).float().double()

    def pixels(self, count: int, size: int) -> np.ndarray:
        return torch.randint(0, 256, (count, size, size, 3), generator=self._generator, dtype=torch.uint8).numpy()


def small_network(side: int = 1, channels: int = 16, **changes: Any) -> Network:
    """One convolution from the stem to `channels` channels, so that the parts behind see a map of `side`."""
    facts: dict[str, Any] = {
        "size": 4 * side,
        "classes": 7,
        "channel_means": (123.675, 116.28, 103.53),
        "stem": 8,
        "blocks": (Block((Conv("layer1.0.conv1", 8, channels, 1, 1),), None),),
        "pool": "max",
        "hidden": max(channels // 16, 1),
        "wide": 64,
        "narrow": 24,
    }
    return Network(**facts | changes)


def random_weights(network: Network, draw: Draw) -> dict[str, Tensor]:
    """Every weight of `planner.weight_layout`, in its stored shape; products keep the size of what they multiply."""
    return {
        name: draw.normal(*shape, scale=shape[-1] ** -0.5 if dtype == "f16" else 0.5)
        for name, (dtype, shape) in weight_layout(network).items()
    }


def builder_of(network: Network, weights: dict[str, Tensor], *precision: Any) -> tuple[PlanBuilder, bytes]:
    """A builder that knows the weights of `network`, and their blob. precision: and what stays FP16."""
    buffers, size = weight_buffers(network, *precision)
    return PlanBuilder(buffers, size), blob_of(buffers, size, weights)


def blob_of(buffers: dict[str, Buffer], size: int, weights: dict[str, Tensor]) -> bytes:
    """What lies between the weights is NaN."""
    blob = torch.full([size], POISON, dtype=torch.uint8)
    for name, buffer in buffers.items():
        value = weights[name].flatten().to(TORCH_DTYPES[buffer.dtype])
        blob[buffer.offset : buffer.offset + buffer.nbytes] = value.view(torch.uint8)
    return blob.numpy().tobytes()


def tile_of(launch: Launch) -> Tile:
    """The tile that a product's launch was given."""
    facts = dict(launch.constexprs)
    return Tile(
        *(facts[n] for n in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT")), warps=launch.warps, stages=launch.stages
    )


def real_plan(network: Network, batch: int) -> Plan:
    return plan_from_network(network, batch, "float16", "sm_90")


@contextmanager
def programs_reordered(permute: Callable[[int, int], int]) -> Iterator[None]:
    """The interpreter's n programs run in the order permute(0, n), permute(1, n) .. instead of by rising index."""
    of_class = type(triton_interpreter.interpreter_builder)
    in_order = of_class.set_grid_idx

    def set_grid_idx(self, x: int, y: int, z: int) -> None:
        nx, ny, nz = self.grid_dim
        index = permute((x * ny + y) * nz + z, nx * ny * nz)
        in_order(self, index // (ny * nz), index // nz % ny, index % nz)

    with mock.patch.object(of_class, "set_grid_idx", set_grid_idx):
        yield


def scales_of(folded: Any, network: Network, pixels: np.ndarray, precision: str) -> dict[str, float]:
    """Of every point, from the largest value that these pixels make there."""
    largest, hooks = {}, []

    def hook(name: str) -> Callable:
        return lambda module, inputs, output=None: largest.update(
            {name: float((inputs[0] if output is None else output).abs().max())}
        )

    for point in placement_of(network).points:
        module = folded.get_submodule(point.module)
        register = module.register_forward_hook if point.of_output else module.register_forward_pre_hook
        hooks.append(register(hook(point.name)))
    with torch.no_grad():
        folded(torch.from_numpy(pixels))
    for handle in hooks:
        handle.remove()
    most = {"int8": 127, "float8": 448}[precision]
    return {name: value / most for name, value in largest.items()}
