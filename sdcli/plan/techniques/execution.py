"""execution: how the layers of UNet and VAE are computed: one by one as diffusers has them, the UNet's launched all at
once as a CUDA graph, packed for a CPU, by OpenVINO, or with the UNet's blocks compiled by torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sdcli.machine.hardware import Hardware, Trial
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.attention import SLICED
from sdcli.plan.techniques.placement import PARKED_ON_HOST, STAYS
from sdcli.plan.techniques.technique import NOISE, Situation, Technique, gib

NOT_INSTALLED = "the package openvino is not installed"
PACKS_BF16 = ("avx512", "amx", "neon_bf16")  # torch refuses to on other CPUs
NEEDED = {"cpu": "a C++ compiler", "cuda": "the package triton and a C compiler"}  # by torch.compile, by backend


def slowdown(setup: Setup, hardware: Hardware) -> float:
    """Time of the UNet relative to diffusers' layers with fused attention, as tried here; else 1."""
    if setup.attention == "sliced":
        return SLICED
    trial = _trial(setup, hardware)
    if trial is None:
        return 1.0
    attention, layers = trial.attention.get("fused", 0.0), trial.execution["eager"]
    ratios = _faster(trial.attention, setup.attention, "fused"), _faster(trial.execution, setup.execution, "eager")
    return (attention * ratios[0] + layers * ratios[1]) / (attention + layers)


def _faster(seconds: Mapping[str, float], choice: str, usual: str) -> float:
    ratio = seconds[choice] / seconds[usual] if choice in seconds and usual in seconds else 1.0
    return 1.0 if NOISE < ratio < 1.0 else ratio


def _trial(setup: Setup, hardware: Hardware) -> Trial | None:
    trial = hardware.tried(setup.dtype)
    return trial if trial is not None and "eager" in trial.execution else None


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    if setup.execution == "eager":
        return None
    if model.sees_references and setup.execution in ("compile", "openvino"):
        return _REFERENCES[setup.execution]
    if model.refiner is not None and setup.execution != "packed":
        return f"execution={setup.execution} prepares one UNet, and a refiner has another"
    if setup.execution == "compile":
        return _compile(setup, hardware)
    if model.nets and setup.execution == "openvino":
        return "what ControlNets add to the UNet is not part of what was converted"
    if setup.execution == "graph":
        return _graph(setup, hardware)
    if hardware.kind != "cpu":
        return _FOR_CPUS[setup.execution]
    if setup.execution == "openvino":
        return _openvino(setup, hardware)
    if setup.attention == "sliced":
        return "packed layers compute attention fused or in blocks, not sliced"
    if setup.dtype == "bf16" and not any(name in hardware.isa for name in PACKS_BF16):
        return "packed layers in bf16 need a CPU with AVX-512, or an ARM one with bf16"
    trial = hardware.tried(setup.dtype)
    if trial is not None and not trial.execution:
        return f"this build of torch cannot pack layers in {setup.dtype} on this CPU"
    return None


_REFERENCES = {
    "compile": "every block attends to reference images in a way of its own, so each would be compiled by itself",
    "openvino": "attention to reference images is not part of what was converted",
}
_FOR_CPUS = {"packed": "packed layers are for CPUs", "openvino": "OpenVINO is used for CPUs only"}


def _graph(setup: Setup, hardware: Hardware) -> str | None:
    if hardware.backend != "cuda":
        return "CUDA graphs are for NVIDIA GPUs; their like on other devices was never tried"
    if setup.placement not in STAYS:
        return "a CUDA graph reads the UNet's weights where they were when it was captured, so they have to stay there"
    if setup.storage == "fp8":
        return "fp8 weights are widened into other memory in every call, and a CUDA graph reads the same each time"
    return None


def _openvino(setup: Setup, hardware: Hardware) -> str | None:
    if not hardware.openvino:
        return NOT_INSTALLED
    if setup.attention != "fused":
        return "OpenVINO has its own attention: it goes with attention=fused"
    if setup.storage != "same":
        return "OpenVINO keeps weights in the dtype they compute in"
    return None


def _compile(setup: Setup, hardware: Hardware) -> str | None:
    if hardware.backend not in NEEDED:
        return "torch.compile is used on CPUs and NVIDIA's GPUs only"
    if not hardware.compiler:
        return f"torch.compile needs {NEEDED[hardware.backend]}, not found here"
    if setup.attention != "fused":
        return "compiled blocks compute attention fused"
    if setup.storage != "same" or setup.placement in PARKED_ON_HOST:
        return "compiled blocks need their weights as they are, on the device"
    return None


def layer_by_layer(setup: Setup) -> Setup:
    """What to draw with where compiling or capturing failed: it works everywhere."""
    return replace(setup, execution="eager")


def because(setup: Setup, situation: Situation) -> str:
    measured = situation.compiling(setup)
    if setup.execution == "compile":
        return f"compile: {measured or 'sdcli bench --sweep compile=off,on measures what it saves'}"
    how = _because(setup, situation)
    return f"{how}; compile: {measured}" if measured else how


def _because(setup: Setup, situation: Situation) -> str:
    if situation.hardware.kind != "cpu":
        return _on_a_gpu(setup, situation)
    if setup.execution == "openvino":
        return "openvino (pinned): OpenVINO computes UNet and VAE, converted once for this model"
    trial = _trial(setup, situation.hardware)
    if trial is None:
        return f"{setup.execution}: not tried on this machine yet; generate does so once"
    ratio = trial.execution["packed"] / trial.execution["eager"]
    return f"{setup.execution}: tried here, packed layers take {ratio:.2f} times as long as diffusers'"


def _on_a_gpu(setup: Setup, situation: Situation) -> str:
    if setup.execution == "graph":
        return "a CUDA graph: the UNet's layers are launched together, not one by one"
    device, host = situation.lacking("execution", "graph") or (0, 0)
    if device or host:
        return f"eager: the memory of a CUDA graph is {gib(device or host)} more than the budget"
    return "eager: starts at once"


TECHNIQUE = Technique(
    slot="execution",
    choices=("eager", "graph", "packed", "openvino", "compile"),
    without="eager",
    illegal=illegal,
    beside=frozenset({"dtype", "storage", "placement", "attention"}),
    because=because,
    phrases={"graph": "CUDA graph", "openvino": "OpenVINO", "compile": "blocks compiled"},
    by_pin=frozenset({"openvino", "compile"}),  # compile also where it is known to save time: forecast.py
    alike=frozenset({"eager", "graph"}),
)
