"""placement: where each component's weights are while another component works."""

from __future__ import annotations

from collections.abc import Sequence

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model, role
from sdcli.plan.plan import Setup
from sdcli.plan.stages import Stage, parts_ahead, parts_of
from sdcli.plan.techniques.technique import Situation, Technique, gib

# Assumed, none is published: the UNet is read only after encoding, so the two do not overlap.
DROPPING = 1.01
# Assumed: a streamed step takes up to a quarter longer than the slower of computing and moving.
STREAMING = 1.25
STAYS = ("resident", "drop-encoders")  # the UNet, on the device, from one call to the next image's
ENCODERS_LEAVE = ("drop-encoders", "disk")  # before the UNet is read
PARKED_ON_HOST = ("model-offload", "group-offload")  # the host keeps a copy of every weight, the device none
ONE_AT_A_TIME = ("model-offload", "disk")


def loaded(choice: str, stages: Sequence[Stage], stage: Stage, part: str) -> tuple[str, ...]:
    """The components loaded while `part` works in `stage`: what the plan counts and draw obeys."""
    if choice == "disk":
        return (part, *stage.beside)
    everything = parts_of(stages)
    if choice != "drop-encoders":
        return everything
    leaving = parts_ahead(stages)
    return tuple(name for name in everything if (name in leaving) == stage.ahead)


def streamed(choice: str, part: str) -> bool:
    """Whether a component's weights reach the device a layer at a time."""
    return choice == "group-offload" and role(part) not in ("vae", "upscaler")


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    if setup.placement in PARKED_ON_HOST and hardware.kind == "cpu":
        return "on a CPU the weights are in host memory already; there is nowhere to offload them to"
    if setup.placement in PARKED_ON_HOST and hardware.shares_memory:
        return f"{_shared(hardware)} and CPU share their memory; offloading frees nothing"
    return None


def _shared(hardware: Hardware) -> str:
    return "this Mac's GPU" if hardware.kind == "mps" else "this GPU"


def because(setup: Setup, situation: Situation) -> str:
    choice = setup.placement
    if choice == "resident":
        where = "in memory" if situation.hardware.kind == "cpu" else "on the GPU"
        return f"everything stays {where}: nothing to move between images"
    short = _short(setup, situation)
    if choice == "drop-encoders":
        return f"{short}; dropping the text encoders once the prompts are encoded costs nothing"
    if choice == "model-offload":
        return f"{short}; each part waits in host memory until it is needed"
    if choice == "disk":
        return f"{short}; each part is read from disk when needed, so memory holds only one at a time"
    return f"{short}; the UNet's layers are streamed from host memory while it computes"


def _short(setup: Setup, situation: Situation) -> str:
    """What the nearest faster placement lacks."""
    for faster in reversed(TECHNIQUE.choices[: TECHNIQUE.choices.index(setup.placement)]):
        device, host = situation.lacking("placement", faster) or (0, 0)
        if device:
            return f"{_CLAUSES[faster]} {gib(device)} more than the budget"
        if host:
            return f"{_CLAUSES[faster]} {gib(host)} more host memory than the budget"
    return "less memory than keeping everything loaded"


_CLAUSES = {
    "resident": "keeping everything loaded needs",
    "drop-encoders": "without the text encoders it still needs",
    "model-offload": "one part at a time needs",
    "group-offload": "streaming needs",
}

TECHNIQUE = Technique(
    slot="placement",
    choices=("resident", "drop-encoders", "model-offload", "group-offload", "disk"),
    without="resident",
    illegal=illegal,
    because=because,
    phrases={
        "resident": "all on the GPU",
        "drop-encoders": "encoders dropped after use",
        "model-offload": "one part on the GPU at a time",
        "group-offload": "streamed layer by layer",
        "disk": "one part at a time, from disk",
    },
    moves_pixels=False,
)
