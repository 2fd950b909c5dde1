"""execution: how the UNet's layers are launched. Anything but eager is chosen only by pin."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique

# Time of the UNet relative to eager, after warm-up.
GRAPH = 0.85  # published: 18.3 ms a step eager on an H100 against 15.2 ms compiled, SD1.5; most of it is launches
COMPILE = {"cuda": 0.75, "cpu": 0.85}  # published 1.3-1.5 on CUDA; measured 3.0 s against 3.5 s on a 2-core Zen 5
OPENVINO = 0.57  # measured: 2.0 s a step against 3.3-3.8 s eager bf16


def slowdown(choice: str, hardware: Hardware) -> float:
    if choice == "compile":
        return COMPILE.get(hardware.kind, 1.0)
    return {"graph": GRAPH, "openvino": OPENVINO}.get(choice, 1.0)


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    choice = setup.execution
    if choice == "eager":
        return None
    if choice == "graph" and hardware.kind != "cuda":
        return "graphs are a feature of NVIDIA cards"
    if choice == "openvino" and hardware.kind != "cpu":
        return "OpenVINO runs on the CPU: add --device cpu"
    if choice == "compile" and hardware.kind == "mps":
        return "torch.compile is not dependable on a Mac's GPU"
    if choice not in hardware.executions:
        return f"{choice} is not part of this installation"
    return _clash(setup)


def _clash(setup: Setup) -> str | None:
    choice = setup.execution
    if choice == "graph" and setup.placement not in ("resident", "drop-encoders"):
        return "a captured graph needs the UNet's weights to stay where they are"
    if setup.placement == "group-offload":
        return f"{choice} cannot see weights that come and go layer by layer"
    if setup.storage == "fp8":
        return f"{choice} cannot see weights that are widened layer by layer"
    if setup.attention == "sliced":
        return f"{choice} with sliced attention is slower than without either"
    if choice == "openvino" and setup.attention == "blocked":
        return "OpenVINO has its own attention"
    return None


def because(setup: Setup, situation: Situation) -> str:
    if setup.execution == "eager":
        return "eager: starts at once"
    return f"{setup.execution}, as pinned: warm-up first, faster steps after"


TECHNIQUE = Technique(
    slot="execution",
    choices=("eager", "graph", "compile", "openvino"),
    without="eager",
    illegal=illegal,
    because=because,
    phrases={"graph": "as a graph", "compile": "compiled", "openvino": "OpenVINO"},
    by_pin=frozenset({"graph", "compile", "openvino"}),
)
