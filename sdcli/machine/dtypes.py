"""Which number types a device supports before it is probed: assumed or unavailable."""

from __future__ import annotations

import re

NAMES = ("fp32", "bf16", "fp16")


def cpu(isa: str) -> dict[str, str]:
    """bf16 only where the CPU has instructions for it: emulated it is 3 to 500 times slower than fp32."""
    native = "bf16" in isa or isa == "amx"
    return {"fp32": "assumed", "bf16": "assumed" if native else "unavailable", "fp16": "unavailable"}


def cuda(capability: str | None) -> dict[str, str]:
    """fp16 from 5.3 on, bf16 from Ampere (8.0) on; an unknown GPU is assumed to be recent."""
    level = float(capability) if capability else 8.6
    return {
        "fp32": "assumed",
        "bf16": "assumed" if level >= 8.0 else "unavailable",
        "fp16": "assumed" if level >= 5.3 else "unavailable",
    }


def mps() -> dict[str, str]:
    return {"fp32": "assumed", "bf16": "unavailable", "fp16": "assumed"}


def rocm(architecture: str | None) -> dict[str, str]:
    """fp16 on every GPU that ROCm supports; bf16 from CDNA 2 and RDNA 3 on; an unknown GPU is assumed to be recent."""
    native = architecture is None or re.fullmatch(r"gfx(90a|9[45].|11..|12..)", architecture)
    return {"fp32": "assumed", "bf16": "assumed" if native else "unavailable", "fp16": "assumed"}


def xpu() -> dict[str, str]:
    """All that torch's XPU build supports compute in both half precisions."""
    return {"fp32": "assumed", "bf16": "assumed", "fp16": "assumed"}


def notes(name: str, capability: str | None) -> tuple[str, ...]:
    """GTX 16xx are Turing without tensor cores; half precision gives black or green images on some of them."""
    if capability == "7.5" and re.search(r"GTX 16\d\d", name):
        return ("fp16 can give black or broken images on GTX 16xx GPUs; if it does: --dtype fp32",)
    return ()
