"""Folders that stay: on every system where its people look for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sdcli.machine.folders import cache_folder, config_folder, state_folder

FOLDERS = (config_folder, cache_folder, state_folder)


def _all(platform: str, **environment: str) -> list[str]:
    return [folder(environment, platform).as_posix() for folder in FOLDERS]


def test_linux_keeps_to_the_xdg_folders() -> None:
    assert _all("linux", HOME="/home/a") == [
        "/home/a/.config/sdcli",
        "/home/a/.cache/sdcli",
        "/home/a/.local/state/sdcli",
    ]
    named = {"XDG_CONFIG_HOME": "/c", "XDG_CACHE_HOME": "/k", "XDG_STATE_HOME": "/s", "HOME": "/home/a"}
    assert _all("linux", **named) == ["/c/sdcli", "/k/sdcli", "/s/sdcli"]


def test_a_relative_xdg_path_is_ignored_as_the_standard_says() -> None:
    assert _all("linux", HOME="/home/a", XDG_CONFIG_HOME="x/y")[0] == "/home/a/.config/sdcli"


def test_macos_and_windows_have_their_own_places() -> None:
    assert _all("darwin", HOME="/Users/a") == [
        "/Users/a/Library/Application Support/sdcli",
        "/Users/a/Library/Caches/sdcli",
        "/Users/a/Library/Application Support/sdcli/state",
    ]
    windows = _all("win32", APPDATA="C:/Users/a/Roaming", LOCALAPPDATA="C:/Users/a/Local")
    assert windows == [
        "C:/Users/a/Roaming/sdcli",
        "C:/Users/a/Local/sdcli/cache",
        "C:/Users/a/Local/sdcli/state",
    ]
    assert _all("win32", USERPROFILE="C:/Users/a")[0] == "C:/Users/a/AppData/Roaming/sdcli"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_sdcli_home_holds_all_three_apart_on_every_system(platform: str, tmp_path: Path) -> None:
    found = _all(platform, SDCLI_HOME=str(tmp_path), HOME="/home/a", APPDATA="C:/x")
    assert found == [f"{tmp_path.as_posix()}/{name}" for name in ("config", "cache", "state")]


def test_asking_creates_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for folder in FOLDERS:
        folder({"SDCLI_HOME": str(home)})
    assert not home.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the system's own list of users is POSIX'")
@pytest.mark.parametrize("home", ["", "relative", "./x"])
def test_a_home_that_is_empty_or_relative_is_the_one_the_system_knows(home: str) -> None:
    import pwd

    known = pwd.getpwuid(os.getuid()).pw_dir
    assert _all("linux", HOME=home)[0] == f"{known}/.config/sdcli"
    assert _all("darwin", HOME=home)[1] == f"{known}/Library/Caches/sdcli"
