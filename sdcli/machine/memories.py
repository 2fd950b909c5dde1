"""What sdcli remembers of this machine: peaks, seconds, probes, the best rate. An unreadable file counts as empty."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sdcli import reading
from sdcli.errors import BadFile
from sdcli.files import REAL, replace_whole
from sdcli.machine import packages
from sdcli.machine.folders import state_folder
from sdcli.machine.hardware import Hardware, Probe, Trial
from sdcli.schema import from_json, to_json

SCHEMA = "sdcli.state/1"


class Store(NamedTuple):
    """A JSON object in a file. Several programs may use it at once: each update replaces the file whole."""

    path: Path
    most_entries: int = 500
    most_bytes: int = 1 << 20

    def read(self) -> dict[str, Any]:
        """What is remembered, oldest first; nothing where the file is absent, damaged, too large or newer."""
        data = reading.recall(self.path, self.most_bytes)
        entries = data.get("entries") if data.get("schema") == SCHEMA else None
        return entries if isinstance(entries, dict) else {}

    def update(self, key: str, change: Callable[[Any], Any]) -> bool:
        """Put `change(old or None)` under `key`, as the newest entry. False where it could not be written:
        being unable to remember is no reason to fail."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _Lock(self.path.with_suffix(".lock")):
                entries = self.read()
                new = change(entries.pop(key, None))
                entries[key] = new
                replace_whole(REAL, self.path, [self._fitting(entries)])
        except (OSError, ValueError, TypeError):
            return False
        return True

    def _fitting(self, entries: dict[str, Any]) -> bytes:
        """The newest entries that stay within the bounds."""
        names = list(entries)[-self.most_entries :]
        while True:
            newest = {name: entries[name] for name in names}
            content = json.dumps({"schema": SCHEMA, "entries": newest}, allow_nan=False).encode()
            if len(content) <= self.most_bytes or not names:
                return content
            names = names[len(names) // 4 + 1 :]


class _Lock:
    """One writer at a time, so that no update is lost. A lock not released in time is ignored: the file itself is
    replaced whole."""

    patience = 1.0  # seconds
    stale = 10.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acquired = False

    def __enter__(self) -> None:
        end = time.monotonic() + self.patience
        while True:
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                self.acquired = True
                return
            except (FileExistsError, PermissionError) as error:
                if isinstance(error, PermissionError) and os.name != "nt":
                    raise  # on Windows a lock being removed fails like this
            if self._is_stale():
                self.path.unlink(missing_ok=True)
            elif time.monotonic() > end:
                return
            else:
                time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        if self.acquired:
            self.path.unlink(missing_ok=True)

    def _is_stale(self) -> bool:
        try:
            return time.time() - self.path.stat().st_mtime > self.stale
        except OSError:
            return False


def store(name: str = "measured") -> Store:
    """`measured` for runs and rates, `probes` for probes: a long sweep must not push the probes out."""
    return Store(state_folder() / f"{name}.json")


def machine_of(hardware: Hardware) -> str:
    """A fingerprint within which measurements are comparable: this device with these versions."""
    versions = packages.versions(("torch", "diffusers", "transformers"))
    return hardware.fingerprint({version.name: version.version for version in versions})


# --- measurements


def remembered(machine: str, where: Store | None = None) -> Mapping[str, Any]:
    """Everything remembered of runs on this machine (a fingerprint), by the plan's key of the setup."""
    start = _key("run", machine, "")
    entries = (where or store()).read()
    return {name[len(start) :]: value for name, value in entries.items() if name.startswith(start)}


def remember_run(machine: str, key: str, merge: Callable[[Any], Any], where: Store | None = None) -> bool:
    """Remember one more run of the setup `key`: `merge` makes the new entry from the old one, or from None."""
    return (where or store()).update(_key("run", machine, key), merge)


def best_rate(machine: str, dtype: str, where: Store | None = None) -> float | None:
    """The most FLOP a second seen here in this dtype."""
    return _rate((where or store()).read().get(_key("rate", machine, dtype)))


def remember_rate(machine: str, dtype: str, rate: float, where: Store | None = None) -> bool:
    """Keep the better one."""
    if _rate(rate) is None:
        return False
    return (where or store()).update(_key("rate", machine, dtype), lambda old: max(_rate(old) or 0.0, rate))


def _rate(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    return float(value) if usable else None


def _key(*parts: str) -> str:
    return "\n".join(parts)  # no part contains a newline, so keys are unique


# --- probes

ProbeKey = tuple[str, str, str]  # device, ISA of a CPU or driver of a GPU, version of torch: each changes the answer


def probes(where: Store | None = None) -> dict[ProbeKey, Probe]:
    """Every valid probe that is remembered."""
    valid: dict[ProbeKey, Probe] = {}
    for key, entry in (where or store("probes")).read().items():
        kind, *parts = key.split("\n")
        probe = _probe(entry)
        if kind == "probe" and len(parts) == 3 and probe is not None:
            valid[parts[0], parts[1], parts[2]] = probe
    return valid


def _probe(entry: Any) -> Probe | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("dtypes"), Mapping):
        return None
    ratio = entry.get("ratio")
    return Probe(
        dtypes={str(k): v for k, v in entry["dtypes"].items() if v in ("probed", "unavailable")},
        ratio={str(k): rate for k, v in (ratio if isinstance(ratio, Mapping) else {}).items() if (rate := _rate(v))},
        seconds=_rate(entry.get("seconds")) or 0.0,
    )


def remember_probe(key: ProbeKey, probe: Probe, where: Store | None = None) -> bool:
    entry = {"dtypes": dict(probe.dtypes), "ratio": dict(probe.ratio), "seconds": probe.seconds}
    return (where or store("probes")).update(_key("probe", *key), lambda _: entry)


# --- trials of a model's layers


def trial(machine: str, work: str, where: Store | None = None) -> Trial | None:
    """What was tried on this machine (a fingerprint) for this work (shapes and dtype), if it is remembered."""
    entry = (where or store("trials")).read().get(_key("trial", machine, work))
    try:
        return from_json(Trial, entry)
    except BadFile:
        return None


def side_by_side(machine: str, work: str, where: Store | None = None) -> Mapping[str, float]:
    """UNet calls a second of several processes on this CPU, by how its threads are divided among them."""
    entry = (where or store("trials")).read().get(_key("side-by-side", machine, work))
    found = entry if isinstance(entry, Mapping) else {}
    return {str(division): rate for division, calls in found.items() if (rate := _rate(calls))}


def remember_side_by_side(machine: str, work: str, calls: Mapping[str, float], where: Store | None = None) -> bool:
    return (where or store("trials")).update(_key("side-by-side", machine, work), lambda _: dict(calls))


def remember_trial(machine: str, work: str, found: Trial, where: Store | None = None) -> bool:
    return (where or store("trials")).update(_key("trial", machine, work), lambda _: to_json(found))
