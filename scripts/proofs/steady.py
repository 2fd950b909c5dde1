"""Two thousand images by one engine, and every command on local models: nothing piles up, and nobody is called."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import forked, make_checkpoint  # noqa: E402

NAME = "steady"
CLAIM = (
    "Over 2,000 images of tiny SD1.5 on one engine, saved and reported, memory grows by at most 4 kB an image; "
    "descriptors and threads stay as many as they were. Every command on local models does its work without a network "
    "(`unshare -n`) and tries no connection (Python's audit hook)."
)

IMAGES, WARM, EVERY = 2_000, 200, 10
MOST_GROWTH = 4_000  # bytes an image
TINY = ("--size", "64x64", "-s", "1", "--dtype", "fp32", "--compile", "off")

Row = tuple[str, str, str, bool]


# --- many images


def drawn(images: int) -> dict[str, Any]:
    """In a process of its own: bytes in memory, descriptors and threads after every tenth image."""
    import torch

    from sdcli.draw import local, quiet
    from sdcli.events import Planned, Saved
    from sdcli.models import resolve
    from sdcli.plan.planner import make_plan
    from sdcli.record import report
    from sdcli.record.store import store
    from sdcli.request.request import Request
    from tests.draw.draw_samples import HARDWARE
    from tests.record.record_samples import destination

    torch.set_num_threads(1)
    samples = []
    with tempfile.TemporaryDirectory() as made, quiet.libraries_silenced(), local.Engine() as engine:
        model = resolve.at(make_checkpoint.write_folder(Path(made) / "model", "sd15", tiny=True))
        request = Request(
            prompts=("a cat",), seeds=tuple(range(images)), num_images=images, steps=1, width=64, height=64,
            sampler="Euler", pins={"dtype": "fp32", "execution": "eager"},
        )  # fmt: skip
        plan = make_plan(request, model, HARDWARE, {})
        folding = report.Folding(started="", run="", clock=lambda: 0.0)
        stream = itertools.chain([Planned(plan=plan)], engine.run(plan))
        for event in store(stream, destination(Path(made) / "out")):
            folding(event)
            if isinstance(event, Saved):
                Path(event.path).unlink()  # so that the folder stays as small as it was
                if event.index % EVERY == 0:
                    samples.append((event.index, *held()))
    return {"samples": samples, "kept": folding.tally.kept}


def held() -> tuple[int, int, int]:
    """Bytes in memory, open descriptors, threads."""
    status = Path("/proc/self/status").read_text()
    numbers = {name: int(status.partition(f"{name}:")[2].split()[0]) for name in ("VmRSS", "Threads")}
    return numbers["VmRSS"] << 10, len(os.listdir("/proc/self/fd")), numbers["Threads"]


def slope(points: Sequence[tuple[int, int]]) -> float:
    """Theil and Sen's: the median of the slopes of all pairs, which a few jumps do not move."""
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2))


def growth(images: int, warm: int) -> list[Row]:
    found = forked.answer_of("steady", f"drawn({images})")
    steady = [sample for sample in found["samples"] if sample[0] >= warm]
    bytes_each = slope([(sample[0], sample[1]) for sample in steady])
    rows: list[Row] = [
        ("images saved and reported", f"{found['kept']:,}", f"{images:,}", found["kept"] == images),
        (
            "memory for each further image", f"{bytes_each / 1000:.2f} kB", f"≤ {MOST_GROWTH / 1000:g} kB",
            bytes_each <= MOST_GROWTH,
        ),
    ]  # fmt: skip
    for what, column in (("descriptors", 2), ("threads", 3)):
        counts = {sample[column] for sample in steady}
        seen = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
        rows.append((what, seen, "constant", len(counts) == 1))
    return rows


# --- no connections


LISTENING = """
import os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def hook(event, given):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        address = given[1] if event.startswith("socket.s") or event == "socket.connect" else given
        os.write(log, f"{event} {address}\\n".encode())
sys.addaudithook(hook)
sys.argv = ["sdcli", *sys.argv[2:]]
from sdcli.__main__ import run
run()
"""

COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": ("generate", "a cat", "-m", "model", "-n", "2", "--seed", "1", *TINY, "-q"),
    "generate, from an image": (
        "generate", "a cat", "-m", "model", "--image", "drawn.png", "--strength", "1", *TINY, "-q",
    ),
    "generate, settings of an image": ("generate", "--settings-from", "drawn.png", "-m", "model", *TINY, "-q"),
    "plan": ("plan", "a cat", "-m", "model"),
    "again": ("again", "drawn.png", "-m", "model", "-q"),
    "verify": ("verify", "drawn.png", "-m", "model"),
    "diff": ("diff", "drawn.png", "other.png"),
    "runs": ("runs",),
    "resume": ("resume",),
    "upscale": ("upscale", "drawn.png", "--upscaler", "upscaler.safetensors"),
    "models": ("models", "."),
    "models check": ("models", "check", "model"),
    "inspect-unet": ("inspect-unet", "model"),
    "bench": ("bench", "-m", "model", "--size", "64x64", "--quick"),
    "doctor": ("doctor",),
    "samplers": ("samplers",),
    "presets": ("presets",),
    "config": ("config", "show"),
    "help": ("help", "memory"),
}  # fmt: skip
MAY_END = {"resume": (0, 2), "diff": (0, 10)}  # with nothing to resume; with other pixels


def cut_off() -> list[str]:
    """What runs a command without any network, where this system lets us."""
    allowed = shutil.which("unshare") and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
    return ["unshare", "-n"] if allowed else []


def prepared(folder: Path) -> None:
    make_checkpoint.write_folder(folder / "model", "sd15", tiny=True)
    make_checkpoint.write_upscaler(folder / "upscaler.safetensors", tiny=True)
    for name, seed in (("drawn.png", "1"), ("other.png", "2")):
        ended(("generate", "a cat", "-m", "model", "--seed", seed, *TINY, "-q", "-o", name), folder, [])


def ended(words: Sequence[str], folder: Path, before: list[str]) -> tuple[int, str, str]:
    """Its exit code, its last words, and the connections that it tried."""
    log = folder / "log"
    log.write_bytes(b"")
    place = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SDCLI_"))}
    place |= {"PYTHONPATH": str(ROOT), "SDCLI_HOME": str(folder / "home"), "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [*before, sys.executable, "-P", "-c", LISTENING, str(log), *words], cwd=folder, env=place, capture_output=True,
        text=True, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
    return done.returncode, done.stderr[-300:], log.read_text()


def connections(commands: Sequence[str]) -> dict[str, list[str]]:
    """What was wrong with each command."""
    wrong, before = {}, cut_off()
    with tempfile.TemporaryDirectory() as made:
        prepared(Path(made))
        for name in commands:
            code, said, tried = ended(COMMANDS[name], Path(made), before)
            failed = [] if code in MAY_END.get(name, (0,)) else [f"exit {code}: {said}"]
            wrong[name] = [*failed, *tried.splitlines()[:3]]
    return wrong


def main() -> list[Row]:
    rows = growth(IMAGES, WARM)
    ends = connections(list(COMMANDS))
    bad = {name: wrong for name, wrong in ends.items() if wrong}
    seen = f"{len(ends) - len(bad)} of {len(ends)}" + ("" if cut_off() else ", with a network")
    seen += f"; {bad}" if bad else ""
    return [*rows, (f"commands that connect to nothing: {', '.join(ends)}", seen, "all", not bad)]
