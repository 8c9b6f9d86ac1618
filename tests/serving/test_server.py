"""What a served engine answers: health, metadata, both models, both protocols, the examples of the documentation."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine import Engine
from tkfnet_engine.preprocess import decode_image
from tkfnet_engine.spec import LABELS

from .running import ROOT, Running, descendants, probabilities, run

DOCUMENT = ROOT / "docs" / "serving.md"


@pytest.fixture(scope="module")
def picture(tmp_path_factory, noise) -> Path:
    path = tmp_path_factory.mktemp("picture") / "face.jpg"
    Image.fromarray(noise(1, 150, seed=11)[0][:, :120]).save(path, quality=90)
    return path


@pytest.fixture(scope="module")
def picture_known(small_engine_path, picture) -> np.ndarray:
    with Engine.load(small_engine_path, threads=1) as engine:
        return engine.predict([decode_image(picture)]).probabilities


def test_health_and_metadata(served):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/small/ready", "/v2/models/small_jpeg/ready",
                 "/v2", "/v2/models/small/config", "/v2/models/small/stats"):  # fmt: skip
        assert served.get(path) == 200, path
    assert served.get("/v2/models/none/ready") == 400
    told = json.loads(served.send("GET", "/v2/models/small")[1])
    assert told["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]
    assert told["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 7]},
        {"name": "class", "datatype": "INT32", "shape": [-1, 1]},
    ]
    assert served.metric("nv_inference_request_success", model="small") > 0
    assert served.get("/", port="metrics") == 404


def test_pictures_and_crops(served, picture, picture_known, crops, known):
    status, answer = served.infer("small_jpeg", "jpeg", [picture.read_bytes()] * 3)
    assert status == 200 and np.allclose(probabilities(answer), picture_known, rtol=0, atol=1e-5)
    status, answer = served.infer("small", "images", crops[:5], outputs=[{"name": "class"}])
    assert [o["name"] for o in answer["outputs"]] == ["class"]
    assert answer["outputs"][0]["data"] == known[:5].argmax(1).tolist()


def test_labels(served, crops, known):
    outputs = [{"name": "probabilities", "parameters": {"classification": 7}}]
    _, answer = served.infer("small", "images", crops[:3], outputs=outputs)
    rows = np.array(answer["outputs"][0]["data"]).reshape(3, 7)
    for row, expected in zip(rows, known[:3], strict=True):
        found = [text.split(":") for text in row]
        assert [int(index) for _, index, _ in found] == np.argsort(-expected, kind="stable").tolist()
        assert all(
            LABELS[int(index)] == name and abs(float(p) - expected[int(index)]) < 1e-5 for p, index, name in found
        )


def test_only_one_machine_is_listened_to(served):
    """Of all its processes, none listens anywhere but at 127.0.0.1."""
    inodes = set()
    for pid in descendants(served.process.pid):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(file)))
            except OSError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    # 127.0.0.1, as IPv4 and, by gRPC, as IPv6 has it.
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F"} and "0100007F" in found


def test_what_is_off(served):
    """From the command line that the server runs with."""
    for pid in descendants(served.process.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if words[0].endswith("bin/tritonserver"):
            break
    flags = dict(word.partition("=")[::2] for word in words[1:] if word)
    assert flags["--model-control-mode"] == "none" and flags["--strict-readiness"] == "true"
    locked = {"model-repository", "shared-memory", "trace", "logging"}
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        apis, key, value = re.fullmatch(r"([a-z,-]+):(\w+)=(\w+)", flags[flag]).groups()
        assert set(apis.split(",")) == locked and len(key + value) > 60
    private = int(flags["--http-port"])
    for method, path in (("GET", "/v2/systemsharedmemory/status"), ("POST", "/v2/repository/index"),
                         ("GET", "/v2/logging"), ("GET", "/v2/trace/setting")):  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", private)
        connection.request(method, path)
        assert connection.getresponse().status == 403
        connection.close()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_client_example(served, serve_python, picture, picture_known, protocol):
    address = f"127.0.0.1:{served.ports[protocol]}"
    done = run(serve_python, "examples/serving/client.py", protocol, address, "small", picture, picture)
    best = np.argsort(-picture_known[0])[:3]
    expected = f"{picture}  {', '.join(f'{LABELS[i]} {picture_known[0, i]:.1%}' for i in best)}"
    assert done.returncode == 0 and done.stdout.splitlines() == [expected] * 2, done.stderr


GRPC = """
import sys, grpc
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc
stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
def request(shape=(1, 64, 64, 3), data=bytes(12288), **outputs):
    made = pb.ModelInferRequest(model_name="small", raw_input_contents=[data])
    tensor = made.inputs.add(name="images", datatype="UINT8")
    tensor.shape.extend(shape)
    for name, count in outputs.items():
        made.outputs.add(name=name).parameters["classification"].int64_param = count
    return made
