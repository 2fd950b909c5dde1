"""What holds exactly: images equal to diffusers' own, and no step that waits for the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from scripts.gpu.lab import Lab, Piece, Row
from sdcli.request import samplers

SAMPLERS = ("Euler a", "UniPC", "DPM++ 2M Karras")
PARITY = (("sd15", "fp16", 512), ("sdxl", "bf16", 1024), ("sd2", "fp32", 512))
PINS = (
    "placement=group-offload", "placement=model-offload,storage=fp8", "guidance=in-turn", "execution=graph",
)  # fmt: skip
STEPS = (*(f"sampler={one.name}" for one in samplers.SAMPLERS), *(f"sampler=Euler,{pins}" for pins in PINS))
WAITS = (("sd15", 512), ("sdxl", 1024))
TEXTS = {
    "parity": "Bytes of one image that differ from the one that diffusers' pipeline draws on the same GPU.",
    "waits": "The most waits for the GPU in a step after the first, by torch's own warnings.",
}
CLAIMS = {"parity": "images equal to diffusers', to the bit", "waits": "steps that never wait for the GPU"}


def pieces() -> list[Piece]:
    parity = [Piece(f"parity {one[0]} {one[1]}", 40, partial(_parity, *one)) for one in PARITY]
    return [*parity, *[Piece(f"waits {one[0]}", 40, partial(_waits, *one)) for one in WAITS]]


def _parity(family: str, dtype: str, side: int, lab: Lab) -> dict[str, Any]:
    return lab.ask("parity", str(lab.model(family)), dtype, str(lab.side(side)), *SAMPLERS)


def _waits(family: str, side: int, lab: Lab) -> dict[str, Any]:
    return lab.ask("waits", str(lab.model(family)), str(lab.side(side)), *STEPS)


def verdicts(found: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    return [_verdict(claim, list(_of(kind, found).values())) for kind, claim in CLAIMS.items()]


def _verdict(claim: str, answers: list[Mapping[str, Any]]) -> Row:
    counts = [count for answer in answers for count in answer.values()]
    if not counts:
        return claim, "not run", "all", None
    return claim, f"{counts.count(0)} of {len(counts)}", "all", counts.count(0) == len(counts)


def page(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for kind, claim in CLAIMS.items():
        rows = [
            f"| {name.partition(' ')[2]} | {what} | {count} |"
            for name, answer in _of(kind, found).items()
            for what, count in answer.items()
        ]
        lines += [
            f"## {claim[0].upper()}{claim[1:]}",
            "",
            TEXTS[kind],
            "",
            "| | | |",
            "| --- | --- | ---: |",
            *rows,
            "",
        ]
    return lines


def _of(kind: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {name: answer for name, answer in found.items() if name.split()[0] == kind}
