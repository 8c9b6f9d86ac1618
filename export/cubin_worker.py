"""The process that compiles kernels for `cubins_from_plan`: one request per line in, one answer per line out, JSON.

It is a process of its own because Triton reads its settings from the environment as it is imported, and because the
caller's Triton may be in interpreter mode, where nothing compiles. No driver and no GPU is needed.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
from typing import Any

# Values per thread that Triton may load or store at once: 16 bytes. Every buffer of a plan starts on such a boundary.
_ALIGNED = [["tt.divisibility", 16]]


def compile_request(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles one launch's kernel. request: `cubins_from_plan`'s."""
    from triton import compile as compile_source
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .cubin_facts import facts_of_cubin

    function = importlib.import_module(request["library"]).kernel_named(request["kernel"])
    types, constexprs = dict(request["signature"]), dict(request["constexprs"])
    names = function.arg_names
    if set(names) != types.keys() | constexprs.keys() or [n for n in names if n in types] != list(types):
        raise ValueError(f"the launch gives {[*types, *constexprs]}, the kernel takes {names}")
    signature = {name: types.get(name, "constexpr") for name in names}
    attributes = {(i,): _ALIGNED for i, name in enumerate(names) if signature[name].startswith("*")}
    compiled = compile_source(
        ASTSource(function, signature, constexprs, attributes),
        target=GPUTarget("cuda", int(request["arch"].removeprefix("sm_")), 32),
        # Of Triton's defaults the one for fused multiply-add changes with the version.
        options={
            "num_warps": request["warps"],
            "num_stages": request["stages"],
            "enable_fp_fusion": request["fp_fusion"],
        },
    )
    facts = compiled.metadata
    if facts.global_scratch_size or facts.profile_scratch_size or facts.num_warps != request["warps"]:
        raise ValueError(
            f"it needs {facts.global_scratch_size} + {facts.profile_scratch_size} bytes of scratch and "
            f"{facts.num_warps} warps; a plan's launch brings none and {request['warps']}"
        )
    code = compiled.asm["cubin"]
    found = facts_of_cubin(code, request["arch"])
    return {
        "code": base64.b64encode(code).decode(),
        "ptx": compiled.asm["ptx"],
        "entry": facts.name,
        "registers": found.registers,
        "spilled_bytes": found.spilled_bytes,
        "shared_bytes": facts.shared + found.static_shared_bytes,
        "tensor_core": found.tensor_core,
    }


def main() -> None:
    # What Triton and the assembler print must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = compile_request(json.loads(line))
        except Exception as error:  # each stage of the compiler has exceptions of its own
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
