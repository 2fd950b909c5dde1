"""Files below folders, with bounds on depth and number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

DEEPEST = 4  # levels below a searched folder
MOST_FILES = 20_000


def files(
    bases: Iterable[Path], deepest: int = DEEPEST, is_model: Callable[[Path], bool] = lambda folder: False
) -> Iterator[os.DirEntry[str]]:
    """Every file, and every folder that `is_model`, whose inside is skipped."""
    left = MOST_FILES
    waiting = [(base, 0) for base in bases]
    while waiting and left > 0:
        base, depth = waiting.pop()
        try:
            entries = sorted(os.scandir(base), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            left -= 1
            if not entry.is_dir(follow_symlinks=False) or is_model(Path(entry.path)):
                yield entry
            elif depth < deepest:
                waiting.append((Path(entry.path), depth + 1))
