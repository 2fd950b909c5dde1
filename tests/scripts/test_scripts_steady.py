"""Memory, descriptors and threads over many images: the short form of `scripts/prove steady`."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.proofs import steady


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_nothing_is_left_open_after_an_image() -> None:
    rows = {what: (seen, holds) for what, seen, _, holds in steady.growth(60, 20) if "memory" not in what}
    assert len(rows) == 3 and [row for row in rows.items() if not row[1][1]] == []
