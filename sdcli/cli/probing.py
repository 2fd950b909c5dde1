"""The device's number types tried once, before the first image: flags and versions alone mislead."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace

from sdcli.machine import installation, memories
from sdcli.machine.hardware import Hardware


def probed(place: Hardware) -> tuple[Hardware, float]:
    """With what a second's trial found, remembered per processor, instruction set and version of torch; and the
    seconds that loading torch for it took, which every other run spends later.

    Only a CPU that claims bf16 is tried: elsewhere nothing would be decided by it.
    """
    torch = installation.torch_build()
    if place.device != "cpu" or place.source != "os" or torch is None or place.dtypes.get("bf16") != "assumed":
        return place, 0.0
    key = (place.name, place.isa, torch.version)
    if key in memories.probes():
        return place, 0.0
    started = time.perf_counter()
    found = importlib.import_module("sdcli.draw.local").probe(place.device, place.threads)
    memories.remember_probe(key, found)
    tried = replace(place, dtypes={**place.dtypes, **found.dtypes})
    return tried, max(0.0, time.perf_counter() - started - found.seconds)
