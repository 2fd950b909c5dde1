"""`python -m tests.pretend_gpu [rocm:|xpu:|mps:]8GiB[/7GiB] generate …`: an sdcli command with this GPU."""

from __future__ import annotations

import sys

from sdcli.cli.main import run
from tests.pretend_gpu import device, pretend


def main() -> None:
    described, *words = sys.argv[1:]
    kind, _, size = described.rpartition(":")
    total, _, free = size.partition("/")
    with pretend(device(total, free or None, kind=kind or "cuda")):
        sys.argv = ["sdcli", *words]
        run()


main()
