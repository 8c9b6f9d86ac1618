"""Annotated results as a video or a folder of pictures.

with AnnotatedVideo("out.mp4", fps=25) as out:
    for result in pipeline.frames(..):
        out.write(result)
"""

from __future__ import annotations

import os
from pathlib import PurePath

from .annotated_folder import AnnotatedFolder
from .annotated_video import CODECS, DEFAULT_FPS, AnnotatedVideo

__all__ = ["CODECS", "DEFAULT_FPS", "AnnotatedFolder", "AnnotatedVideo", "is_folder"]


def is_folder(path: str | os.PathLike) -> bool:
    """Whether results go to a folder there: where there is one, or the name has no end such as ".mp4"."""
    text = os.fsdecode(path)
    return os.path.isdir(text) or text.endswith(os.sep) or not PurePath(text).suffix
