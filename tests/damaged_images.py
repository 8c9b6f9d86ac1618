"""Image files that were damaged, as a program that sees many of them meets them."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """`data`, an image file, with one to five places changed, cut out or doubled, in its header as often as behind."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, len(damaged) if rng.random() < 0.5 else min(64, len(damaged))))
        part = damaged[at : at + int(rng.integers(1, 40))]
        length, new = ((1, rng.bytes(1)), (4, rng.bytes(4)), (len(part), b""), (0, part))[rng.integers(0, 4)]
        damaged[at : at + length] = new
    at = 8
    # A PNG's chunks claim to be intact, so that damage reaches the decoder.
    while data[1:4] == b"PNG" and at + 12 + (length := int.from_bytes(damaged[at : at + 4], "big")) <= len(damaged):
        end = at + 8 + length
        damaged[end : end + 4] = struct.pack(">I", zlib.crc32(damaged[at + 4 : end]))
        at = end + 4
    return bytes(damaged)
