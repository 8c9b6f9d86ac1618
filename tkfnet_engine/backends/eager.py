"""PyTorch, eager, on the folded network: CPU in channels-last, or CUDA.

PyTorch's thread count and TF32 switch belong to the process: opening an engine here sets both for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BackendError
from ..spec import Preprocessing, TKFNetConfig
from .registry import CLOSED, WEIGHTS, Artefacts


def folded_network(facts: Mapping[str, Any], artefacts: Artefacts, device: str):
    """The `FoldedTKFNet` whose parameters the engine file holds, on `device`, channels-last."""
    import torch

    from ..model.fold import fold
    from ..model.net import TKFNet

    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "this engine was built for an NVIDIA GPU and none is usable here; build one for this machine with "
            "`python -m tkfnet_engine.build --device cpu`"
        )
    # A float32 engine computes in float32: TF32 convolutions are another precision than the one asked for.
    torch.backends.cudnn.allow_tf32 = False
    network = fold(TKFNet(TKFNetConfig.from_dict(facts["model"])), Preprocessing.from_dict(facts["preprocessing"]))
    if facts["precision"] == "float16":
        network.half()
    weights = {
        name.removeprefix(WEIGHTS): torch.from_numpy(artefacts.array(name).copy())
        for name in artefacts.names()
        if name.startswith(WEIGHTS)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise BackendError(f"the engine's weights do not fit the network its metadata names: {error}") from None
    return network.to(device).to(memory_format=torch.channels_last)


class TorchRunner:
    """Runs a callable of torch tensors; PyTorch's forward in inference mode is safe from many threads."""

    def __init__(self, network, device: str):
        self._network, self._device = network, device

    def run(self, images: np.ndarray) -> np.ndarray:
        import torch

        network = self._network
        if network is None:
            raise BackendError(CLOSED)
        with torch.inference_mode():
            # `array`: torch refuses to promise not to write into a read-only array.
            batch = torch.from_numpy(images if images.flags.writeable else np.array(images)).to(self._device)
            return network(batch).cpu().numpy()

    def close(self) -> None:
        self._network = None


def open_runner(facts: Mapping[str, Any], artefacts: Artefacts, device: str, threads: int) -> TorchRunner:
    import torch

    torch.set_num_threads(threads)
    return TorchRunner(folded_network(facts, artefacts, device), device)
