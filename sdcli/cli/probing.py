"""The device's number types tried once, before the first picture: flags and versions alone mislead."""

from __future__ import annotations

import importlib
from dataclasses import replace

from sdcli.machine import installation, state
from sdcli.machine.hardware import Hardware


def probed(place: Hardware) -> Hardware:
    """With what a second's trial found; remembered per processor, instruction set and version of torch.

    Only a CPU that claims bf16 is tried: elsewhere nothing would be decided by it.
    """
    torch = installation.torch_build()
    if place.device != "cpu" or place.source != "os" or torch is None or place.dtypes.get("bf16") != "assumed":
        return place
    if state.remembered_probe(place.name, place.isa, torch.version) is not None:
        return place
    found = importlib.import_module("sdcli.draw.local").probe(place.device, place.threads)
    state.remember_probe(place.name, place.isa, torch.version, found)
    return replace(place, dtypes={**place.dtypes, **found.dtypes})
