"""Numbers for people: 10.5 M, 401.6 G, 64², 3 %; and the short names of blocks."""

from __future__ import annotations

from collections.abc import Mapping

from sdcli.models.unet import Block, Unet
from sdcli.sizes import GIB


def count(value: int | float) -> str:
    """640, 11.8 k, 10.5 M, 1206.6 M, 54.8 G."""
    number = float(value)
    if number < 1000:
        return f"{number:.0f}"
    for letter in "kM":
        number /= 1000
        if number < (999.95 if letter == "k" else 9999.5):
            return f"{number:.1f} {letter}"
    return f"{number / 1000:.1f} G"


def work(macs: int) -> str:
    """Multiply-adds, in G unless there are few or very many: 54.8 G, 51 M, 15.7 T."""
    if macs >= 9_999_500_000_000:
        return f"{macs / 1e12:.1f} T"
    if macs >= 50_000_000:
        return f"{macs / 1e9:.1f} G"
    return count(macs)


def size(resolution: tuple[int, int], *, ascii: bool = False) -> str:
    """Height and width in latents: 64², else width×height."""
    height, width = resolution
    return f"{width}²" if height == width and not ascii else f"{width}×{height}"


def memory(count: int) -> str:
    """Bytes, with a decimal below ten: 2.5 MiB, 65 MiB."""
    for unit, letter in ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {letter}" if count < 10 * unit else f"{count / unit:.0f} {letter}"
    return f"{count} B"


def percent(part: float, whole: float) -> str:
    if not whole or not part:
        return "0 %"
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 0.95 else "<1 %"


def shares(parts: Mapping[str, int]) -> str:
    """convolution 55 %, linear 29 %: the largest first, zeros left out."""
    whole = sum(parts.values())
    largest_first = sorted(((value, name) for name, value in parts.items() if value), reverse=True)
    return ", ".join(f"{name} {percent(value, whole)}" for value, name in largest_first)


def short(name: str) -> str:
    """down_blocks.0 → down.0, as in the diagram."""
    return name.replace("_blocks.", ".").replace("mid_block", "mid")


def shape(values: tuple[int, ...]) -> str:
    return "×".join(str(value) for value in values)


def reads_text(block: Block) -> bool:
    return "CrossAttn" in block.type


def attends(block: Block) -> bool:
    return "Attn" in block.type


def parameters_by_kind(unet: Unet) -> dict[str, int]:
    totals: dict[str, int] = {}
    for leaf in unet.leaves:
        if leaf.parameters:
            totals[leaf.kind] = totals.get(leaf.kind, 0) + leaf.parameters
    return totals
