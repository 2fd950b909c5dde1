"""Processes of their own: sdcli forked from one that has imported it, without the second that starting takes; calls of
proofs where nothing else has run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

LOST = 99  # no exit code of sdcli's


def warmed(folder: Path) -> None:
    """Imports all that drawing on the fake engine takes, by drawing an image."""
    from sdcli.cli import main

    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main.run(["generate", "a cat", "--engine", "fake", "--size", "64x64", "-s", "1", "-q", "-o", f"{folder}/warm"])


def started(words: Sequence[str], said: Path, first: Callable[[], None] = lambda: None) -> int:
    """The process that runs this command, and something else `first`; what it says goes to the file `said`."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDWR)
        for number, at in ((0, null), (1, file), (2, file)):
            os.dup2(at, number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        first()
        sys.argv = ["sdcli", *words]
        from sdcli.__main__ import run

        run()
    finally:
        os._exit(LOST)


def really_started(words: Sequence[str], said: Path) -> int:
    """The same, from the beginning."""
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    opened = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    opened += [(os.POSIX_SPAWN_OPEN, number, str(said), write, 0o666) for number in (1, 2)]
    command = [sys.executable, "-P", "-m", "sdcli", *words]
    default = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return os.posix_spawn(sys.executable, command, environment, file_actions=opened, setsigdef=default)


def answer_of(proof: str, call: str) -> Any:
    """What a call of this proof returns, as JSON, from a new process."""
    return answered(asked(proof, call))


def asked(proof: str, call: str, under: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """That process; `under` is what starts it, such as unshare."""
    code = f"import json; from scripts.proofs import {proof}; print(json.dumps({proof}.{call}))"
    words = [*under, sys.executable, "-P", "-c", code]
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)


def answered(process: subprocess.Popen[bytes]) -> Any:
    said = process.communicate()[0]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return json.loads(said)


def ended(process: int) -> int:
    """Its exit code, once it has ended; less than 0 where a signal killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
