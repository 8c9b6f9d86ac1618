"""Annotated results as a video or a folder of pictures.

with open_annotated("out.mp4", fps=25) as out:
    for result in pipeline.frames(..):
        out.write(result)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePath

from .annotated_folder import AnnotatedFolder
from .annotated_video import CODECS, DEFAULT_FPS, AnnotatedVideo

__all__ = ["CODECS", "DEFAULT_FPS", "AnnotatedFolder", "AnnotatedVideo", "open_annotated"]


def open_annotated(
    path: str | os.PathLike, fps: float = DEFAULT_FPS, roots: Iterable[str | os.PathLike] = ()
) -> AnnotatedVideo | AnnotatedFolder:
    """A folder where there is one or the name has no end such as ".mp4", else a video; arguments are theirs."""
    text = os.fsdecode(path)
    if os.path.isdir(text) or text.endswith(os.sep) or not PurePath(text).suffix:
        return AnnotatedFolder(path, roots)
    return AnnotatedVideo(path, fps)
