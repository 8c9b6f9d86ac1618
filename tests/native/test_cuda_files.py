"""Engine files for CUDA that must not be run: not trusted, contradicting themselves, or wrong on their own images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tkfnet_engine.spec import Preprocessing, TKFNetConfig

from ..backends import fake_cuda
from ..backends.fake_cuda import answers, freed, runs


def test_machine_code_runs_only_when_it_may(run_fused):
    found = run_fused(fake_cuda.tensors(golden=2), "--untrusted", "yes")
    assert found.statuses == ["TKF_ERROR_UNTRUSTED"]
    assert "allow_native_code" in found.error and "e.tkf" in found.error
    assert found.log == []  # the driver was not even asked for memory


def kernel(made: dict, name: str) -> str:
    return next(tensor for tensor in made if f"/{name}" in tensor)


def edited_index(made: dict, edit) -> None:
    index = json.loads(made["cubins/sm_90/index"].tobytes())
    edit(index)
    made["cubins/sm_90/index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)


CONTRADICTIONS = {
    "a cubin is missing": (lambda made: made.pop(kernel(made, "conv_kernel")), {}, "2 kernels"),
    "a kernel is not in the index": (lambda m: edited_index(m, lambda i: i["cubins"].popitem()), {}, "3 kernels"),
    "other weights": (lambda m: m.update({"weights.packed": m["weights.packed"][:256]}), {}, "256 bytes of weights"),
    "a bucket is missing": (lambda made: made.pop("plans/sm_90/4"), {}, "plans for batches [1, 2]"),
    "no plans": (lambda m: [m.pop(f"plans/sm_90/{b}") for b in (1, 2, 4)], {}, "plans for batches []"),
    "a larger batch": (lambda made: None, {"max_batch": 5}, "plans for batches [1, 2, 4]"),
    "images of another size": (lambda made: None, {"preprocessing": 64}, "7 labels and images of 64"),
    "other labels": (lambda made: None, {"labels": 6}, "6 labels and images of 32"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_file_put_together_from_several_builds_is_refused(case, run_fused):
    change, facts, words = CONTRADICTIONS[case]
    made = fake_cuda.tensors([fake_cuda.plan(b, warps=1) for b in (1, 2, 4)])
    change(made)
    facts = dict(facts)
    if "preprocessing" in facts:
        facts["preprocessing"] = Preprocessing(size=facts["preprocessing"]).to_dict()
    if "labels" in facts:
        facts["model"] = TKFNetConfig(classes=facts["labels"]).to_dict()
        facts["labels"] = [str(i) for i in range(facts["labels"])]
    found = run_fused(made, **facts)
    assert found.statuses == ["TKF_ERROR_FILE"]
    assert words in found.error and "do not fit its launch plans" in found.error
    assert not any("allocated" in entry for entry in found.log) and freed(found.log) == [[0] * 7]


@pytest.mark.parametrize(
    ("tensor", "content", "words"),
    [
        ("plans/sm_90/2", b"{}", "e.tkf: plans/sm_90/2: a launch plan that is not one of this version"),
        ("cubins/sm_90/index", b"{}", "e.tkf: cubins/sm_90/index: its index of kernels is damaged"),
        ("weights.packed", None, "weights.packed"),
    ],
)
def test_a_damaged_or_missing_part_is_named(tensor, content, words, run_fused):
    made = fake_cuda.tensors()
    if content is None:
        del made[tensor]
    else:
        made[tensor] = np.frombuffer(content, np.uint8)
    found = run_fused(made)
    assert found.statuses == ["TKF_ERROR_FILE"] and words in found.error
    assert freed(found.log) == [[0] * 7]


# An image whose logits lie close together, and the spread of all logits that the requirement is about.
def dark(made: dict, part: float) -> None:
    made["golden/pixels"][0] = 0
    logits = made["golden/logits"] = answers(made["golden/pixels"])
    logits[0, 5] += part * float(np.sqrt(((logits - logits.mean(0)) ** 2).mean()))


GOLDEN = {
    "right": (5, lambda made: None, None),
    "one image": (1, lambda made: None, None),
    "one image, a little off": (1, lambda made: made.update({"golden/logits": made["golden/logits"] * 1.005}), None),
    "no images": (0, lambda made: None, None),
    "another answer": (5, lambda made: made["golden/logits"].__setitem__(2, 40000), ("ANSWER", "SQNR")),
    "in another order": (
        5,
        lambda m: m.update({"golden/logits": np.roll(m["golden/logits"], 1, 0)}),
        ("ANSWER", "SQNR"),
    ),
    "one image off": (1, lambda m: m.update({"golden/logits": m["golden/logits"] * 1.2}), ("ANSWER", "on one image")),
    "other weights": (5, lambda made: made["weights.packed"].__setitem__(slice(256, 260), 0x5A), ("ANSWER", "SQNR")),
    "another label": (5, lambda made: dark(made, 0.055), ("ANSWER", "1 of 5 images get another label")),
    "a near-tie": (5, lambda made: dark(made, 0.035), None),
    "no number": (2, lambda made: made["golden/logits"].__setitem__((0, 0), np.nan), ("FILE", "not finite")),
    "no logits": (2, lambda made: made.pop("golden/logits"), ("FILE", "golden/logits")),
    "fewer logits": (2, lambda m: m.update({"golden/logits": m["golden/logits"][:1]}), ("FILE", "another shape")),
    "smaller images": (2, lambda m: m.update({"golden/pixels": m["golden/pixels"][:, :16]}), ("FILE", "another shape")),
    "other numbers": (2, lambda m: m.update({"golden/logits": m["golden/logits"].astype(np.float64)}), ("FILE", "F64")),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_the_verification_images_are_answered_before_anything_else(case, run_fused):
    count, change, refusal = GOLDEN[case]
    made = fake_cuda.tensors(golden=count)
    change(made)
    found = run_fused(made, "--counts", "2")
    if refusal is None:
        assert set(found.statuses) == {"TKF_OK"} and len(found.statuses) == 3
    else:
        status, words = refusal
        assert found.statuses == [f"TKF_ERROR_{status}"] and words in found.error
        assert status != "ANSWER" or "this GPU does not answer as the network" in found.error
    # More images than the largest batch holds run in parts; then comes the request.
    parts = {0: [], 1: [1], 2: [2], 5: [4, 1]}[count if refusal is None or refusal[0] == "ANSWER" else 0]
    asked = [entry["args"][2] for entry in runs(found.log, "pack_pixels_kernel")]
    assert asked == parts + [2] * (refusal is None) and freed(found.log) == [[0] * 7]
