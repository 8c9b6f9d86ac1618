"""A stand-in for `tensorrt` and `tensorrt_rtx`, as a module of either name: it parses, builds and runs graphs in ONNX
Runtime, over the addresses that it is given.

FAKE_TENSORRT in the environment, as JSON, says for each kind of compute capabilities ("default", "current") what goes
wrong: "build", "deserialise", "context", "run", "crash" (of the process), "noise" (in the answer), or nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
from enum import Enum
from types import SimpleNamespace

import numpy as np

__version__ = "1.7.1.116"


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self):
        self.ready = True


class ComputeCapability(Enum):
    NONE, CURRENT, SM75, SM80, SM86, SM120 = range(6)


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY, EAGER, NONE = range(3)


class NetworkDefinitionCreationFlag(Enum):
    STRONGLY_TYPED = 0

    def __int__(self):
        return self.value


def _session(graph: bytes):
    import onnxruntime

    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


class OnnxParser:
    def __init__(self, network, log):
        assert log.ready
        self._network, self.num_errors = network, 0

    def parse(self, graph: bytes) -> bool:
        self._network.graph = graph
        return True


class Builder:
    def __init__(self, log):
        self._log = log

    def create_network(self, flags: int):
        network = SimpleNamespace(flags=flags)
        network.get_input = lambda i: SimpleNamespace(shape=tuple(_session(network.graph).get_inputs()[i].shape))
        return network

    def create_builder_config(self):
        config = SimpleNamespace(kinds=[], profiles=[], num_compute_capabilities=0)
        config.set_compute_capability = lambda kind, i: config.kinds.insert(i, kind)
        config.add_optimization_profile = config.profiles.append
        return config

    def create_optimization_profile(self):
        profile = SimpleNamespace()
        profile.set_shape = lambda name, *shapes: vars(profile).update({name: shapes})
        return profile

    def build_serialized_network(self, network, config) -> bytes | None:
        assert network.flags == 1, "the network is not strongly typed"
        assert len(config.kinds) == config.num_compute_capabilities and len(config.profiles) == 1
        kind = "current" if config.kinds == [ComputeCapability.CURRENT] else "default"
        wrong = json.loads(os.environ.get("FAKE_TENSORRT", "{}")).get(kind)
        if wrong == "build":
            self._log.log(Severity.ERROR, "Error Code 9: no such GPU\nmore")
            return None
        least, _, most = config.profiles[0].images
        return plan_of(network.graph, wrong, (least[0], most[0]))


def plan_of(graph: bytes, wrong: str | None = None, batches: tuple[int, int] = (1, 8)) -> bytes:
    return json.dumps({"graph": graph.hex(), "wrong": wrong, "batches": batches}).encode()


class Runtime:
    def __init__(self, log):
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes):
        held = json.loads(plan)
        if held["wrong"] == "crash":
            os._exit(134)
        if held["wrong"] == "deserialise":
            self._log.log(Severity.WARNING, "a warning before it")
            self._log.log(Severity.ERROR, "Error Code 6: the device is not supported\nmore")
            return None
        return Engine(held, self._log)


class Engine:
    def __init__(self, held: dict, log):
        self._held, self._log, self._session = held, log, _session(bytes.fromhex(held["graph"]))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        found = {one.name: one.shape for one in (*self._session.get_inputs(), *self._session.get_outputs())}[name]
        return (-1, *found[1:])

    def create_runtime_config(self):
        kinds = DynamicShapesKernelSpecializationStrategy
        return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy=kinds.LAZY)

    def create_execution_context(self, config):
        kinds = DynamicShapesKernelSpecializationStrategy
        assert config.dynamic_shapes_kernel_specialization_strategy is kinds.EAGER
        return None if self._held["wrong"] == "context" else Context(self._held, self._session, self._log)


class Context:
    def __init__(self, held: dict, session, log):
        self._held, self._session, self._log = held, session, log
        self._shape, self._addresses, self.streams = None, {}, []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, most = self._held["batches"]
        self._shape = shape
        return name == "images" and least <= shape[0] <= most

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._held["wrong"] != "not capturable"

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        if self._held["wrong"] == "run":
            self._log.log(Severity.ERROR, "Error Code 1: Cuda Runtime (no kernel image is available)")
            return False
        count = int(np.prod(self._shape))
        pixels = (ctypes.c_uint8 * count).from_address(self._addresses["images"])
        (logits,) = self._session.run(["logits"], {"images": np.frombuffer(pixels, np.uint8).reshape(self._shape)})
        if self._held["wrong"] == "noise":
            logits = logits + np.random.default_rng(0).normal(size=logits.shape).astype(np.float32) * logits.std()
        logits = np.ascontiguousarray(logits)
        ctypes.memmove(self._addresses["logits"], logits.ctypes.data, logits.nbytes)
        return True
