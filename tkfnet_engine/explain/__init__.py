"""What the network looks at in a face: values read from inside an engine's graph, and a picture of them."""

from __future__ import annotations

from .activations import Explainer, Explanation, explain
from .heat_map import heat_map, write_heat_map

__all__ = ["Explainer", "Explanation", "explain", "heat_map", "write_heat_map"]
