"""A small quantised network for tests: equalised, calibrated on noise, with its float graph."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import onnx

from tkfnet_engine.export.calibration_table import CalibrationData, CalibrationTable
from tkfnet_engine.export.onnx_from_torch import onnx_from_folded
from tkfnet_engine.export.ranges_from_data import table_from_images
from tkfnet_engine.kernels.network import Network, network_of
from tkfnet_engine.model.checkpoint import Checkpoint, load_checkpoint
from tkfnet_engine.model.equalise import equalise
from tkfnet_engine.model.fold import FoldedTKFNet, fold
from tkfnet_engine.spec import LABELS


@dataclass(frozen=True)
class Small:
    checkpoint: Checkpoint
    folded: FoldedTKFNet
    network: Network
    table: CalibrationTable
    model: onnx.ModelProto
    half: onnx.ModelProto
    images: np.ndarray


@functools.lru_cache(maxsize=2)
def small_network(path: str, noise) -> Small:
    """Of the checkpoint at `path`. noise: (count, size, seed) -> images."""
    checkpoint = load_checkpoint(path)
    plain = fold(checkpoint.model, checkpoint.preprocessing)
    network = network_of(plain)
    images = noise(160, network.size, 5)
    seen = CalibrationData("noise", "0" * 64, 128, dict.fromkeys(LABELS, 0))
    table = table_from_images(checkpoint, images[:128], seen)
    folded = equalise(plain, table.shifts)
    half = equalise(plain, table.shifts).half()
    model, half_model = onnx_from_folded(folded, {"precision": "int8"}), onnx_from_folded(half, {"precision": "int8"})
    return Small(checkpoint, folded, network, table, model, half_model, images[128:])