def code(method, message, **more):
    try:
        method(message, timeout=30, **more)
        return "OK"
    except grpc.RpcError as error:
        return error.code().name
print(code(stub.ModelInfer, request()))
print(code(stub.ModelInfer, request(shape=(2**62, 64, 64, 3))))
print(code(stub.ModelInfer, request(shape=(-(2**63), 64, 64, 3))))
print(code(stub.ModelInfer, request(data=b"")))
print(code(stub.ModelInfer, request(probabilities=-1)))
print(code(stub.ModelInfer, request(**{"class": 2**62})))
print(code(stub.ModelInfer, request(shape=(1000, 64, 64, 3), data=bytes(12288 * 1000))))
print(code(stub.ModelInfer, request(), compression=grpc.Compression.Gzip))
print(code(stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="small")))
print(code(stub.SystemSharedMemoryStatus, pb.SystemSharedMemoryStatusRequest()))
print(code(stub.LogSettings, pb.LogSettingsRequest()))
print(code(stub.ServerReady, pb.ServerReadyRequest()))
print(code(stub.ModelInfer, request()))
"""


def test_grpc(served, serve_python):
    done = run(serve_python, "-c", GRPC, f"127.0.0.1:{served.ports['grpc']}")
    assert done.returncode == 0, done.stderr
    first, huge, negative, empty, count, large, long, packed, unload, memory, log, ready, last = done.stdout.split()
    assert first == ready == last == "OK"
    assert huge in ("INTERNAL", "INVALID_ARGUMENT") and negative in ("INTERNAL", "INVALID_ARGUMENT")
    assert empty == count == "INVALID_ARGUMENT" and large in ("OK", "INVALID_ARGUMENT")
    assert long == "RESOURCE_EXHAUSTED" and packed == "UNIMPLEMENTED"
    assert unload == memory == log == "UNIMPLEMENTED"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_lines_of_the_document(served, picture, picture_known, tmp_path):
    """Each runs as it stands there, but for port, name and file."""
    (block,) = re.findall(r"```sh\n# curl\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    script = block.replace("127.0.0.1:8000", f"127.0.0.1:{served.ports['http']}")
    script = script.replace("127.0.0.1:8002", f"127.0.0.1:{served.ports['metrics']}").replace("tkfnet", "small")
    script = script.replace("face.jpg", shlex.quote(str(picture)))
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("latin-1")
    best = int(picture_known[0].argmax())
    assert f":{best}:{LABELS[best]}" in text and "nv_inference_count" in text
    assert picture_known.tobytes()[:2] in done.stdout or b"probabilities" in done.stdout


def test_direct(serve_python, small_engine_path, tmp_path, crops, known):
    with Running(serve_python, tmp_path, small_engine_path, "--threads", "1", "--direct") as server:
        status, answer = server.infer("small", "images", crops[:2])
        assert status == 200 and np.allclose(probabilities(answer), known[:2], rtol=0, atol=1e-5)
        assert "direct: nothing limits" in server.log()
        assert server.send("POST", "/v2/repository/index")[0] == 403
        server.process.terminate()
        assert server.process.wait(60) == 0


def test_an_openvino_engine(serve_python, nginx, build, small_checkpoint_path, tmp_path, crops):
    build(small_checkpoint_path, tmp_path / "vino.tkf", backend="openvino")
    with Engine.load(tmp_path / "vino.tkf", threads=1) as engine:
        expected = engine.predict(crops[:4]).probabilities
    with Running(serve_python, tmp_path, tmp_path / "vino.tkf", "--threads", "1") as server:
        status, answer = server.infer("vino", "images", crops[:4])
        assert status == 200 and np.allclose(probabilities(answer), expected, rtol=0, atol=1e-4)
