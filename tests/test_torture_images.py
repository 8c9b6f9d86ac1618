"""Every picture that Pillow tests itself with, and 5,000 damaged ones: decoded or refused, in bounded time and memory.

They are decoded in a child process, so that one which ends the process is seen and named.
"""

from __future__ import annotations

import io
import json
import os
import select
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from tkfnet_engine.data.synthetic import render_face

from .damaged_images import mutated

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "build" / "pillow-images"
# A picture of the size limit takes 200 MB in Pillow, and as much again where it is turned or blended.
MOST_SECONDS, MOST_MIB = 5.0, 500.0
FORMATS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {}, "BMP": {}}


class Child:
    most_mib = MOST_MIB

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.decoding_child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def decode(self, name: str, data: bytes) -> dict:
        try:
            self.process.stdin.write(struct.pack("<Q", len(data)) + data)
            self.process.stdin.flush()
            # Far more than a loaded machine makes of the seconds that are allowed.
            ready, _, _ = select.select([self.process.stdout], [], [], 60)
            assert ready, f"{name}: no answer in a minute"
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        assert line, f"{name}: ended the process with {self.process.wait()}"
        said = json.loads(line)
        assert said["outcome"] in ("decoded", "refused"), f"{name}: {said}"
        assert said["seconds"] <= MOST_SECONDS and said["peak_mib"] <= self.most_mib, f"{name}: {said}"
        if said["outcome"] == "refused":
            assert said["message"].startswith("<bytes>: ") and "; " in said["message"], f"{name}: {said}"
        return said

    def close(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def child():
    made = Child()
    yield made
    made.close()


@pytest.fixture(scope="module")
def pillow_images() -> list[Path]:
    """Files of `Tests/images` in the source distribution of the Pillow that is installed; kept in `build/`."""
    kept = IMAGES / PIL.__version__
    if not kept.is_dir():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        download += ["--no-binary", "pillow", "--dest", str(IMAGES), f"pillow=={PIL.__version__}"]
        done = subprocess.run(download, capture_output=True, text=True)
        if done.returncode:
            message = f"Pillow's sources cannot be downloaded: {done.stderr.strip()[-300:]}"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        (source,) = IMAGES.glob("pillow-*.tar.gz")
        partly = IMAGES / f"{PIL.__version__}.{os.getpid()}"
        with tarfile.open(source) as archive:
            wanted = [m for m in archive.getmembers() if m.isfile() and "/Tests/images/" in m.name]
            archive.extractall(partly, members=wanted, filter="data")
        partly.rename(kept)
        source.unlink()
    return sorted(path for path in kept.rglob("*") if path.is_file())


def test_every_picture_of_pillows_own_tests(child, pillow_images):
    assert len(pillow_images) > 500
    outcomes = [child.decode(path.name, path.read_bytes())["outcome"] for path in pillow_images if path.stat().st_size]
    # Most are in formats that are not read here; a decoder that refuses all would pass the lines above.
    assert outcomes.count("decoded") > 100 and outcomes.count("refused") > 100


def own_pictures() -> tuple[list[bytes], list[bytes]]:
    """The documents' pictures, and rendered faces in every format."""
    documents = [path.read_bytes() for path in sorted((ROOT / "docs" / "images").iterdir())]
    faces = []
    for kind, options in FORMATS.items():
        for label in range(4):
            stream = io.BytesIO()
            Image.fromarray(render_face(label, label, size=160)).save(stream, kind, **options)
            faces.append(stream.getvalue())
    return documents, faces


def test_5000_damaged_pictures_of_our_own(child):
    rng = np.random.default_rng(23)
    documents, faces = own_pictures()
    outcomes = []
    for number in range(5000):
        # The documents' take longer: one in ten.
        pictures = documents if number % 10 == 0 else faces
        which = int(rng.integers(len(pictures)))
        said = child.decode(f"mutant {number} of picture {which}", mutated(pictures[which], rng))
        outcomes.append(said["outcome"])
    assert outcomes.count("decoded") > 200 and outcomes.count("refused") > 200


def test_what_takes_too_much_is_seen(child, monkeypatch):
    """The check above can fail: a sound picture, judged by a limit below what it takes."""
    stream = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(stream, "PNG")
    monkeypatch.setattr(child, "most_mib", 30.0)
    with pytest.raises(AssertionError, match="peak_mib"):
        child.decode("large", stream.getvalue())
