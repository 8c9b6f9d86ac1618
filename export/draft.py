"""An engine on its way to a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Draft:
    """An engine before it is a file: what a backend opens (`registry.Artefacts`), and its facts."""

    facts: dict[str, Any]
    tensors: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        return list(self.tensors)

    def array(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def pop(self, name: str) -> bytes:
        # The draft is opened to be verified and written afterwards: it keeps what it gives.
        return self.tensors[name]
