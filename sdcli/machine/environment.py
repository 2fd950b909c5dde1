"""What an image also depends on, read without torch: versions, processor, device. No hosts, no users, no paths."""

from __future__ import annotations

import platform
from typing import Any

from sdcli.machine import packages, processor
from sdcli.machine.hardware import Hardware

PACKAGES = ("torch", "diffusers", "transformers")


def environment(hardware: Hardware) -> dict[str, Any]:
    versions = {version.name: version.version for version in packages.versions(PACKAGES)}
    torch = packages.torch_build()
    return {
        "python": platform.python_version(),
        **{name: versions.get(name, "") for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": processor.read().name,
        "isa": hardware.isa,
        "threads": hardware.threads,
        "device": hardware.name,
        "driver": hardware.driver,
        "cuda": torch.cuda if torch is not None else None,
    }
