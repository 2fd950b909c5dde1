"""Pins: choices made by the user. Obeyed, or refused with the reason and the legal choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

from sdcli.errors import Usage
from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.near import ANY, nearest
from sdcli.plan.legality import legal
from sdcli.plan.plan import Setup
from sdcli.plan.techniques import TECHNIQUES, attention
from sdcli.plan.techniques.technique import Technique
from sdcli.request.request import Request
from sdcli.terminal import show

BY_SLOT: dict[str, Technique] = {technique.slot: technique for technique in TECHNIQUES}


def read_pins(pins: Mapping[str, str]) -> dict[str, str]:
    """Pins by the field of Setup; an unknown slot or choice is Usage with the nearest name."""
    chosen: dict[str, str] = {}
    for flag, choice in pins.items():
        technique = BY_SLOT.get(flag.replace("-", "_"))
        if technique is None:
            flags = [each.flag for each in TECHNIQUES]
            near = BY_SLOT[nearest(flag, flags, 1, ANY)[0].replace("-", "_")]
            raise Usage(
                f'there is no slot "{show(flag, 40)}"; use one of {", ".join(flags)}',
                hint=f"--pin {near.flag}={near.choices[0]}",
                choices=flags,
            )
        if choice not in technique.choices:
            raise Usage(
                f'{technique.flag} has no choice "{show(choice, 40)}"; it can be {", ".join(technique.choices)}',
                hint=f"--pin {technique.flag}={nearest(choice, technique.choices, 1, ANY)[0]}",
                choices=list(technique.choices),
            )
        chosen[technique.slot] = choice
    return chosen


def pins_of(request: Request) -> dict[str, str]:
    """The request's pins by the field of Setup; `--compile on` is one of them."""
    pins = read_pins(request.pins)
    if request.compile == "auto":
        return pins
    pinned = pins.get("execution")
    if pinned is not None and (pinned == "compile") != (request.compile == "on"):
        other = "off" if request.compile == "on" else "on"
        message = f"--compile {request.compile} and --pin execution={show(pinned, 40)} exclude each other"
        raise Usage(message, hint=f"--compile {other}")
    return {**pins, "execution": "compile"} if request.compile == "on" else pins


def candidates(start: Setup, hardware: Hardware, model: Model, pins: Mapping[str, str]) -> list[Setup]:
    """Every legal setup that obeys the pins: the product of the slots, in their order.

    Slot by slot, and what can no longer become legal is left out at once: most of the product is illegal.
    """
    setups, settled = [start], frozenset[str]()
    for technique in TECHNIQUES:
        setups = [_with(setup, technique.slot, choice) for setup in setups for choice in _choices(technique, pins)]
        settled |= {technique.slot}
        for judge in TECHNIQUES:
            if technique.slot in judge.judged and judge.judged <= settled:
                setups = [setup for setup in setups if judge.illegal(setup, hardware, model) is None]
    return [attention.settled(setup, hardware) for setup in setups]


def _with(setup: Setup, slot: str, choice: str) -> Setup:
    """As `replace` would make it, in a tenth of the time: planning makes a thousand."""
    other = object.__new__(Setup)
    vars(other).update(vars(setup))
    vars(other)[slot] = choice
    return other


def _product(start: Setup, pins: Mapping[str, str]) -> Iterable[Setup]:
    slots = [technique.slot for technique in TECHNIQUES]
    for choices in product(*[_choices(technique, pins) for technique in TECHNIQUES]):
        yield replace(start, **dict(zip(slots, choices, strict=True)))  # type: ignore[arg-type]


def _choices(technique: Technique, pins: Mapping[str, str]) -> tuple[str, ...]:
    if technique.slot in pins:
        return (pins[technique.slot],)
    return tuple(choice for choice in technique.choices if choice not in technique.by_pin)


def refusal(start: Setup, hardware: Hardware, model: Model, pins: Mapping[str, str]) -> Usage:
    """Why no legal setup obeys these pins, and what to pin instead."""

    def possible(tried: Mapping[str, str]) -> bool:
        return any(legal(setup, hardware, model) is None for setup in _product(start, tried))

    alone = [slot for slot in pins if not possible({slot: pins[slot]})]
    blamed = alone[0] if alone else list(pins)[-1]
    technique, choice = BY_SLOT[blamed], pins[blamed]
    others = {slot: pins[slot] for slot in pins if slot != blamed and slot not in alone}
    valid = [other for other in technique.choices if other != choice and possible({**others, blamed: other})]
    reason = _reason(start, hardware, model, pins if not alone else {blamed: choice}, technique, valid)
    message = f"{technique.flag}={choice} is not possible here: {reason}"
    if valid:
        message += f"; {technique.flag} can be {', '.join(valid)}"
    hint = f"--pin {technique.flag}={valid[0]}" if valid else f"leave out --pin {technique.flag}={choice}"
    return Usage(message, hint=hint, slot=technique.flag, choice=choice, choices=valid, because=reason)


def _reason(
    start: Setup, hardware: Hardware, model: Model, pins: Mapping[str, str], blamed: Technique, valid: Sequence[str]
) -> str:  # fmt: skip
    """The blamed slot's reason if it has one; else the one that rules out most setups, of those that would be legal
    with another choice there."""
    own: dict[str, int] = {}
    through_it: dict[str, int] = {}
    overall: dict[str, int] = {}
    for setup in _product(start, pins):
        reason = legal(setup, hardware, model)
        _count(own, blamed.illegal(setup, hardware, model))
        _count(overall, reason)
        if any(legal(blamed.put(setup, other), hardware, model) is None for other in valid):
            _count(through_it, reason)
    counts = own or through_it or overall
    most: Callable[[str], int] = counts.__getitem__
    return max(counts, key=most)


def _count(counts: dict[str, int], reason: str | None) -> None:
    if reason is not None:
        counts[reason] = counts.get(reason, 0) + 1
