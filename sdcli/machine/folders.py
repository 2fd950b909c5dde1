"""Where sdcli keeps its settings, cache and state. Asking creates nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def config_folder(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Holds config.toml."""
    return _folder("config", environment, platform)


def config_file() -> Path:
    return config_folder() / "config.toml"


def cache_folder(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Holds what can be rebuilt."""
    return _folder("cache", environment, platform)


def state_folder(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Holds what was measured here, and the records of runs whose images went to a single file."""
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
    home = environment.get("SDCLI_HOME", "").strip()
    if home:
        return Path(os.path.expanduser(home)).absolute() / kind
    if platform == "win32":
        name, default = _WINDOWS[kind]
        folder = Path(environment.get(name) or _home(environment, platform) / default) / "sdcli"
        return folder / kind if kind != "config" else folder  # cache and state share LOCALAPPDATA
    if platform == "darwin":
        folder = _home(environment, platform) / "Library" / _MAC[kind] / "sdcli"
        return folder / kind if kind == "state" else folder
    name, default = _XDG[kind]
    named = environment.get(name, "")
    # The standard says that a relative path there must be ignored.
    return (Path(named) if named.startswith("/") else _home(environment, platform) / default) / "sdcli"


def _home(environment: Mapping[str, str], platform: str) -> Path:
    """HOME, unless it is empty or relative: settings must not depend on the current folder."""
    named = environment.get("HOME") or environment.get("USERPROFILE")
    if named and (platform == "win32" or Path(named).is_absolute()):
        return Path(named)
    try:
        return _home_of_user()
    except (RuntimeError, KeyError):
        # A user without a home (some containers): nothing can be read or written there.
        return Path(os.devnull)


def _home_of_user() -> Path:
    """As the system knows it, whatever HOME says."""
    try:
        import pwd  # on POSIX alone
    except ImportError:
        return Path.home()
    return Path(pwd.getpwuid(os.getuid()).pw_dir)
