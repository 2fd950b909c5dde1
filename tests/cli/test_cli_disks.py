"""The command on file systems that are full, read-only or taken out, and where the kernel refuses its calls: short
forms of `scripts/prove faults`."""

from __future__ import annotations

import pytest

from scripts import failing_calls, forked, small_disks

CASES = [
    ("full", "size=64k", "png"), ("full", "size=1m", "jpg"), ("full", "nr_inodes=8", "png"),
    ("read_only", "", "png"), ("taken_out", "", "jpg"), ("removed", "", "png"),
]  # fmt: skip


@pytest.mark.system
def test_a_disk_that_fills_or_is_taken_out_costs_no_finished_image_and_the_last_line_draws_the_rest() -> None:
    reason = small_disks.why_none()
    if reason is not None:
        pytest.skip(reason)
    ends = forked.answered(forked.asked("faults", f"small_disks.ends({CASES!r})", small_disks.apart()))
    assert [(name, images, wrong) for name, _, images, wrong in ends] == [
        ("full", 0, []), ("full", ends[1][2], []), ("full", 3, []), ("read_only", 5, []), ("taken_out", 5, []),
        ("removed", 0, []),
    ]  # fmt: skip
    assert 0 < ends[1][2] < small_disks.IMAGES


@pytest.mark.system
def test_a_system_call_that_fails_costs_no_finished_image_and_the_last_line_draws_the_rest() -> None:
    reason = failing_calls.why_none()
    if reason is not None:
        pytest.skip(reason)
    ends = forked.answer_of("faults", "failing_calls.ends(('EIO',), (True,), ('write', 'link', 'rename', 'statfs'))")
    assert [end for end in ends if end[-1]] == [] and {end[4] for end in ends} <= {0, 7}
    assert len([end for end in ends if end[4] == 7]) > 10
