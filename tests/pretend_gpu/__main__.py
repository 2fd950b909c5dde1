"""`python -m tests.pretend_gpu 8GiB[/7GiB] generate …`: an sdcli command on a machine with this GPU."""

from __future__ import annotations

import sys

from sdcli.cli.main import run
from tests.pretend_gpu import device, pretend


def main() -> None:
    size, *words = sys.argv[1:]
    total, _, free = size.partition("/")
    with pretend(device(total, free or None)):
        sys.argv = ["sdcli", *words]
        run()


main()
