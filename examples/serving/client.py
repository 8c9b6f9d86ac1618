"""Asks a running server about pictures of faces, with NVIDIA's own client (pip install 'tritonclient[all]').

    python examples/serving/client.py http 127.0.0.1:8000 tkfnet face.jpg ..
    python examples/serving/client.py grpc 127.0.0.1:8001 tkfnet face.jpg ..

Pictures go as they are to NAME_jpeg, which decodes them; crops already decoded go to NAME (see `ask_crops`).
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import numpy as np


def ask_pictures(protocol: str, address: str, name: str, pictures: list[bytes]) -> list[list[tuple[str, float]]]:
    """(label, probability) of each picture's three most probable: JPEG, PNG, WebP or BMP, one face that fills it."""
    array = np.array([[one] for one in pictures], np.object_)
    return _ask(protocol, address, f"{name}_jpeg", "jpeg", array, "BYTES")


def ask_crops(protocol: str, address: str, name: str, crops: np.ndarray) -> list[list[tuple[str, float]]]:
    """The same of uint8 RGB [N, S, S, 3], S as the engine has it: `client.get_model_metadata(name)` tells."""
    return _ask(protocol, address, name, "images", crops, "UINT8")


def _ask(
    protocol: str, address: str, model: str, tensor: str, array: np.ndarray, kind: str
) -> list[list[tuple[str, float]]]:
    triton = importlib.import_module(f"tritonclient.{protocol}")
    with triton.InferenceServerClient(address) as client:
        value = triton.InferInput(tensor, list(array.shape), kind)
        value.set_data_from_numpy(array)
        # With a class_count the server names them: b"0.248792:0:surprise". Without, the output is float32 [N, classes].
        output = triton.InferRequestedOutput("probabilities", class_count=3)
        # 503 (UNAVAILABLE) means: too many are waiting, or the server is starting. Then try again, a little later.
        answer = client.infer(model, [value], outputs=[output])
    return [[_named(text) for text in row] for row in answer.as_numpy("probabilities")]


def _named(text: bytes) -> tuple[str, float]:
    probability, _, label = text.decode().split(":", 2)
    return label, float(probability)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("protocol", choices=("http", "grpc"))
    p.add_argument("address", help="such as 127.0.0.1:8000")
    p.add_argument("name", help="of the model: the engine file's, without its end")
    p.add_argument("pictures", nargs="+", help="each a face that fills it")
    args = p.parse_args()
    answers = ask_pictures(args.protocol, args.address, args.name, [Path(one).read_bytes() for one in args.pictures])
    for path, best in zip(args.pictures, answers, strict=True):
        print(f"{path}  {', '.join(f'{label} {probability:.1%}' for label, probability in best)}")


if __name__ == "__main__":
    main()
