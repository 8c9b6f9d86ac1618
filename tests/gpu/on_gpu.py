"""What the GPU tests share: whether they can run, and plans on the GPU, run launch by launch and judged."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import pytest

# A NaN in FP16, FP8 and float32; -1 in int8.
POISON = 0xFF
# What a split product leaves beside its outputs.
OF_SPLIT_K = {"partial_ptr", "counter_ptr"}


def needs_gpu() -> None:
    """Skips the calling module, with the reason, where these tests cannot run."""
    if reason := _why_not():
        pytest.skip(reason, allow_module_level=True)


def _why_not() -> str | None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU; `make gpu` runs these tests where there is one"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton interprets in this process; run tests/gpu by itself"
    # Not imported yet: where all tests are collected, tests/kernels chooses first whether Triton interprets.
    if importlib.util.find_spec("triton") is None:
        return "needs Triton"
    pytest.importorskip("cuda.bindings.driver")
    return None


def this_arch() -> str:
    import torch

    from tkfnet_engine.backends.fused import chosen_arch
    from tkfnet_engine.kernels.chips import ARCHS

    return chosen_arch(torch.cuda.get_device_capability(), list(ARCHS), torch.cuda.get_device_name())


class Bench:
    """Plans of one network, compiled, with memory on the GPU. weights: packed, as the plans need them. cubins: by
    variant, where they are compiled already."""

    def __init__(self, weights: bytes, plans: list[Any], cubins: Mapping[str, Any] | None = None):
        from tkfnet_engine.export.cubins_from_plan import compile_launches
        from tkfnet_engine.export.plan_on_gpu import PlanOnGpu, threads_of
        from tkfnet_engine.kernels.plan import SPACES

        class Fewer(PlanOnGpu):
            """Runs with `images` of them, where that is not None: the other slots of the batch are spare."""

            images: int | None = None

            def _replay(self, graph: Any, images: int) -> None:
                super()._replay(graph, images if self.images is None else self.images)

        launches = [launch for plan in plans for launch in plan.launches]
        nbytes = {space: max(plan.nbytes(space) for plan in plans) for space in SPACES}
        self.memory = Fewer(nbytes, weights)
        threads = threads_of(launches)
        if cubins is None:
            cubins = compile_launches(launches, this_arch())
        self.memory.load({variant: cubins[variant] for variant in threads}, threads)

    def place(self, plan: Any, pixels: Any) -> None:
        """uint8 [n, S, S, 3], n at most the plan's batch, into its memory; all that a plan writes becomes NaN."""
        import torch

        for space in ("pixels", "arena", "logits"):
            self._bytes(plan, space).fill_(POISON)
        self._bytes(plan, "pixels")[: pixels.size] = torch.from_numpy(pixels.reshape(-1).copy()).to("cuda")
        self.memory.images = len(pixels)
        torch.cuda.synchronize()

    def run(self, plan: Any, pixels: Any) -> Any:
        """The whole plan as one graph: logits [n, classes] on the GPU."""
        self.place(plan, pixels)
        self.memory.run(plan)
        return self.logits(plan, len(pixels))

    def run_checked(self, plan: Any, pixels: Any) -> Any:
        """Launch by launch, each judged by plain PyTorch and by what else it wrote: logits [n, classes] on the GPU."""
        from tkfnet_engine.kernels.plan import IMAGES
        from tkfnet_engine.kernels.reference import differences

        self.place(plan, pixels)
        for launch in plan.launches:
            before = {s: self._bytes(plan, s).clone() for s in ("weights", "pixels", "arena", "counters", "logits")}
            self.memory.run(plan, [launch])
            # The judge looks at as many images as there are.
            args = tuple((n, len(pixels) if n == IMAGES else v) for n, v in launch.args)
            found = differences(dataclasses.replace(launch, args=args), self.memory.read)
            wrong = [one for one in found if not one.right]
            assert not wrong, f"batch {plan.batch}, {launch.name}: {wrong}"
            self._check_written(plan, launch, {one.output for one in found} | OF_SPLIT_K, before)
        return self.logits(plan, len(pixels))

    def _check_written(self, plan: Any, launch: Any, own: set[str], before: dict[str, Any]) -> None:
        for space, bytes_before in before.items():
            changed = self._bytes(plan, space) != bytes_before
            for name, buffer in launch.args:
                if name in own and buffer.space == space:
                    changed[buffer.offset : buffer.offset + buffer.nbytes] = False
            count = int(changed.sum())
            assert not count, f"batch {plan.batch}, {launch.name} wrote {count} bytes of {space} that are not its own"
        assert not self._bytes(plan, "counters").any(), f"{launch.name} left counters that are not zero"

    def logits(self, plan: Any, count: int) -> Any:
        from tkfnet_engine.kernels.plan import Buffer

        held = self.memory.read(Buffer("logits", 0, "f32", plan.batch * plan.classes)).reshape(plan.batch, -1)
        return held[:count].clone()

    def _bytes(self, plan: Any, space: str) -> Any:
        """What the plan uses of a space."""
        from tkfnet_engine.kernels.plan import Buffer

        return self.memory.read(Buffer(space, 0, "u8", plan.nbytes(space)))


def without_pdl(plan: Any) -> Any:
    """The same launches, none of which begins before the one before it has ended."""

    def plain(launch: Any) -> Any:
        constexprs = tuple((name, False if name == "PDL" else value) for name, value in launch.constexprs)
        return dataclasses.replace(launch, constexprs=constexprs)

    return dataclasses.replace(plan, launches=tuple(map(plain, plan.launches)))
