"""`python -m tests.pretend_gpu [--blank] [rocm:|xpu:|mps:]8GiB[/7GiB] generate …`: an sdcli command with this GPU, or
with several, separated by commas.

With `-m MODULE …` in place of the command it is any other program.
"""

from __future__ import annotations

import runpy
import sys
from unittest import mock

from sdcli.bench import process
from sdcli.draw import local
from tests.pretend_gpu import Device, device, pretend


def main() -> None:
    blank = sys.argv[1] == "--blank"
    described, *words = sys.argv[2:] if blank else sys.argv[1:]
    module, words = (words[1], words[2:]) if words[0] == "-m" else ("sdcli", words)
    worker = ("-m", "tests.pretend_gpu", described, *process.PROGRAM)  # what bench measures is a process of its own
    with (
        pretend(*map(_device, described.split(",")), blank=blank),
        mock.patch.object(process, "PROGRAM", worker),
        mock.patch.object(
            local, "best_rate", lambda plan: 0.0
        ),  # it has none, and the CPU takes minutes to find its own
    ):
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _device(described: str) -> Device:
    kind, _, size = described.rpartition(":")
    total, _, free = size.partition("/")
    return device(total, free or None, kind=kind or "cuda")


main()
