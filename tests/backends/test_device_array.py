"""The answer in GPU memory as other libraries take it: DLPack's capsule, and who waits for whom."""

from __future__ import annotations

from .fake_cuda import freed

TAKE = """
import ctypes, gc
from tkfnet_engine.backends import dlpack
runner, x = opened(), OnGpu(faces(2))
def rename(capsule):
    # As a consumer does when it takes the array.
    kind = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    assert not kind(("PyCapsule_SetName", ctypes.pythonapi))(capsule, NAME)
NAME = b"used_dltensor"
"""


def test_a_capsule_says_where_and_what(gpu):
    gpu(
        TAKE
        + """
answer = runner.run_device(x)
assert answer.__dlpack_device__() == (2, 0)
capsule = answer.__dlpack__(stream=1, max_version=(1, 1), dl_device=(2, 0), copy=False)
tensor = dlpack.tensor_of(capsule)
assert (tensor.data, tensor.device_type, tensor.device_id, tensor.byte_offset) == (answer.address, 2, 0, 0)
assert (tensor.code, tensor.bits, tensor.lanes, tensor.shape[: tensor.ndim]) == (2, 32, 1, [2, CLASSES])
for wrong in ({"copy": True}, {"dl_device": (1, 0)}):
    try:
        answer.__dlpack__(**wrong)
    except BufferError as error:
        assert "(2, 0)" in str(error)
    else:
        raise AssertionError(wrong)
"""
    )


def test_numpy_takes_it_and_gives_it_back(gpu):
    """The stand-in's GPU memory is the host's: shown as that, numpy reads it through the capsule, by its own code."""
    gpu(
        TAKE
        + """
answer = runner.run_device(x)
synchronise(1)
class Shown:
    def __dlpack_device__(self):
        return 1, 0
    def __dlpack__(self, **settings):
        capsule = answer.__dlpack__()
        dlpack.tensor_of(capsule).device_type = 1
        return capsule
taken = np.from_dlpack(Shown())
address = answer.address
del answer
gc.collect()
assert np.array_equal(taken, answers(faces(2))) and taken.ctypes.data == address
assert len(dlpack._lent) == 1
del taken
gc.collect()
assert not dlpack._lent
"""
    )


def test_a_capsule_that_nobody_takes_frees_the_array(gpu):
    log = gpu(
        TAKE
        + """
for taken in (False, True):
    answer = runner.run_device(x)
    capsule = answer.__dlpack__()
    managed = next(iter(dlpack._lent))
    del answer
    assert len(dlpack._lent) == 1, "the capsule keeps it"
    if taken:
        rename(capsule)
    del capsule
    assert len(dlpack._lent) == taken, "who takes it gives it back"
    if taken:
        dlpack._give_back(managed)
    assert not dlpack._lent
runner.close()
with current():
    driver.cuMemFree(x.address)
for _ in range(100):
    driver.cuDevicePrimaryCtxRelease(0)
"""
    )
    assert freed(log)[0] == [0] * 7


def test_a_consumers_stream_waits_for_the_answer(gpu):
    gpu(
        TAKE
        + """
one, two = stream(), stream()
def read_by(handle, consumer):
    answer = runner.run_device(x, stream=one)
    capsule = answer.__dlpack__(stream=consumer)
    synchronise(handle)
    return np.array_equal(at(answer), answers(faces(2)))
assert read_by(two, two), "it should have waited"
assert read_by(1, None) and read_by(1, 1), "CUDA's default stream"
assert read_by(one, one)
assert not read_by(two, -1), "no wait was asked for"
"""
    )
