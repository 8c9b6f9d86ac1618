"""These tests run the kernels in Triton's interpreter, which `tests/conftest.py` chooses before Triton is imported."""

from __future__ import annotations

import os
import sys

if os.environ["TRITON_INTERPRET"] != "1":
    raise RuntimeError("TRITON_INTERPRET is not 1; set it, or run other tests than those of the kernels")
if "triton" in sys.modules:
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(sys.modules["triton.language"].sum, InterpretedFunction):
        raise RuntimeError("Triton was imported before TRITON_INTERPRET=1 was set; set it for the whole run")
