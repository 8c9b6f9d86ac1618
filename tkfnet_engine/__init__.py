"""tkfnet-engine: run TKFNet, a facial-expression network, fast and verified.

from tkfnet_engine import Engine
Engine.load("tkfnet.tkf").predict([crop]).labels
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .engine import Engine, Prediction
from .errors import TkfnetError
from .spec import TKFNetConfig

if TYPE_CHECKING:
    from .model.net import TKFNet
    from .pipeline import Pipeline

__all__ = ["Engine", "Pipeline", "Prediction", "TKFNet", "TKFNetConfig", "TkfnetError", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The reference network needs PyTorch; running an engine does not, and must not import it.
    if name == "TKFNet":
        from .model.net import TKFNet

        return TKFNet
    # Who runs an engine on crops needs none of it.
    if name == "Pipeline":
        from .pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
