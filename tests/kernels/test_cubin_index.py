"""The index of machine code: what a build writes is read, anything else is refused before it is used."""

from __future__ import annotations

import json

import pytest

from tkfnet_engine.errors import BundleError
from tkfnet_engine.kernels.cubin_index import MAX_SHARED_BYTES, index_from_json

ENTRY = {"entry": "conv_kernel", "registers": 128, "shared_bytes": 65536}
VARIANT = "conv_kernel-0123456789abcdef0123"


def _index(**changes) -> dict:
    """An index of one kernel; ... removes a field of it."""
    about = {k: v for k, v in (ENTRY | changes).items() if v is not ...}
    return {"driver": 12040, "cubins": {VARIANT: about}}


@pytest.mark.parametrize(
    "index",
    [
        _index(), _index(spilled_bytes=0, tensor_core={"HGMMA": 8}), _index(shared_bytes=MAX_SHARED_BYTES),
        _index(registers=0, shared_bytes=0), {"driver": 0, "cubins": {}}, _index() | {"compiler": "a later one"},
    ],
)  # fmt: skip
def test_an_index(index):
    data = json.dumps(index).encode()
    assert index_from_json(data) == index == index_from_json(memoryview(data))


FIELDS = {
    "entry": [..., None, "", "a b", "k-1", "k\u00e9", "\uff4b", "k\0", 7, ["k"]],
    "registers": [..., None, -1, 1.0, True, "4", 2**31],
    "shared_bytes": [..., None, -1, 1.0, False, "4", MAX_SHARED_BYTES + 1, 2**64],
}
DAMAGED = {
    **{f"{name}={value!r}": _index(**{name: value}) for name, values in FIELDS.items() for value in values},
    **{f"driver={value!r}": _index() | {"driver": value} for value in (None, -1, 12.0, True, "12040", 2**31)},
    **{f"cubins={value!r}": _index() | {"cubins": value} for value in (None, [], 1, {VARIANT: None}, {VARIANT: []})},
    "no driver": {"cubins": {}},
    "no cubins": {"driver": 12040},
    "list": [],
    "null": None,
}
TEXTS = {
    "nothing": b"",
    "half": json.dumps(_index()).encode()[:-1],
    "twice": b'{"driver":1,"cubins":{},"cubins":{}}',
    "not-utf8": b'{"driver":1,"cubins":{"\xff":{}}}',
    "not-finite": b'{"driver":1,"cubins":{},"x":NaN}',
    "nested": b'{"driver":1,"cubins":' + b"[" * 100_000,
    **{name: json.dumps(index).encode() for name, index in DAMAGED.items()},
}


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS)
def test_what_is_no_index_is_refused(data):
    with pytest.raises(BundleError, match="index of kernels") as refusal:
        index_from_json(data)
    assert refusal.value.code == "cubins" and "build the engine again" in str(refusal.value)
