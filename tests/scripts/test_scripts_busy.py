"""scripts/benchmark_busy: what is fair, what is missed, and a step beside a busy program for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmark_busy import AS_IT_COMES, BUILTIN, Case, Run, cases, fair, measured, missed, page, table

PASSIVE = "OMP_WAIT_POLICY=passive"


@pytest.fixture
def runs() -> dict[Case, list[Run]]:
    """Two threads on two cores; as it comes a step takes eight times as long beside one busy program."""

    def step(case: Case) -> float:
        if case.policy == AS_IT_COMES and case.count == 1:
            return 0.8
        return 0.1 * (2 + case.count) / 2

    return {
        case: [Run((step(case), step(case) * (1 + n / 1000)), 2, 0.01) for n in range(3)]
        for case in cases([BUILTIN], [PASSIVE])
    }


def test_the_fair_share_counts_threads_and_competitors() -> None:
    assert fair(threads=2, count=0, cores=2) == 1 and fair(threads=2, count=4, cores=2) == 3
    assert fair(threads=2, count=1, cores=8) == 1, "there is room for all"


def test_the_table_gives_seconds_the_ratio_to_alone_and_the_part_of_fair(runs: dict[Case, list[Run]]) -> None:
    rows = table(runs, 2)
    assert rows[0] == f"| model | busy programs | fair share | as it comes | `{PASSIVE}` |" and len(rows) == 6
    assert rows[2] == "| builtin | 0 | ×1.00 | 0.100 s | 0.100 s |"
    assert rows[3].startswith("| builtin | 1 | ×1.50 | 0.800 s, ×8.00 (7.9") and "5.33 of fair | 0.150 s" in rows[3]
    assert "1.00 of fair" in rows[5]


def test_only_what_is_far_from_fair_as_it_comes_is_missed(runs: dict[Case, list[Run]]) -> None:
    assert missed(runs, 2) == [Case(BUILTIN, AS_IT_COMES, 1)]
    assert "At most 2 of fair as it comes: 2 of 3." in page(runs, 2) and "not to be cited" not in page(runs, 2)
    slow = {case: [Run((9.0,), 2, 0.5)] if case.policy and case.count else found for case, found in runs.items()}
    assert missed(slow, 2) == [Case(BUILTIN, AS_IT_COMES, 1)], "policies are not judged"
    assert "not to be cited" in page(slow, 2)


def test_a_step_is_measured_beside_a_busy_program(tmp_path: Path) -> None:
    run = measured(Case(BUILTIN, PASSIVE, 1), 3, tmp_path)
    assert len(run.steps) == 2 and min(run.steps) > 0 and run.threads >= 1
    assert (tmp_path / "cat.png").is_file()
