"""A run is killed at any moment: what is finished is whole, and the list of it can be read."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from sdcli.errors import BadFile  # noqa: E402
from sdcli.record import runs  # noqa: E402

NAME = "killed"
CLAIM = "SIGKILL at forty moments of a run of several images: no half-written image, no unreadable list."
TIMES = 40
IMAGES = 400


def main() -> list[tuple[str, str, str, bool]]:
    pick = random.Random(7)
    torn = unread = lost = left = images = early = 0
    for _ in range(TIMES):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            wait_and_kill(folder, pick.uniform(0.0, 1.0))
            drawn = sorted(folder.rglob("*.png"))
            images += len(drawn)
            torn += sum(not whole(path) for path in drawn)
            lists = list(folder.rglob("run.jsonl"))
            early += not lists
            for path in lists:
                try:
                    run = runs.read(path.parent)
                    recovered = runs.recover(run)
                except BadFile:
                    early += not drawn  # killed in its first line: nothing was drawn yet
                    unread += bool(drawn)
                    continue
                named = {Path(intent.file).name for intent in recovered.done.values()}
                lost += len({path.name for path in drawn} - named)
                left += len(list(folder.rglob("*.part")))
    return [
        ("kills", f"{TIMES}, {early} of them before the run began", f"{TIMES}", True),
        ("images found whole", f"{images - torn} of {images}", "all", torn == 0 and images > 100),
        ("lists that could be read", f"{TIMES - early - unread} of {TIMES - early}", "all", unread == 0),
        ("images that no list knew", str(lost), "0", lost == 0),
        ("parts left after recovery", str(left), "0", left == 0),
    ]


def wait_and_kill(folder: Path, share: float) -> None:
    """Killed a share of a second after the first image, or after the start where that share is small."""
    command = [sys.executable, "-P", "-m", "sdcli", "generate", "a cat", "-n", str(IMAGES), "--engine", "fake"]
    command += ["--size", "256x256", "-s", "2", "-o", str(folder), "-q"]
    place = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    if share > 0.1:
        until = time.monotonic() + 60
        while not any(folder.rglob("*.png")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
    time.sleep(share)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def whole(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return False
    return True
