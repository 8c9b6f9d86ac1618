"""Questions with known answers, put to the running server: it is not ready before they are answered right.

`python -m tkfnet_engine.serving.canary [--threads N] [--trust] ENGINE..` prints the answers as the engines give them.
"""

from __future__ import annotations

import http.client
import io
import json
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..console import Parser, emit_json, run_command
from ..engine import Engine
from ..errors import BackendError
from ..preprocess import decode_image, resize_crop
from ..trust import TRUST_HELP
from .environment import Environment

COUNT = 3
# The engine and what answers are one program on one machine; a batch of another size moves the last digits.
TOLERANCE = 1e-3


def crops(size: int) -> np.ndarray:
    """uint8 [COUNT, size, size, 3]: coarse blocks, which differ as photographs do."""
    blocks = np.random.default_rng(20).integers(0, 256, (COUNT, 5, 5, 3), np.uint8)
    return np.stack([resize_crop(block, size) for block in blocks])


def picture(size: int) -> bytes:
    """A PNG, larger than a crop and not square."""
    file = io.BytesIO()
    Image.fromarray(crops(size + 13)[0][:, : size + 7]).save(file, "PNG")
    return file.getvalue()


def infer(port: int, model: str, name: str, array: np.ndarray | Sequence[bytes], timeout: float) -> dict[str, Any]:
    """One request to 127.0.0.1: `array` (uint8, or pictures' bytes) as input `name` -> each output's flat "data".

    `OSError` where there is no answer, `BackendError` with the server's words for any status but 200, of which `status`
    holds the number.
    """
    if isinstance(array, np.ndarray):
        shape, kind, body = list(array.shape), "UINT8", array.tobytes()
    else:
        shape, kind = [len(array), 1], "BYTES"
        body = b"".join(struct.pack("<I", len(one)) + one for one in array)
    tensor = {"name": name, "shape": shape, "datatype": kind, "parameters": {"binary_data_size": len(body)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    status, content = ask(
        port,
        "POST",
        f"/v2/models/{model}/infer",
        timeout,
        head + body,
        {"Inference-Header-Content-Length": str(len(head))},
    )
    if status != 200:
        error = BackendError(f"{model}: got status {status}: {content[:300].decode(errors='replace')}")
        error.status = status  # type: ignore[attr-defined]
        raise error
    return {output["name"]: output["data"] for output in json.loads(content)["outputs"]}


def ask(
    port: int, method: str, path: str, timeout: float, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """(status, content) of one request to 127.0.0.1. `OSError` where there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body or None, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(f"no answer: {type(error).__name__}") from error
    finally:
        connection.close()


def expected(environment: Environment, engines: Sequence[str], threads: int | None, trusted: bool) -> list[dict]:
    """What `python -m tkfnet_engine.serving.canary` prints, run by the Python that serves."""
    flags = [*([] if threads is None else ["--threads", str(threads)]), *(["--trust"] if trusted else [])]
    done = subprocess.run(
        [environment.python, "-m", "tkfnet_engine.serving.canary", *flags, "--", *engines],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BackendError(f"{environment.python} cannot run the engine: {told[0].removeprefix('error: ')}")
    return json.loads(done.stdout)


def check(port: int, name: str, known: Mapping[str, Any], timeout: float, most: int) -> None:
    """Asks both models of an engine, for at most `most` images at once. `BackendError` for a wrong answer or a refusal,
    `OSError` for none."""
    size, count = known["size"], min(COUNT, most)
    for model, tensor, array, answer in (
        (name, "images", crops(size)[:count], known["crops"][:count]),
        (f"{name}_jpeg", "jpeg", [picture(size)], known["picture"]),
    ):
        got = infer(port, model, tensor, array, timeout)
        right = np.array(answer)
        probabilities = np.array(got.get("probabilities", []), np.float64)
        classes = right.argmax(1)
        near = probabilities.shape == (right.size,) and np.abs(probabilities - right.reshape(-1)).max() <= TOLERANCE
        # Where two are as likely, it may be either.
        sure = np.sort(right, axis=1)[:, -1] - np.sort(right, axis=1)[:, -2] > 2 * TOLERANCE
        told = np.array(got.get("class", []), np.int64)
        if not near or told.shape != classes.shape or (told != classes)[sure].any():
            raise BackendError(
                f"{model}: the server answers wrong: got probabilities {probabilities[:14].tolist()}, classes "
                f"{told.tolist()}, expected {right.reshape(-1)[:14].tolist()}, {classes.tolist()}; it does not serve"
            )


def main(argv: Sequence[str] | None = None) -> int:
    p = Parser(prog="python -m tkfnet_engine.serving.canary", description="prints an engine's answers to known images")
    p.add_argument("engines", metavar="ENGINE", nargs="+")
    p.add_argument("--threads", type=int)
    p.add_argument("--trust", action="store_true", help=TRUST_HELP)
    args = p.parse_args(argv)
    found = []
    for path in args.engines:
        with Engine.load(path, threads=args.threads, trusted=args.trust) as engine:
            size = engine.input_size
            found.append(
                {
                    "size": size,
                    "max_batch": engine.info["max_batch"],
                    "crops": engine.predict(crops(size)).probabilities.tolist(),
                    "picture": engine.predict([decode_image(picture(size))]).probabilities.tolist(),
                }
            )
    emit_json(found)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
