"""Ten thousand files in a folder of models: listed by the command itself, the second time without opening one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sdcli.models import listing

NAME = "model_folder"
CLAIM = "`sdcli models` lists 10,000 files in at most 2 seconds the second time, and opens none of them."
FILES, GOAL = 10_000, 2.0
_MODULES = 48  # layers of each LoRA

Row = tuple[str, str, str, bool]


def main() -> list[Row]:
    with tempfile.TemporaryDirectory() as made:
        base = Path(made)
        models = fill(base / "models")
        environment = {**os.environ, "SDCLI_HOME": str(base / "home"), "HF_HOME": str(base / "hub")}
        first = timed(models, environment)
        later = [timed(models, environment) for _ in range(3)]
        opened = opens_again(base, models)
    wall, spent, listed = (max(column) for column in zip(*later, strict=True))
    shared = f", the core shared: {spent / wall:.0%} of it" if spent < wall / 2 else ""
    return [
        ("files listed", f"{listed:,}", f"{FILES:,}", listed == FILES),
        ("first time, every header read, CPU time", f"{first[1]:.1f} s", "", True),
        ("second time, whole command, most CPU time of 3", f"{spent:.2f} s", f"≤ {GOAL:g} s", spent <= GOAL),
        ("on the clock", f"{wall:.2f} s{shared}", f"≤ {GOAL:g} s on a core of its own", bool(shared) or wall <= GOAL),
        ("model files opened the second time", f"{opened}", "0", opened == 0),
    ]


def fill(base: Path) -> Path:
    """LoRAs with real headers in a hundred folders, checkpoints, embeddings, and pickles that nobody opens. Their data
    is a hole, so that it takes no room."""
    for number in range(FILES):
        place = base / f"{number % 100:02}"
        place.mkdir(parents=True, exist_ok=True)
        kind = number % 50
        if kind == 0:
            (place / f"{number}.ckpt").write_bytes(b"pickled")
        elif kind == 1:
            write(place / f"{number}.safetensors", {"emb_params": [4, 768]})
        else:
            write(place / f"{number}.safetensors", lora(number))
    return base


def lora(number: int) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for module in range(_MODULES):
        name = f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_{module}_attn2_to_k"
        shapes |= {f"{name}.lora_down.weight": [4 + number % 8, 768], f"{name}.lora_up.weight": [640, 4 + number % 8]}
    return shapes


def write(path: Path, shapes: dict[str, list[int]]) -> None:
    table: dict[str, object] = {"__metadata__": {"modelspec.trigger_phrase": f"word {path.stem}"}}
    position = 0
    for name, (rows, columns) in shapes.items():
        table[name] = {
            "dtype": "F16",
            "shape": [rows, columns],
            "data_offsets": [position, position + rows * columns * 2],
        }
        position += rows * columns * 2
    head = json.dumps(table).encode()
    with path.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        out.truncate(8 + len(head) + position)


def timed(models: Path, environment: dict[str, str]) -> tuple[float, float, int]:
    """Seconds on the clock, seconds of CPU, entries listed."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sdcli", "models", str(models), "--json"], env=environment, capture_output=True,
        check=True,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, spent, len(json.loads(done.stdout)["models"])


def opens_again(base: Path, models: Path) -> int:
    """Files below `models` that this process opens when it lists them with the command's own memory."""
    opened: list[str] = []
    listening = True

    def hook(event: str, details: tuple[object, ...]) -> None:
        if listening and event == "open" and str(details[0]).startswith(str(models)):
            opened.append(str(details[0]))

    sys.addaudithook(hook)
    cache = listing.recall(base / "home" / "cache" / "listing.json")
    entries = listing.listed(folders=[models], cache=cache)
    listening = False
    assert len(entries) == FILES
    return len(opened)
