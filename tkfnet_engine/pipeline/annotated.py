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

__all__ = ["CODECS", "DEFAULT_FPS", "AnnotatedFolder", "AnnotatedVideo", "is_folder", "open_annotated"]


def is_folder(path: str | os.PathLike) -> bool:
    """Whether results go to a folder there: where there is one, or the name has no end such as ".mp4"."""
    text = os.fsdecode(path)
    return os.path.isdir(text) or text.endswith(os.sep) or not PurePath(text).suffix


def open_annotated(
    path: str | os.PathLike, fps: float = DEFAULT_FPS, roots: Iterable[str | os.PathLike] = ()
) -> AnnotatedVideo | AnnotatedFolder:
    """A folder where `is_folder` says so, else a video; arguments are theirs."""
    return AnnotatedFolder(path, roots) if is_folder(path) else AnnotatedVideo(path, fps)
