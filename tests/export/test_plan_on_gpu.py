"""The arithmetic of timing single launches; the rest of `plan_on_gpu` needs a GPU (`tests/gpu`)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tkfnet_engine.export.plan_on_gpu import PlanOnGpu
from tkfnet_engine.kernels.plan import Launch, Plan


def test_a_graphs_start_is_not_counted():
    """A graph of n launches takes 25 us and 3 us for each; alone one seems to take nine times as long."""
    one = Launch("a", "k", (1, 1, 1), (), (), 4, 3, 0, 0, 0, 0)
    plan = Plan(1, "float16", "sm_90", 64, 7, (one,) * 22, 0, 0, 256)
    asked = []

    def time(plan, launches, samples):
        asked.append(len(launches))
        return 25.0 + 3.0 * len(launches)

    memory = SimpleNamespace(_time=time)
    assert PlanOnGpu.time_us(memory, plan, [one]) == pytest.approx(3.0)
    assert max(asked) * 3 >= 1000
    assert PlanOnGpu.time_us(memory, plan, plan.launches) == pytest.approx(66.0)
    assert max(asked) <= 1100
