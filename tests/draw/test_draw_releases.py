"""Memory that a component has used returns to the system, not to holes that the next component cannot use."""

from __future__ import annotations

import pytest
import torch

from sdcli.draw.devices import _trim, functions
from sdcli.machine import memory

MIB = 1 << 20


@pytest.mark.skipif(_trim() is None, reason="another C library")
def test_holes_in_the_heap_are_given_back() -> None:
    small = [torch.ones(90 << 8) for _ in range(1600)]  # 90 KiB each: too small for an allocation by mmap
    last = small[-1]  # the heap cannot shrink below it
    before = memory.resident()
    small.clear()
    functions("cpu").empty_cache()
    after = memory.resident()
    assert before is not None and after is not None
    assert after < before - 100 * MIB, "140 MiB were dropped"
    assert last.sum() == 90 << 8
