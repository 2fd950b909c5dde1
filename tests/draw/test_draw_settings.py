"""What OpenMP reads from the environment when torch is imported, and what is left there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sdcli.draw import local

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
SETTLED = """
import os
from sdcli.draw import local
from sdcli.machine import processor
processor.busy = lambda threads: {busy}
with local.settled(1):
    import torch
print({{name: value for name, value in os.environ.items() if name in {settings}}})
"""


def settled(busy: bool, **own: str) -> tuple[str, str]:
    """In a process of its own: what is left in the environment; what OpenMP says it has read."""
    variables = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", SETTLED.format(busy=busy, settings=SETTINGS)],
        env=variables | {"OMP_DISPLAY_ENV": "VERBOSE"} | own, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ended.stdout.strip(), ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch comes with another OpenMP")
@pytest.mark.parametrize(("busy", "spins"), [(False, local.SPINS), (True, 0)])
def test_threads_wait_without_spinning_where_others_want_the_cores_and_programs_started_later_choose_for_themselves(
    busy: bool, spins: int
) -> None:
    left, read = settled(busy)
    assert f"GOMP_SPINCOUNT = '{spins}'" in read
    assert left == "{}"


def test_what_the_user_set_stands() -> None:
    assert settled(True, OMP_WAIT_POLICY="active")[0] == "{'OMP_WAIT_POLICY': 'active'}"
