"""What stood around a measurement, and how far images are apart."""

from __future__ import annotations

import math
import os
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.bench import likeness, surroundings
from sdcli.machine import as_if, processor

PLACE = as_if.parse("cpu")


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_battery_being_emptied_and_a_governor_are_seen(tmp_path: Path) -> None:
    assert surroundings.on_battery(tmp_path) is None and surroundings.governor(tmp_path) is None
    put(tmp_path, "sys/class/power_supply/AC/online", "1\n")
    put(tmp_path, "sys/class/power_supply/BAT0/status", "Full\n")
    assert surroundings.on_battery(tmp_path) is False
    put(tmp_path, "sys/class/power_supply/BAT0/status", "Discharging\n")
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    assert surroundings.on_battery(tmp_path) is True and surroundings.governor(tmp_path) == "powersave"


def test_processor_time_is_the_one_of_the_cores_we_may_use(tmp_path: Path) -> None:
    assert surroundings.moment(tmp_path) is None
    rows = (
        "cpu  900 0 900 0 0 0 0 0 0 0",
        "cpu0 100 0 100 700 100 0 0 0 0 0",
        "cpu1 800 0 800 0 0 0 0 0 0 0",
        "intr 9",
    )
    put(tmp_path, "proc/stat", "\n".join(rows) + "\n")
    moment = surroundings.moment(tmp_path, frozenset({0}))
    assert moment is not None and moment.busy / moment.total == pytest.approx(0.2)
    both = surroundings.moment(tmp_path, frozenset({0, 1}))
    assert both is not None and both.busy / both.total == pytest.approx(1800 / 2600)
    assert surroundings.moment(tmp_path, frozenset({7})) is None


