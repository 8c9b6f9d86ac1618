"""Every error a user can cause. Each message says what was received, what was expected and what to do.

Commands turn a `TkfnetError` into one line on standard error and its `exit_code`; anything else that
escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class TkfnetError(Exception):
    """Base of all errors this package raises on purpose."""

    exit_code = 1


class UsageError(TkfnetError, ValueError):
    """A flag, an argument or a combination of them is wrong."""

    exit_code = 64


class BundleError(TkfnetError, ValueError):
    """An engine file is damaged, truncated, changed, or of a format this version does not read."""

    exit_code = 3

    def __init__(self, message: str, code: str = "bundle"):
        super().__init__(message)
        self.code = code


class ImageError(TkfnetError, ValueError):
    """An image cannot be decoded, is too large, or has a shape or dtype that is not a face crop's."""

    exit_code = 4


class DataError(TkfnetError, ValueError):
    """A data set's folder, label file or image is missing, unreadable or not of its documented layout."""

    exit_code = 5


class CheckpointError(TkfnetError, ValueError):
    """A checkpoint's tensors or facts do not match the network it is loaded into."""

    exit_code = 6


class BackendError(TkfnetError, RuntimeError):
    """A backend is unknown, not installed, cannot run here, or failed while running."""

    exit_code = 7


class TrustError(BackendError):
    """An engine holds a program for this machine's processor that this user did not build here and has not trusted."""

    exit_code = 9


class FileError(TkfnetError, OSError):
    """A file cannot be written, or what stands at its path is no regular file. The system's error is `__cause__`."""

    exit_code = 8

    # One argument: of two or more, OSError would make errno and strerror, and another text.
    def __init__(self, message: str):
        super().__init__(message)


class VerificationError(TkfnetError, RuntimeError):
    """A built engine's answers differ from the float32 reference by more than its precision allows."""

    exit_code = 2

    def __init__(self, message: str, report: dict | None = None):
        super().__init__(message)
        self.report = report or {}
