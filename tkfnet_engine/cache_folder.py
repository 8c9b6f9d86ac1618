"""Where this user's caches are: what can be made again at the cost of time."""

from __future__ import annotations

import os


def cache_folder() -> str | None:
    """`$XDG_CACHE_HOME/tkfnet-engine` (`~/.cache/tkfnet-engine`), which may not be there yet; None without a home."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has a relative one ignored.
    if not os.path.isabs(folder):
        folder = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(folder, "tkfnet-engine") if os.path.isabs(folder) else None
