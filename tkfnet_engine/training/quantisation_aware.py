"""Quantisation-aware fine-tuning: the network is folded anew for every batch, and computes as its INT8 engine would.

Batch norms keep their statistics: they are folded in, as they are in an engine. The scales of the maps are those that
calibration gave the start, and those of the weights, while it trains, too; a build measures both again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.network import network_of
from ..kernels.placement import placement_of
from ..model.equalise import Shifts, equalise, equalise_in_place
from ..model.fake_quantised import Grid, fake_quantised, weight_scale
from ..model.fold import FoldedTKFNet, fold, fold_live
from ..model.net import TKFNet
from ..spec import Preprocessing


class QuantisationAware(nn.Module):
    """pixels [N, S, S, 3], 0..255 -> logits float32 [N, classes] of `model` in eight bits; gradients reach `model`.

    model: the float network to start from. shifts, grids: of its calibration (`export.ranges_from_data`).
    """

    def __init__(self, model: TKFNet, preprocessing: Preprocessing, shifts: Shifts, grids: Mapping[str, Grid]):
        super().__init__()
        self.model, self.preprocessing, self.shifts, self.grids = model, preprocessing, shifts, dict(grids)
        # What was learnt so far: a copy, which the training of `model` leaves as it is.
        self.start = fold(model, preprocessing)
        self.placement = placement_of(network_of(self.start))
        equal = equalise(self.start, shifts)
        self._scales = {
            product.name: weight_scale(equal.get_submodule(product.module).weight, "int8")
            for product in self.placement.products
        }

    def forward(self, pixels: Tensor) -> Tensor:
        folded = fold_live(self.model, self.preprocessing)
        equalise_in_place(folded, self.shifts)
        with fake_quantised(folded, self.placement, self.grids, weight_scales=self._scales):
            return folded(pixels)

    @contextmanager
    def as_built(self) -> Iterator[FoldedTKFNet]:
        """What `model` is in eight bits now, to be judged: with the best scale for each channel of weights."""
        folded = equalise(fold(self.model, self.preprocessing), self.shifts)
        with fake_quantised(folded, self.placement, self.grids):
            yield folded

    def divergence(self, pixels: Tensor, logits: Tensor) -> Tensor:
        """Kullback-Leibler divergence of `logits` from the start's answers in float, mean over the images."""
        with torch.no_grad():
            expected = F.log_softmax(self.start(pixels), 1)
        return F.kl_div(F.log_softmax(logits, 1), expected, reduction="batchmean", log_target=True)