def test_clocks_and_heat_are_read_where_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "allowed_cores", lambda: frozenset({0, 1}))
    assert surroundings.clock(tmp_path) == surroundings.Clock()
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 2596.120\nprocessor\t: 1\ncpu MHz\t\t: 2601.5\n")
    assert surroundings.clock(tmp_path) == surroundings.Clock(mhz=2601)
    for number, khz, count in ((0, 4_100_000, 3), (1, 4_300_000, 4)):
        put(tmp_path, f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq", f"{khz}\n")
        put(tmp_path, f"sys/devices/system/cpu/cpu{number}/thermal_throttle/core_throttle_count", f"{count}\n")
    assert surroundings.clock(tmp_path) == surroundings.Clock(mhz=4300, slowed_down=7)


@pytest.mark.parametrize(
    ("mask", "reasons"),
    (
        ("0x0000000000000000", ()),
        ("0x0000000000000001", ()),  # idle
        ("0x0000000000000004", ("power cap",)),
        ("0x0000000000000060", ("heat", "heat (hardware)")),
        ("[N/A]", ()),
    ),
)
def test_a_gpu_says_why_it_was_throttled(mask: str, reasons: tuple[str, ...]) -> None:
    assert surroundings.throttled_by(mask) == reasons


def test_reasons_name_what_disturbed() -> None:
    watch = surroundings.Watch(PLACE)
    watch.load, watch.cores, watch.governor, watch.battery, watch.clocks = 0.1, 2, None, None, []
    assert watch.reasons() == ()
    watch.load = 3.0
    assert watch.reasons() == ("load 3.0 on 2 cores before the start",)
    watch.battery, watch.foreign, watch.observed = True, 2.0, 10.0
    watch.gpus = [surroundings.GpuState(others=1), surroundings.GpuState(throttled_by=("heat",))]
    watch.clocks = [surroundings.Clock(slowed_down=3), surroundings.Clock(slowed_down=5)]
    assert watch.reasons() == (
        "other programs took 20 % of the processor", "other programs used the GPU",
        "the GPU was throttled: heat", "heat slowed the processor down", "on battery",
    )  # fmt: skip


def test_a_measurement_just_over_does_not_make_the_next_one_contended() -> None:
    """The load of the last minute counts our own processes too; seconds taken by others are measured instead."""
    watch = surroundings.Watch(PLACE)
    watch.load, watch.governor, watch.battery, watch.foreign, watch.observed = 9.0, None, None, 0.1, 10.0
    assert watch.reasons() == ()


@pytest.mark.skipif(sys.platform == "win32", reason="a driver's tool as a shell script")
def test_a_card_is_asked_while_it_works_and_its_clock_counts_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    said = "1980, 2619, 61, 412.5, 0x0000000000000004"
    tool.write_text(f'#!/bin/sh\ncase "$*" in *compute-apps*) echo 7; echo 8;; *) echo "{said}";; esac')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    watch = surroundings.Watch(as_if.parse("cuda:8GiB"))
    watch.start([7, 8])
    with watch.looking():
        pass
    watch.stop()
    working, resting = watch.gpus
    assert working == surroundings.GpuState(
        clock_mhz=1980, memory_clock_mhz=2619, celsius=61, watts=412.5, throttled_by=("power cap",), others=0
    )
    assert (resting.clock_mhz, resting.throttled_by) == (None, ("power cap",))
    assert [clock.mhz for clock in watch.clocks][::2] == [None, None] and len(watch.clocks) == 3
    assert "the GPU was throttled: power cap" in watch.reasons()


@pytest.mark.parametrize(
    ("running", "own", "count"),
    (({7, 8}, {7, 8}, 0), ({7, 9}, {7}, 1), ({501, 502}, {7, 8}, 0), ({501, 502, 503}, {7}, 2), (set(), {7}, 0)),
)
def test_others_on_a_card_are_told_from_ours_also_within_a_container(
    running: set[int], own: set[int], count: int
) -> None:
    assert surroundings.others(running, own) == count


def test_machines_differ_by_device_and_memory_and_not_by_the_moment() -> None:
    assert surroundings.machine(PLACE) == surroundings.machine(replace(PLACE, free=1, ram_free=1))
    assert surroundings.machine(PLACE) != surroundings.machine(replace(PLACE, name="another"))


def test_provenance_holds_no_paths_and_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    facts = surroundings.provenance(PLACE, "abc", {"steps": "5"})
    assert {"cpu", "isa", "torch", "git", "load", "governor", "battery", "model_hash", "options"} <= set(facts)
    assert facts["variables"]["OMP_NUM_THREADS"] == "3" and "HOME" not in facts["variables"]
    assert str(Path.home()) not in str(facts).replace("/ ", "") or str(Path.home()) == "/"


def test_psnr_is_the_one_of_its_definition() -> None:
    assert likeness.psnr(bytes([10] * 300), bytes([11] * 300)) == pytest.approx(20 * math.log10(255))
    assert likeness.psnr(bytes(3), bytes(3)) == math.inf


@pytest.mark.parametrize(("step", "same_type", "lossy"), ((1, True, False), (6, True, True), (6, False, False)))
def test_images_are_lossy_where_rounding_does_not_explain_it(
    step: int, same_type: bool, lossy: bool, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    ours.write_bytes(bytes([100] * 300))
    theirs.write_bytes(bytes([100 + step] * 300))
    latents, others = tmp_path / "c", tmp_path / "d"
    latents.write_bytes(array("f", [1.0, 2.0]).tobytes())
    others.write_bytes(array("f", [1.5, 2.0]).tobytes())
    compared = likeness.compare(ours, theirs, latents, others, same_type=same_type)
    assert compared is not None
    assert (compared.identical, compared.lossy, compared.latent_mean_abs) == (False, lossy, pytest.approx(0.25))
    same = likeness.compare(ours, ours, None, None, same_type=True)
    assert same is not None and same.identical and same.psnr is None and not same.lossy
    theirs.write_bytes(b"short")
    assert likeness.compare(ours, theirs.rename(tmp_path / "e"), None, None, same_type=True) is None
