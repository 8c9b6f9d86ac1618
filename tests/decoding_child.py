"""Run as a program: decodes what it is sent, and says what came of it and what it took.

On standard input: a length (8 bytes, little endian) and as many bytes, again and again. On standard output, for each: a
JSON object with `outcome` ("decoded", "refused", or the name of an exception that is not ours), `message`, `seconds` of
the processor and `peak_mib`, the process's peak memory while it decoded.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from tkfnet_engine.errors import ImageError
from tkfnet_engine.preprocess import decode_image


def judged(data: bytes) -> dict:
    try:
        image = decode_image(data)
    except ImageError as error:
        return {"outcome": "refused", "message": str(error)}
    except Exception as error:
        return {"outcome": type(error).__name__, "message": str(error)}
    fine = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
    return {"outcome": "decoded" if fine else "no picture", "message": f"{image.dtype} {list(image.shape)}"}


def peak_mib() -> float:
    return int(re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024


def main() -> None:
    warnings.simplefilter("ignore")
    while header := sys.stdin.buffer.read(8):
        data = sys.stdin.buffer.read(struct.unpack("<Q", header)[0])
        # 5: the peak starts again from what is held now.
        Path("/proc/self/clear_refs").write_text("5")
        start = time.process_time()
        said = judged(data)
        said |= {"seconds": time.process_time() - start, "peak_mib": peak_mib()}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
