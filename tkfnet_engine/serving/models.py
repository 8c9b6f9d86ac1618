"""What Triton's Python backend runs: an engine, the decoding of pictures, and the answer of logits.

The backend's own module exists in its processes alone. No message for a client holds a path, a traceback or anything
else of this machine: a picture's fault is told in the words of `ImageError`, any other failure is a number that stands
in the server's log with what happened.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import secrets
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from ..engine import Engine, softmax
from ..errors import BackendError, ImageError
from ..hardware import usable_cores
from ..preprocess import FORMATS, decode_image, resize_crop
from .repository import ENGINE_FILE

REQUEST_ID = "x-request-id"


class _Model:
    """One request at a time fails for itself; what fails for all is told to all."""

    def initialize(self, args: dict[str, str]) -> None:
        self._pb = importlib.import_module("triton_python_backend_utils")
        _check_numpy()
        held = json.loads(args["model_config"]).get("parameters", {})
        folder = os.path.join(args["model_repository"], args["model_version"])
        self._open(folder, {key: json.loads(value["string_value"]) for key, value in held.items()})

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        try:
            return self._answers(requests)
        except Exception as error:
            return [self._pb.InferenceResponse([], error=self._failure(r, error)) for r in requests]

    def _open(self, folder: str, parameters: dict[str, Any]) -> None:
        raise NotImplementedError

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def _tensor(self, request: Any, name: str) -> np.ndarray:
        return self._pb.get_input_tensor_by_name(request, name).as_numpy()

    def _response(self, request: Any, arrays: dict[str, np.ndarray]) -> Any:
        wanted = request.requested_output_names()
        return self._pb.InferenceResponse([self._pb.Tensor(n, a) for n, a in arrays.items() if n in wanted])

    def _refusal(self, message: str) -> Any:
        return self._pb.TritonError(message, self._pb.TritonError.INVALID_ARG)

    def _failure(self, request: Any, error: BaseException) -> Any:
        number = _request_id(request)
        self._pb.Logger.log_error(f"request {number}: {''.join(traceback.format_exception(error))}")
        text = f"internal error; the server's log says more of request {number}"
        return self._pb.TritonError(text, self._pb.TritonError.INTERNAL)


class EngineModel(_Model):
    """`images` uint8 [N, S, S, 3] -> `probabilities` float32 [N, classes], `class` int32 [N, 1], in one batch."""

    def _open(self, folder: str, parameters: dict[str, Any]) -> None:
        threads = parameters["threads"] or max(1, usable_cores() // parameters["instances"])
        path = os.path.join(folder, ENGINE_FILE)
        self._engine = Engine.load(path, threads=threads, trusted=parameters["trusted"])

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        arrays = [self._tensor(request, "images") for request in requests]
        batch = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return self._split(requests, [len(a) for a in arrays], softmax(self._engine.logits(batch)))

    def _split(self, requests: Sequence[Any], counts: Sequence[int], probabilities: np.ndarray) -> list[Any]:
        classes = probabilities.argmax(1).astype(np.int32).reshape(-1, 1)
        responses, start = [], 0
        for request, count in zip(requests, counts, strict=True):
            part = slice(start, start + count)
            responses.append(self._response(request, {"probabilities": probabilities[part], "class": classes[part]}))
            start += count
        return responses

    def finalize(self) -> None:
        self._engine.close()


class AnswerModel(EngineModel):
    """`logits` float32 [N, classes] -> as `EngineModel`: what follows a network that another backend runs."""

    def _open(self, folder: str, parameters: dict[str, Any]) -> None:
        pass

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        arrays = [self._tensor(request, "logits") for request in requests]
        logits = np.concatenate(arrays)
        if not np.isfinite(logits).all():
            raise BackendError("the network gave an answer that is not finite numbers")
        return self._split(requests, [len(a) for a in arrays], softmax(logits))

    def finalize(self) -> None:
        pass


class DecodeModel(_Model):
    """`jpeg` bytes [N, 1], pictures of any format that `decode_image` takes -> `images` uint8 [N, S, S, 3]."""

    def _open(self, folder: str, parameters: dict[str, Any]) -> None:
        self._size, self._max_pixels = parameters["size"], parameters["max_pixels"]
        self._threads = ThreadPoolExecutor(usable_cores(), "decode")

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        return list(self._threads.map(self._answer, requests))

    def _answer(self, request: Any) -> Any:
        try:
            pictures = self._tensor(request, "jpeg").reshape(-1)
            crops = [self._crop(number, data) for number, data in enumerate(pictures)]
        except ImageError as error:
            return self._pb.InferenceResponse([], error=self._refusal(str(error)))
        except Exception as error:
            return self._pb.InferenceResponse([], error=self._failure(request, error))
        return self._response(request, {"images": np.stack(crops)})

    def _crop(self, number: int, data: bytes) -> np.ndarray:
        try:
            check_pixels(data, self._max_pixels)
            return resize_crop(decode_image(data), self._size)
        except ImageError as error:
            raise ImageError(f"picture {number} (counted from 0): {error}") from None

    def finalize(self) -> None:
        self._threads.shutdown()


def check_pixels(data: bytes, most: int) -> None:
    """`ImageError` for a picture whose header says more than `most` pixels. Bytes without a header pass: what is wrong
    with them, `decode_image` says."""
    size = (0, 0)
    # Pillow's own exceptions for damaged headers are of many classes.
    with suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        size = image.size
    if size[0] * size[1] > most:
        raise ImageError(f"<bytes>: its header says {size[0]} x {size[1]} pixels, expected at most {most:,}; shrink it")


def _request_id(request: Any) -> str:
    """The number that the proxy gave the request, else a new one."""
    found = None
    with suppress(ValueError, AttributeError):
        found = json.loads(request.parameters() or "{}").get(REQUEST_ID)
    return found if isinstance(found, str) and re.fullmatch(r"[0-9a-f]{32}", found) else secrets.token_hex(16)


def _check_numpy() -> None:
    """With NumPy 2 the backend of server 2.51 reads the size of an element where it no longer stands: answers come back
    empty, texts end the process. In Python all looks right, so the version is what can be asked."""
    if int(np.__version__.partition(".")[0]) >= 2:
        raise BackendError(
            f"got NumPy {np.__version__} in the Python of Triton's Python backend, expected 1.26: with 2 it gives "
            "empty and wrong answers; pip install 'numpy<2'"
        )
