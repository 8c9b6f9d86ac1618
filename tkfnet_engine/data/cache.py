"""A face set decoded and resized once, held in memory: training reads every image many times."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from ..console import progress
from ..errors import DataError
from ..hardware import usable_cores
from ..preprocess import resize_crop

CHUNK = 32
# Below this many images, starting worker processes costs more than it saves.
WORTH_WORKERS = 256


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, S, S, 3] -> uint8 [N, size, size, 3], by the project's one resize."""
    if images.shape[1] == size:
        return images
    out = np.empty((len(images), size, size, 3), np.uint8)
    for index, image in enumerate(images):
        out[index] = resize_crop(image, size)
    return out


def _load(faces, indices: range, size: int) -> np.ndarray:
    return np.stack([resize_crop(faces.image(i), size) for i in indices])


def load_all(faces, size: int, workers: int | None = None) -> np.ndarray:
    """Every image of `faces` as uint8 [N, size, size, 3]. `DataError` if that exceeds half the memory."""
    count = len(faces)
    need = count * size * size * 3
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > memory // 2:
        raise DataError(
            f"{faces.name}: {count} images at {size}x{size} need {need >> 20} MiB, expected at most half of this "
            f"machine's {memory >> 20} MiB; train at a smaller size or on a part of the set"
        )
    images = np.empty((count, size, size, 3), np.uint8)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    what = f"reading {count} images at {size}x{size}"
    workers = workers if workers is not None else usable_cores()
    if workers <= 1 or count < WORTH_WORKERS:
        for chunk in progress(chunks, what):
            images[chunk.start : chunk.stop] = _load(faces, chunk, size)
        return images
    # "spawn": forking a process that runs torch's threads can deadlock.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [(chunk, pool.submit(_load, faces, chunk, size)) for chunk in chunks]
        for chunk, job in progress(jobs, what):
            images[chunk.start : chunk.stop] = job.result()
    return images
