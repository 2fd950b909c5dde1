"""A process with too little room for itself: `sdcli generate` under 40 limits, from hardly starting to enough."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import make_checkpoint  # noqa: E402

NAME = "address_space"
CLAIM = "A real `sdcli generate` (two images, tiny SD1.5) under 40 limits of its address space ends with 0 or 4."

MIB = 1 << 20
STEPS = 40
STARTS = 5  # in a row: within a MiB or two of what it takes, Python starts now and then, or crashes by itself
EARLY = (2, 4, 8, 16, 32, 64, 96, 128, 256)  # MiB above the least: reading settings, planning
WORDS = ("generate", "a cat", "--size", "64x64", "-s", "3", "--dtype", "fp32", "--seed", "1", "-n", "2")
PEAK = """
import sys
from sdcli.cli.main import run
try:
    run(sys.argv[1:])
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""


@dataclass(frozen=True)
class Ended:
    """How one run ended; `wrong` says what should not have been so."""

    limit: int  # bytes
    code: int
    said: str
    wrong: tuple[str, ...]


def limited(words: list[str], limit: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """sdcli in its own process that may map `limit` bytes."""

    def lower() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "sdcli", *words], preexec_fn=lower, cwd=folder, env=environment(folder),
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "SDCLI_HOME": str(folder / "home")}


def tried(model: Path, limit: int, folder: Path, as_json: bool) -> Ended:
    """A run under `limit`, judged."""
    before = set(folder.rglob("*.png"))
    done = limited([*WORDS, "-m", str(model), *(["--json"] if as_json else [])], limit, folder)
    drawn = sorted(set(folder.rglob("*.png")) - before)
    wrong: list[str] = []
    if done.returncode not in (0, 4):
        wrong.append(f"exit {done.returncode}: {done.stderr[-300:]}")
    if "Traceback" in done.stderr or "Traceback" in done.stdout:
        wrong.append("a traceback")
    error = _error(done, as_json) if done.returncode in (0, 4) else None
    if (done.returncode == 4) != bool(error and error.get("message") and error.get("hint")):
        wrong.append(f"exit {done.returncode} with {error}: {done.stdout[-200:]} {done.stderr[-300:]}")
    if not as_json and [line for line in done.stdout.splitlines() if not (folder / line).is_file()]:
        wrong.append("a path without its image")
    if done.returncode == 0 and len(drawn) != 2:
        wrong.append(f"{len(drawn)} images")
    if list(folder.rglob("*.part")):
        wrong.append("half an image")
    said = str((error or {}).get("message", ""))
    print(f"  {limit // MIB:>5} MiB  exit {done.returncode}  {'; '.join(wrong) or said[:110]}", flush=True)
    return Ended(limit, done.returncode, said, tuple(wrong))


def _error(done: subprocess.CompletedProcess[str], as_json: bool) -> dict[str, object] | None:
    """The error as reported, on stdout or on stderr."""
    if as_json:
        try:
            error = json.loads(done.stdout)["error"]
        except ValueError:
            return None
        return error if isinstance(error, dict) else None
    answer: dict[str, object] = {}
    for line in done.stderr.splitlines():
        for start, name in (("error: ", "message"), ("  try: ", "hint")):
            if line.startswith(start):
                answer[name] = line.removeprefix(start)
    return answer or None


def least(folder: Path) -> int:
    """The smallest limit, in MiB, under which sdcli says its version every time. From above: far below it, Python
    itself may try for ever."""

    def starts(size: int) -> bool:
        return all(limited(["--version"], size * MIB, folder).returncode == 0 for _ in range(STARTS))

    size = next(size for size in (32, 64, 128, 256, 512) if starts(size))
    while starts(size - 1):
        size -= 1
    return size


def enough(model: Path, folder: Path) -> int:
    """What a run without limits maps at its most, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *WORDS, "-m", str(model)], cwd=folder, env=environment(folder),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    match = re.search(r"VmPeak:\s+(\d+) kB", done.stderr)
    assert match is not None
    return int(match[1]) // 1024


def limits(least: int, enough: int) -> list[int]:
    """MiB. Most lie where libraries are mapped, weights loaded and images drawn."""
    early = [least + more for more in EARLY]
    first, last, rest = early[-1] + 64, enough + 128, STEPS - len(early)
    return [*early, *(first + (last - first) * number // (rest - 1) for number in range(rest))]


def main() -> list[tuple[str, str, str, bool]]:
    rows: list[tuple[str, str, str, bool]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_checkpoint.write_folder(folder / "model", "sd15", tiny=True)
        ended = [
            tried(model, limit * MIB, folder, as_json=number % 2 == 1)
            for number, limit in enumerate(limits(least(folder), enough(model, folder)))
        ]
    for code, what in ((4, "exit 4, typed"), (0, "exit 0, both images")):
        sizes = [run.limit // MIB for run in ended if run.code == code]
        seen = f"{len(sizes)} limits, {min(sizes)} to {max(sizes)} MiB" if sizes else "none"
        rows.append((what, seen, "", bool(sizes)))
    wrong = [f"{run.limit // MIB} MiB: {'; '.join(run.wrong)}" for run in ended if run.wrong]
    rows.append(("anything else", "; ".join(wrong) or f"none of {len(ended)}", "none", not wrong))
    rows.append(("the largest limit is enough", f"exit {ended[-1].code}", "exit 0", ended[-1].code == 0))
    return rows
