"""The whole way once: train a little, build the shipped reference, verify it, predict, time. `make demo`.

Each step prints the command it runs; the files stay in the folder it writes to.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from matplotlib import cbook
from PIL import Image, ImageDraw, ImageFont

from tkfnet_engine.data.synthetic import render_face
from tkfnet_engine.preprocess import crop_box, decode_image, resize_crop
from tkfnet_engine.spec import LABELS

PEOPLE = 4
# People of a seed that no training set here draws from.
SEED = 4711
# The face on the sample photograph that matplotlib carries: Grace Hopper, US Navy, public domain.
PORTRAIT, PORTRAIT_BOX = "grace_hopper.jpg", (157, 112, 220, 220)
CELL, MARGIN = 160, 34
GOOD, BAD, INK = (24, 128, 56), (190, 40, 40), (30, 30, 30)


def main(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    narrow, engine = os.path.join(folder, "narrow.safetensors"), os.path.join(folder, "tkfnet.tkf")
    eager = os.path.join(folder, "eager.tkf")

    step("Train a narrow network for about a minute: does it learn?")
    run(
        "train", "--data", "synthetic:n=2800,seed=1", "--preset", "quick", "--width", "0.25", "--restart",
        "--out", narrow,
    )  # fmt: skip

    step("Build the shipped reference, full width, and verify it against float32 PyTorch")
    run("build", "--fp32", "--out", engine)

    step("Name the expressions of rendered faces and of a photograph")
    faces, truth = render_faces(folder)
    results = json.loads(run("predict", engine, "--detector", "none", "--json", *faces, capture=True))
    portrait = str(cbook.get_sample_data(PORTRAIT, asfileobj=False))
    box = ",".join(map(str, PORTRAIT_BOX))
    results += json.loads(run("predict", engine, "--json", "--box", box, portrait, capture=True))
    picture = os.path.join(folder, "predictions.png")
    draw(results, truth, picture)
    right = sum(r["label"] == t for r, t in zip(results, truth))
    print(f"{right} of {len(truth)} rendered faces named as drawn; the photograph: {results[-1]['label']}")
    print(f"wrote {picture}")

    step("Time the engine against eager PyTorch")
    run("build", "--fp32", "--backend", "eager", "--device", "cpu", "--out", eager)
    print_latencies({"this engine": engine, "PyTorch eager": eager})


def step(what: str) -> None:
    print(f"\n== {what}", flush=True)


def run(command: str, *arguments: str, capture: bool = False) -> str:
    """Runs one command of the package; with `capture` its standard output is returned, not shown."""
    shown = list(arguments) if len(arguments) < 12 else [*arguments[:3], ".."]
    print(f"$ python -m tkfnet_engine.{command} {shlex.join(shown)}", flush=True)
    result = subprocess.run(
        [sys.executable, "-m", f"tkfnet_engine.{command}", *arguments], stdout=subprocess.PIPE if capture else None
    )
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout.decode() if capture else ""


def render_faces(folder: str) -> tuple[list[str], list[str]]:
    """Writes one PNG per person and expression; returns their paths and the expressions drawn."""
    paths, truth = [], []
    for person in range(PEOPLE):
        for index, label in enumerate(LABELS):
            path = os.path.join(folder, f"face-{person}-{label}.png")
            Image.fromarray(render_face(person, index, take=index, seed=SEED)).save(path)
            paths.append(path)
            truth.append(label)
    return paths, truth


def draw(results: Sequence[dict], truth: Sequence[str], path: str) -> None:
    """One picture of every face with its label and probability; green if it is the expression drawn."""
    font = ImageFont.load_default(13)
    rows = PEOPLE + 1
    sheet = Image.new("RGB", (len(LABELS) * CELL, rows * (CELL + MARGIN)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, result in enumerate(results):
        row, column = divmod(index, len(LABELS))
        x, y = column * CELL, row * (CELL + MARGIN)
        image = decode_image(result["source"])
        if index >= len(truth):
            image = crop_box(image, PORTRAIT_BOX)
        sheet.paste(Image.fromarray(resize_crop(image, CELL - 6)), (x + 3, y + 3))
        colour = INK if index >= len(truth) else GOOD if result["label"] == truth[index] else BAD
        pen.text(
            (x + 5, y + CELL - 1), f"{result['label']} {result['probabilities'][result['label']]:.0%}", colour, font
        )
        if index < len(truth) and result["label"] != truth[index]:
            pen.text((x + 5, y + CELL + 14), f"drawn as {truth[index]}", INK, font)
    below = PEOPLE * (CELL + MARGIN) + 8
    bars(pen, results[-1]["probabilities"], font, CELL + 20, below)
    note = "A photograph, to a network that has seen rendered faces only:\ntrain on real faces before you believe it."
    pen.text((4 * CELL, below), note, INK, font)
    sheet.save(path)


def bars(pen: ImageDraw.ImageDraw, probabilities: dict[str, float], font, x: int, y: int) -> None:
    """All seven probabilities of the photograph."""
    for index, (label, p) in enumerate(probabilities.items()):
        top = y + index * 21
        pen.text((x, top), label, INK, font)
        pen.rectangle((x + 90, top + 2, x + 90 + max(1, round(300 * p)), top + 15), (70, 110, 180))
        pen.text((x + 98 + round(300 * p), top), f"{p:.0%}", INK, font)


def print_latencies(engines: dict[str, str]) -> None:
    timed = {}
    for name, path in engines.items():
        report = json.loads(run("bench", path, "--json", "--samples", "12", capture=True))
        timed[name] = {row["batch"]: row["p50_ms"] for row in report["results"]}
    batches = list(next(iter(timed.values())))
    print(f"\n{'milliseconds, median':<22}" + "".join(f"{f'batch {b}':>12}" for b in batches))
    for name, row in timed.items():
        print(f"{name:<22}" + "".join(f"{row[b]:>12.2f}" for b in batches))
    ours, theirs = timed.values()
    print(f"{'times as fast':<22}" + "".join(f"{theirs[b] / ours[b]:>12.2f}" for b in batches))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo-out")
