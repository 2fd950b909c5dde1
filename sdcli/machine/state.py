"""Where sdcli keeps what stays (settings, cache, state), and what it remembers of this machine: peaks, seconds, probes,
the best rate seen. Asking creates nothing; a lost or damaged memory is an empty one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli import reading
from sdcli.files import REAL, replace_whole

if TYPE_CHECKING:
    from sdcli.machine.hardware import Hardware

# --- folders


def config_folder(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Holds config.toml."""
    return _folder("config", environment, platform)


def cache_folder(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Holds what can be made again."""
    return _folder("cache", environment, platform)


def state_folder(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Holds what was measured here, and the records of runs whose pictures went to a single file."""
    return _folder("state", environment, platform)


_XDG = {
    "config": ("XDG_CONFIG_HOME", ".config"),
    "cache": ("XDG_CACHE_HOME", ".cache"),
    "state": ("XDG_STATE_HOME", ".local/state"),
}
_MAC = {"config": "Application Support", "cache": "Caches", "state": "Application Support"}
_WINDOWS = {
    "config": ("APPDATA", "AppData/Roaming"),
    "cache": ("LOCALAPPDATA", "AppData/Local"),
    "state": ("LOCALAPPDATA", "AppData/Local"),
}


def _folder(kind: str, environment: Mapping[str, str] | None, platform: str) -> Path:
    environment = os.environ if environment is None else environment
    own = environment.get("SDCLI_HOME", "").strip()
    if own:
        return Path(own).expanduser().absolute() / kind
    if platform == "win32":
        name, default = _WINDOWS[kind]
        folder = Path(environment.get(name) or _home(environment, platform) / default) / "sdcli"
        return folder / kind if kind != "config" else folder  # cache and state share LOCALAPPDATA
    if platform == "darwin":
        folder = _home(environment, platform) / "Library" / _MAC[kind] / "sdcli"
        return folder / kind if kind == "state" else folder
    name, default = _XDG[kind]
    named = environment.get(name, "")
    # The standard says that a relative path there is to be ignored.
    return (Path(named) if named.startswith("/") else _home(environment, platform) / default) / "sdcli"


def _home(environment: Mapping[str, str], platform: str) -> Path:
    """HOME, unless it is empty or relative: settings in whatever folder one stands in, or in /, are nobody's."""
    named = environment.get("HOME") or environment.get("USERPROFILE")
    if named and (platform == "win32" or Path(named).is_absolute()):
        return Path(named)
    try:
        return _home_of_user()
    except (RuntimeError, KeyError):
        # A user without a home (some containers): nothing is found there, and nothing can be written.
        return Path(os.devnull)


def _home_of_user() -> Path:
    """What the system knows, whatever HOME says."""
    try:
        import pwd  # on POSIX alone
    except ImportError:
        return Path.home()
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


# --- a small file of memories

SCHEMA = "sdcli.state/1"


@dataclass(frozen=True)
class Store:
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
        a memory that is not kept is no reason to fail."""
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
            kept = {name: entries[name] for name in names}
            content = json.dumps({"schema": SCHEMA, "entries": kept}, allow_nan=False).encode()
            if len(content) <= self.most_bytes or not names:
                return content
            names = names[len(names) // 4 + 1 :]


class _Lock:
    """One writer at a time, so that no memory is lost. A lock that is not released is passed over: it only guards
    against forgetting, the file itself is replaced whole."""

    patience = 1.0  # seconds
    stale = 10.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = False

    def __enter__(self) -> None:
        end = time.monotonic() + self.patience
        while True:
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                self.held = True
                return
            except (FileExistsError, PermissionError) as error:
                if isinstance(error, PermissionError) and os.name != "nt":
                    raise  # on Windows a lock that is just being removed answers so
            if self._is_stale():
                self.path.unlink(missing_ok=True)
            elif time.monotonic() > end:
                return
            else:
                time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        if self.held:
            self.path.unlink(missing_ok=True)

    def _is_stale(self) -> bool:
        try:
            return time.time() - self.path.stat().st_mtime > self.stale
        except OSError:
            return False


def store(name: str = "measured") -> Store:
    """`measured` for runs and rates, `probes` for probes: a long sweep must not push the probes out."""
    return Store(state_folder() / f"{name}.json")


# --- measures


def fingerprint(hardware: Hardware, versions: Mapping[str, str] | None = None) -> str:
    """Equal where measures may be compared: the same device, host and software."""
    parts = [
        hardware.kind, hardware.name, hardware.capability or "", str(hardware.total >> 20), hardware.isa,
        str(hardware.threads), str(hardware.ram_total >> 20),
    ]  # fmt: skip
    parts += [f"{name} {version}" for name, version in sorted((versions or {}).items())]
    return " | ".join(parts)


def remembered(machine: str, where: Store | None = None) -> Mapping[str, Any]:
    """Everything remembered of runs on this machine (a fingerprint), by the plan's key of the way."""
    start = _key("run", machine, "")
    entries = (where or store()).read()
    return {name[len(start) :]: value for name, value in entries.items() if name.startswith(start)}


def remember_run(machine: str, way: str, merge: Callable[[Any], Any], where: Store | None = None) -> bool:
    """Remember one more run of `way`: `merge` makes the new entry from the old one, or from None."""
    return (where or store()).update(_key("run", machine, way), merge)


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
    return "\n".join(parts)  # no part holds a line end, so no two keys are alike


# --- probes


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a short test of a device found: the dtypes that are right and worth using there."""

    dtypes: Mapping[str, str] = field(default_factory=dict)  # name → probed | unavailable
    ratio: Mapping[str, float] = field(default_factory=dict)  # name → time relative to fp32
    seconds: float = 0.0  # the probe itself took


def remembered_probe(name: str, detail: str, torch: str, where: Store | None = None) -> Probe | None:
    """By device name, detail (ISA of a CPU, driver of a GPU) and version of torch: any of them changes the answer."""
    data = (where or store("probes")).read().get(_key("probe", name, detail, torch))
    if not isinstance(data, Mapping):
        return None
    dtypes, ratio, seconds = data.get("dtypes"), data.get("ratio"), _rate(data.get("seconds"))
    if not isinstance(dtypes, Mapping):
        return None
    return Probe(
        dtypes={str(k): v for k, v in dtypes.items() if v in ("probed", "unavailable")},
        ratio={str(k): rate for k, v in (ratio if isinstance(ratio, Mapping) else {}).items() if (rate := _rate(v))},
        seconds=seconds or 0.0,
    )


def remember_probe(name: str, detail: str, torch: str, probe: Probe, where: Store | None = None) -> bool:
    entry = {"dtypes": dict(probe.dtypes), "ratio": dict(probe.ratio), "seconds": probe.seconds}
    return (where or store("probes")).update(_key("probe", name, detail, torch), lambda _: entry)
