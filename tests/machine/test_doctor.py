"""doctor: what it finds, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nvml_by_hand
import pytest
from machines import CPU_TORCH, CUDA_TORCH, gpu, machine

from sdcli import schema
from sdcli.cli import doctor
from sdcli.machine.hardware import Probe
from sdcli.machine.nvml import Nvidia
from sdcli.machine.packages import Torch
from sdcli.machine.survey import Survey
from sdcli.terminal import cells

REPOSITORY = Path(__file__).resolve().parents[2]


def _screen(seen: Survey) -> str:
    return "\n".join(doctor.screen(doctor.examine(seen=seen)))


def _codes(seen: Survey) -> list[str]:
    return [problem.code for problem in doctor.examine(seen=seen).diagnosis.problems]


def _exit(seen: Survey) -> int:
    return doctor.exit_code(doctor.examine(seen=seen).diagnosis)


def test_a_gpu_that_torch_cannot_use_is_a_problem_with_the_line_that_mends_it() -> None:
    seen = machine(gpu(), torch=CPU_TORCH)
    text = _screen(seen)
    assert "GPU      RTX 4060, 8.0 GiB, 7.0 free, driver 581.42" in text and "✗ torch can't use" in text
    assert "torch 2.13.0+cpu is a CPU build" in text
    assert "-m pip install torch==2.13.0+cu130" in text
    assert text.endswith("1 problem. Running on the CPU only. (exit 8)")
    assert _exit(seen) == 8


def test_a_gpu_that_works_is_no_problem_and_ends_with_0() -> None:
    seen = machine(gpu())
    text = _screen(seen)
    assert "✓ cuda:0" in text and text.endswith("No problems.") and _exit(seen) == 0


def test_a_machine_without_a_gpu_has_no_problem() -> None:
    assert _exit(machine(torch=CPU_TORCH)) == 0
    assert "none found; using the CPU" in _screen(machine(torch=CPU_TORCH))


def test_one_gpu_that_works_beside_one_that_does_not_is_no_problem() -> None:
    seen = machine(gpu("NVIDIA GeForce GTX 1080", capability="6.1"), gpu(index=1))
    text = _screen(seen)
    assert "✗ torch can't use" in text and "✓ cuda:1" in text and _exit(seen) == 0


def test_gpus_that_were_hidden_are_said_to_be_hidden() -> None:
    seen = machine(gpu(), environment={"CUDA_VISIBLE_DEVICES": "-1"})
    assert "hidden by CUDA_VISIBLE_DEVICES" in _screen(seen) and _exit(seen) == 0


def test_a_broken_driver_is_a_problem_with_a_way_out() -> None:
    seen = machine(nvidia=Nvidia(reason="the GPU was lost: restart the machine", broken=True))
    text = _screen(seen)
    assert "restart the machine" in text and "driver" in text and _exit(seen) == 8


def test_a_build_for_amd_is_named() -> None:
    text = _screen(machine(torch=Torch(version="2.13.0+rocm7.2", hip="7.2")))
    assert "torch 2.13.0+rocm7.2 is for AMD GPUs" in text


def test_without_torch_nothing_can_be_drawn() -> None:
    seen = machine(torch=None)
    assert _codes(seen) == ["no-torch"] and _exit(seen) == 8
    assert "CPU only" not in _screen(seen)


def test_a_gtx_1660_gets_its_note() -> None:
    assert "--dtype fp32" in _screen(machine(gpu("NVIDIA GeForce GTX 1660", capability="7.5")))


def test_bf16_on_the_cpu_is_told_by_instructions_until_it_was_probed() -> None:
    seen = machine(torch=CPU_TORCH, isa="avx512_bf16")
    assert "bf16 ✓ (avx512_bf16), not tested yet" in _screen(seen)
    assert "bf16 ✗ not supported by avx2" in _screen(machine(torch=CPU_TORCH))
    key = ("Ryzen 5 5600", "avx512_bf16", "2.13.0+cpu")
    slow = Probe(dtypes={"bf16": "unavailable"}, ratio={"bf16": 3.0}, seconds=0.8)
    seen = machine(torch=CPU_TORCH, isa="avx512_bf16", probes={key: slow})
    assert "bf16 ✗ 3.0× slower than fp32 here (tested for 0.8 s)" in _screen(seen)
    fast = Probe(dtypes={"bf16": "probed"}, ratio={"bf16": 0.5}, seconds=0.8)
    seen = machine(torch=CPU_TORCH, isa="avx512_bf16", probes={key: fast})
    assert "bf16 ✓ 2.0× faster than fp32 here (tested for 0.8 s)" in _screen(seen)


def test_the_models_line_follows_the_cache(own_folders: Path) -> None:
    assert "sd15 – 2.13 GB   sdxl – 6.94 GB" in _screen(machine())
    report = doctor.examine(seen=machine()).diagnosis
    assert [(model.name, model.ready) for model in report.models][1:] == [("sd15", False), ("sdxl", False)]


def test_a_full_disk_is_a_problem_that_does_not_say_the_gpu_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.memory, "disk_free", lambda path: 41_000_000)
    seen = machine(gpu())
    assert _codes(seen) == ["disk-full", "disk-full"] and _exit(seen) == 0
    assert "41 MB free for images" in _screen(seen)


def test_versions_below_the_floor_and_missing_ones_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    found = (
        doctor.Version(name="torch", version="2.13.0"),
        doctor.Version(name="diffusers", version="0.30.0"),
        doctor.Version(name="transformers", version=""),
    )
    monkeypatch.setattr(doctor.packages, "versions", lambda: found)
    problems = doctor.examine(seen=machine()).diagnosis.problems
    assert [problem.message for problem in problems] == [
        "diffusers 0.30.0 is older than 0.42, the oldest tested version",
        "transformers is not installed",
    ]
    assert all("pip install" in problem.hint for problem in problems)
    assert "not the tested set" in _screen(machine())


def test_the_json_has_its_keys_and_an_unusable_gpu_says_so_in_its_dtypes() -> None:
    data = schema.to_json(doctor.examine(seen=machine(gpu(), torch=CPU_TORCH)).diagnosis)
    assert {"schema", "devices", "versions", "problems"} <= set(data) and data["schema"] == "sdcli.doctor/1"
    assert [device["device"] for device in data["devices"]] == ["cpu", "cuda:0"]
    assert set(data["devices"][1]["dtypes"].values()) == {"unavailable"}
    assert set(data["versions"][0]) == {"name", "version", "known_bad"}
    assert set(data["problems"][0]) == {"code", "message", "hint"}
    json.dumps(data, allow_nan=False)


def test_everything_but_lines_to_paste_fits_80_columns_and_names_have_no_power() -> None:
    seen = machine(gpu("NVIDIA \x1b[31mGeForce"), torch=CUDA_TORCH)
    for line in doctor.screen(doctor.examine(seen=seen)):
        assert "\x1b" not in line
        if not line.startswith(("config", "disk")):  # these hold paths
            assert cells(line) <= 80, line


def test_a_hub_that_is_no_web_address_is_not_asked() -> None:
    assert doctor.reach("file:///etc/passwd") == (False, "HF_ENDPOINT is not a web address: file:///etc/passwd")


def test_a_hub_that_does_not_answer_is_said_to(own_folders: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reachable, words = doctor.reach(f"http://127.0.0.1:{port}")
    assert not reachable and "does not answer" in words


def test_a_hub_that_was_to_be_tried_and_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc/passwd")
    found = doctor.examine(network=True, seen=machine(torch=CPU_TORCH))
    assert [problem.code for problem in found.diagnosis.problems] == ["network"]
    assert doctor.exit_code(found.diagnosis) == 3 and doctor.screen(found)[-1] == "1 problem. (exit 3)"
    assert _exit(machine(torch=CPU_TORCH)) == 0  # unasked


def test_settings_that_are_wrong_are_a_problem(own_folders: Path) -> None:
    (own_folders / "config").mkdir()
    (own_folders / "config" / "config.toml").write_text("garbage = = 3\n")
    text = _screen(machine(torch=CPU_TORCH))
    assert "config.toml:1:" in text and text.endswith("1 problem. (exit 2)")
    assert _exit(machine(torch=CPU_TORCH)) == 2 and _exit(machine(gpu(), torch=CPU_TORCH)) == 8


def test_a_hub_that_answers_is_timed_and_one_that_refuses_is_quoted() -> None:
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            assert doctor.reach(address)[0]
            assert doctor.reach(address + "/down") == (False, f"{address}/down answers with error 503")
        finally:
            server.shutdown()
            thread.join()


# --- the command itself


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sdcli", *words],
        cwd=REPOSITORY, env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment}, capture_output=True,
        text=True, encoding="utf-8", check=False,
    )  # fmt: skip


def test_the_command_prints_one_object_with_json() -> None:
    done = _run("doctor", "--json")
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    data = json.loads(done.stdout)
    assert data["schema"] == "sdcli.doctor/1" and data["network"] is None
    assert done.returncode == (8 if any(p["code"] in doctor.GPU_CODES for p in data["problems"]) else 0)


def test_doctor_imports_nothing_heavy_and_makes_no_folder(own_folders: Path) -> None:
    code = (
        "import sys, typer\nfrom sdcli.cli import doctor\n"
        "try: doctor._doctor({'json': True})\nexcept typer.Exit: pass\n"
        "print([name for name in ('torch', 'numpy', 'diffusers', 'transformers', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert list(own_folders.iterdir()) == []


@pytest.mark.system
@pytest.mark.skipif(nvml_by_hand.compiler() is None or sys.platform != "linux", reason="no C compiler")
def test_a_real_driver_library_with_a_torch_for_cpus_ends_with_8(tmp_path: Path) -> None:
    from sdcli.machine import packages

    torch = packages.torch_build()
    if torch is None or torch.cuda:
        pytest.skip("this torch is no CPU build")
    nvml_by_hand.compiled(tmp_path)
    done = _run("doctor", LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 8
    assert "RTX 4060, 8.0 GiB, 7.0 free, driver 581.42" in done.stdout and "is a CPU build" in done.stdout
    hidden = _run("doctor", LD_LIBRARY_PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert hidden.returncode == 0 and "hidden by CUDA_VISIBLE_DEVICES" in hidden.stdout
