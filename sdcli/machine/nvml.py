"""NVIDIA cards through the driver's own library (NVML), called with ctypes: no torch, no CUDA context, no package.

NVML counts cards in the order of the PCI bus. CUDA by default puts the fastest first, so numbers differ; a card is
the same card where the UUID is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ctypes

_REASONS = {
    4: "this user may not talk to the NVIDIA driver",
    9: "the NVIDIA driver is not loaded",
    12: "the NVIDIA driver's library is missing",
    15: "the GPU was lost: restart the machine",
    18: "the NVIDIA driver was updated while in use: restart the machine",
}
_CARD_IS_THERE = (4, 15, 18)  # errors that machines without a card do not give
_MISSING = 13  # a function this driver does not have


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card, or one slice of a card that is split (MIG). Bytes; 0 where the card shares the host's memory."""

    index: int  # in PCI order
    uuid: str
    name: str
    total: int
    free: int
    capability: str | None = None  # "8.6"
    speed: int = 0  # cores × MHz, only to guess CUDA's order
    split: bool = False  # into slices; CUDA then shows a slice instead of the card
    slices: tuple[Card, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What NVML said; no cards come with a reason."""

    cards: tuple[Card, ...] = ()
    driver: str | None = None
    cuda: str | None = None  # the newest CUDA this driver can run, "12.8"
    reason: str | None = None
    broken: bool = False  # there is a card, and it does not answer


def read(library: Any = None) -> Report:
    """All cards. Never raises: whatever goes wrong becomes the reason."""
    try:
        library = _load() if library is None else library
        if library is None:
            return Report(reason="there is no NVIDIA driver")
        with _session(library) as status:
            return _refused(status) if status else _read(library)
    except Exception as error:  # a foreign library: nothing it does may stop a plan for the CPU
        return Report(reason=f"NVML failed: {type(error).__name__}: {error}")


def _load() -> Any:
    import ctypes

    for name in _places():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _places() -> list[str]:
    import os
    import sys

    if sys.platform == "win32":
        programs = os.environ.get("PROGRAMFILES", r"C:\Program Files")
        return ["nvml.dll", programs + r"\NVIDIA Corporation\NVSMI\nvml.dll"]
    return ["libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"]


@contextmanager
def _session(library: Any) -> Iterator[int]:
    """NVML open, and closed again whatever happens; yields what opening it answered, 0 for success."""
    status = _call(library, "nvmlInit_v2")
    if status != 0:
        yield status
        return
    try:
        yield status
    finally:
        _call(library, "nvmlShutdown")


def _call(library: Any, name: str, *arguments: Any) -> int:
    try:
        function = getattr(library, name)
    except AttributeError:
        return _MISSING
    return int(function(*arguments))


def _because(status: int) -> str:
    return _REASONS.get(status, f"NVML answered with error {status}")


def _refused(status: int, driver: str | None = None) -> Report:
    return Report(driver=driver, reason=_because(status), broken=status in _CARD_IS_THERE)


def _read(library: Any) -> Report:
    import ctypes

    driver = _text(library, "nvmlSystemGetDriverVersion", size=80) or None
    count = ctypes.c_uint(0)
    status = _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    if status != 0:
        return _refused(status, driver)
    cards, reason = [], None
    for index in range(min(count.value, 256)):
        handle = ctypes.c_void_p()
        status = _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        if status == 0:
            cards.append(_card(library, handle, index))
        else:
            reason = f"GPU {index}: {_because(status)}"
    broken = reason is not None
    if not cards and reason is None:
        reason = "the NVIDIA driver sees no GPU"
    return Report(cards=tuple(cards), driver=driver, cuda=_cuda(library), reason=reason, broken=broken)


def _card(library: Any, handle: ctypes.c_void_p, index: int) -> Card:
    whole = _one(library, handle, index)
    if not _is_split(library, handle):
        return whole
    slices = (_one(library, part, index) for part in _slices(library, handle))
    # Not every driver tells a slice's name and capability; the card it is cut from has both.
    named = tuple(replace(part, name=part.name or whole.name, capability=whole.capability) for part in slices)
    return replace(whole, split=True, slices=named)


def _one(library: Any, handle: ctypes.c_void_p, index: int) -> Card:
    total, free = _memory(library, handle)
    cores, clock = _number(library, "nvmlDeviceGetNumGpuCores", handle), _clock(library, handle)
    return Card(
        index=index,
        uuid=_text(library, "nvmlDeviceGetUUID", handle),
        name=_text(library, "nvmlDeviceGetName", handle),
        total=total,
        free=free,
        capability=_capability(library, handle),
        speed=cores * clock,
    )


def _text(library: Any, name: str, *arguments: Any, size: int = 96) -> str:
    import ctypes

    buffer = ctypes.create_string_buffer(size)
    if _call(library, name, *arguments, buffer, ctypes.c_uint(size)) != 0:
        return ""
    return buffer.value.decode("utf-8", "replace").strip()


def _number(library: Any, name: str, *arguments: Any) -> int:
    import ctypes

    value = ctypes.c_uint(0)
    return value.value if _call(library, name, *arguments, ctypes.byref(value)) == 0 else 0


def _clock(library: Any, handle: ctypes.c_void_p) -> int:
    import ctypes

    return _number(library, "nvmlDeviceGetMaxClockInfo", handle, ctypes.c_int(1))  # 1: the multiprocessors' clock


def _capability(library: Any, handle: ctypes.c_void_p) -> str | None:
    import ctypes

    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    asked = handle, ctypes.byref(major), ctypes.byref(minor)
    status = _call(library, "nvmlDeviceGetCudaComputeCapability", *asked)
    return f"{major.value}.{minor.value}" if status == 0 else None


def _memory(library: Any, handle: ctypes.c_void_p) -> tuple[int, int]:
    """Total and free. The second version leaves out what the driver keeps for itself; old drivers have the first."""
    import ctypes

    class Second(ctypes.Structure):
        _fields_ = [
            ("version", ctypes.c_uint),
            *((name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")),
        ]

    class First(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    second = Second()
    second.version = ctypes.sizeof(Second) | 2 << 24
    if _call(library, "nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(second)) == 0:
        return second.total, second.free
    first = First()
    if _call(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(first)) == 0:
        return first.total, first.free
    return 0, 0


def _is_split(library: Any, handle: ctypes.c_void_p) -> bool:
    import ctypes

    mode, pending = ctypes.c_uint(0), ctypes.c_uint(0)
    status = _call(library, "nvmlDeviceGetMigMode", handle, ctypes.byref(mode), ctypes.byref(pending))
    return status == 0 and mode.value == 1


def _slices(library: Any, handle: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
    import ctypes

    for number in range(min(_number(library, "nvmlDeviceGetMaxMigDeviceCount", handle), 64)):
        part = ctypes.c_void_p()
        asked = handle, ctypes.c_uint(number), ctypes.byref(part)
        if _call(library, "nvmlDeviceGetMigDeviceHandleByIndex", *asked) == 0:
            yield part


def _cuda(library: Any) -> str | None:
    import ctypes

    version = ctypes.c_int(0)
    for name in ("nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetCudaDriverVersion"):
        if _call(library, name, ctypes.byref(version)) == 0 and version.value > 0:
            return f"{version.value // 1000}.{version.value % 1000 // 10}"
    return None


# --- which of them CUDA will show to this process


def visible(cards: tuple[Card, ...], environment: Mapping[str, str]) -> tuple[Card, ...]:
    """The cards in CUDA's order: the place in this tuple is the number in `cuda:N`.

    CUDA_VISIBLE_DEVICES holds numbers, or UUIDs, or beginnings of UUIDs; the list ends at the first entry that is
    none (so -1 and nonsense hide all that follow), and naming a card twice hides all of them.
    """
    ordered = in_cuda_order(cards, environment.get("CUDA_DEVICE_ORDER"))
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return _shown(ordered)
    entries = [entry.strip() for entry in named.split(",")]
    by_uuid = entries[0].startswith(("GPU-", "MIG-"))
    chosen: list[Card] = []
    for entry in entries:
        card = _by_uuid(ordered, entry) if by_uuid else _by_number(ordered, entry)
        if card is None:
            break
        if card in chosen:
            return ()
        chosen.append(card)
    return _shown(tuple(chosen))


def in_cuda_order(cards: tuple[Card, ...], order: str | None) -> tuple[Card, ...]:
    """PCI_BUS_ID is exact. CUDA's default, fastest first, is its own secret: cores × clock is our guess, and equal
    cards stay in PCI order. What draws asks the device for its UUID before it trusts the number."""
    if order == "PCI_BUS_ID":
        return tuple(sorted(cards, key=lambda card: card.index))
    return tuple(sorted(cards, key=lambda card: (-card.speed, card.index)))


def _shown(cards: tuple[Card, ...]) -> tuple[Card, ...]:
    """CUDA shows the first slice of a split card, and nothing of one that has no slices yet."""
    return tuple(card.slices[0] if card.split else card for card in cards if card.slices or not card.split)


def _by_number(cards: tuple[Card, ...], entry: str) -> Card | None:
    found = re.match(r"\+?(\d{1,9})", entry, re.ASCII)  # CUDA reads a number and ignores what follows it
    number = int(found[1]) if found else -1
    return cards[number] if 0 <= number < len(cards) else None


def _by_uuid(cards: tuple[Card, ...], entry: str) -> Card | None:
    candidates = cards if entry.startswith("GPU-") else tuple(part for card in cards for part in card.slices)
    found = [card for card in candidates if len(entry) > len("GPU-") and card.uuid.startswith(entry)]
    exact = [card for card in found if card.uuid == entry]
    return (exact or found)[0] if exact or len(found) == 1 else None


# --- a card without its driver


def on_the_bus(root: Path = Path("/")) -> bool:
    """Whether the PCI bus holds an NVIDIA display controller (Linux): a card whose driver may be missing."""
    for folder in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor = (folder / "vendor").read_text(encoding="ascii").strip()
            kind = (folder / "class").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False
