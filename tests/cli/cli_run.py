"""Running sdcli: in this process for speed, in one of its own where signals and pipes matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from json_valid import name_of, wrong_in

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        data = json.loads(self.out)
        assert wrong_in(name_of(data), data) == []
        return data


def sdcli(capfd: pytest.CaptureFixture[str], *words: str) -> Outcome:
    from sdcli.cli.main import run

    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        run(words)
    captured = capfd.readouterr()
    return Outcome(int(left.value.code or 0), captured.out, captured.err)


def start(*words: str, cwd: Path, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
    return subprocess.Popen([sys.executable, "-m", "sdcli", *words], cwd=cwd, env=environment, **options)
