"""What is told of a job: how far it is, what it needs, what came of it."""

from __future__ import annotations

import base64
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from sdcli import __version__
from sdcli.events import Preview
from sdcli.machine import survey
from sdcli.machine.environment import environment
from sdcli.machine.hardware import Hardware
from sdcli.plan.plan import Plan
from sdcli.request import samplers
from sdcli.request.request import Job
from sdcli.serve.bounds import PROMPT
from sdcli.serve.desk import Desk
from sdcli.serve.openai_errors import described
from sdcli.serve.results import url_of
from sdcli.serve.service import Service, belongs
from sdcli.serve.ticket import Drawn, Ticket

PREVIEW_QUALITY = 85  # of 100


def short(service: Service, ticket: Ticket) -> dict[str, Any]:
    return {
        "id": ticket.id, "status": ticket.state, "position": position(service, ticket), "eta": eta(service, ticket),
    }  # fmt: skip


def whole(service: Service, ticket: Ticket) -> dict[str, Any]:
    step, of = ticket.step
    return {
        **short(service, ticket),
        "created": ticket.created,
        "count": len(ticket.plan.jobs),
        "step": {"step": step, "of": of} if of else None,
        "settings": asked_for(ticket.plan),
        "images": [image(ticket, drawn) for drawn in list(ticket.images)],
        "error": None if ticket.error is None else described(ticket.error),
        "plan": plan_json(ticket.plan),
        "memory": memory(ticket),
        "seconds": ticket.seconds,
    }


def image(ticket: Ticket, drawn: Drawn) -> dict[str, Any]:
    return {
        "index": drawn.index, "url": url_of(ticket, drawn), "file": drawn.file, "format": drawn.format,
        "bytes": drawn.bytes, "width": drawn.width, "height": drawn.height, "status": drawn.status,
        "sha256": drawn.file_sha256, "settings": settings(ticket.plan, drawn.job),
    }  # fmt: skip


# --- settings, by the names that a request may use


def asked_for(plan: Plan) -> dict[str, Any]:
    """Of all images together."""
    first = settings(plan, plan.jobs[0])
    seeds = list(dict.fromkeys(job.seed for job in plan.jobs))
    prompts = list(dict.fromkeys(job.prompt for job in plan.jobs))
    more: dict[str, Any] = {"prompts": prompts} if len(prompts) > 1 else {"prompt": prompts[0]}
    more |= {"seed": seeds[0], "num_images": len(seeds)} if seeds == _counted(seeds) else {"seeds": seeds}
    return {**{name: value for name, value in first.items() if name not in ("prompt", "seed")}, **more}


def _counted(seeds: list[int]) -> list[int]:
    return list(range(seeds[0], seeds[0] + len(seeds)))


def settings(plan: Plan, job: Job) -> dict[str, Any]:
    """Of one image; what is as it would be anyway is left out, but for what everybody looks for."""
    found: dict[str, Any] = {
        "prompt": job.prompt, "negative_prompt": job.negative_prompt, "model": plan.model.name, "seed": job.seed,
        "steps": job.steps, "guidance": job.guidance, "width": job.width, "height": job.height,
        "sampler": job.sampler,
    }  # fmt: skip
    found |= {"clip_skip": job.clip_skip} if job.clip_skip != 1 else {}
    found |= {"emphasis": job.emphasis} if job.emphasis != "a1111" else {}
    found |= {"rng": job.rng} if job.rng != "cpu" else {}
    loras = [f"{one.name}:{one.scale:g}" for one in plan.setup.adapters if one.kind == "lora"]
    found |= {"lora": loras} if loras else {}
    if job.second is not None:
        found |= {
            "hires": job.second.scale, "hires_steps": job.second.steps, "hires_strength": job.second.strength,
            "upscaler": job.second.upscaler,
        }  # fmt: skip
    if job.start is not None:
        repaint = job.start.repaint
        found |= {"strength": job.start.strength, "image": job.start.image.sha256}
        found |= {"mask": repaint.mask.sha256} if repaint is not None and repaint.mask is not None else {}
    return found


# --- the plan, in a few lines


def plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model.name,
        "device": {"kind": plan.hardware.kind, "name": plan.hardware.name},
        "predicted": _peaks(plan.footprint.device_peak, plan.footprint.host_peak),
        "available": _peaks(plan.budget.device, plan.budget.host),
        "measured_before": plan.footprint.runs,
        "seconds": None if plan.seconds is None else plan.seconds.total,
        "decisions": [
            {"slot": one.slot, "choice": one.choice, "because": one.because} for one in plan.decisions
        ],
        "workers": [
            {
                "device": one.name, "kind": one.hardware.kind, "name": one.hardware.name,
                "predicted": _peaks(one.footprint.device_peak, one.footprint.host_peak),
                "available": _peaks(one.budget.device, one.budget.host),
            }
            for one in plan.workers
        ],
        "warnings": [one.message for one in plan.warnings],
    }  # fmt: skip


def memory(ticket: Ticket) -> dict[str, Any]:
    """Bytes as predicted, and as measured once it is over. On a CPU the device's memory is the host's."""
    footprint = ticket.plan.footprint
    measured = ticket.report.get("memory", {}).get("measured", {})
    on_device = measured.get("reserved_peak") or measured.get("allocated_peak")
    on_host = measured.get("host_peak")
    return {
        "predicted": _peaks(footprint.device_peak, footprint.host_peak),
        "measured": _peaks(on_host if ticket.plan.hardware.kind == "cpu" else on_device, on_host),
        "beside": ticket.report.get("memory", {}).get("beside"),
    }


def _peaks(device: int | None, host: int | None) -> dict[str, int | None]:
    return {"device": device, "host": host}


# --- the queue


def position(service: Service, ticket: Ticket) -> int | None:
    """Requests that are drawn before it, those being drawn included; None once it is over."""
    if ticket.over:
        return None
    ahead = service.line.ahead_of(ticket)
    return 0 if ahead is None else ahead + len(service.drawing)


def eta(service: Service, ticket: Ticket) -> float | None:
    """Seconds until it is over, where all that is drawn before was drawn here before; else None."""
    if ticket.over:
        return None
    drawing, waiting = service.drawing, service.line.waiting()
    if ticket not in waiting:
        return _left(service, ticket)
    before = waiting[: waiting.index(ticket)]
    each = [_left(service, one) for one in (*drawing, *before, ticket)]
    return _end(len(service.desks), [one for one in each if one is not None]) if None not in each else None


def _end(desks: int, each: list[float]) -> float:
    """Seconds until the last of these is over, each of which begins as soon as a desk is free."""
    ends = [0.0] * desks
    for seconds in each:
        end = heappop(ends) + seconds
        heappush(ends, end)
    return end


def _left(service: Service, ticket: Ticket) -> float | None:
    """What is left of the seconds that it took before. A model that is held is not loaded again."""
    seconds, jobs, images = ticket.plan.seconds, ticket.plan.jobs, list(ticket.images)
    if seconds is None:
        return None
    done = sum(drawn.job.all_calls for drawn in images) + sum(one.step for one in ticket.steps.values())
    share = max(0.0, 1 - done / sum(job.all_calls for job in jobs))
    held = any(ticket.plan.model.name in desk.worker.held for desk in service.desks)
    load = 0.0 if done or held else seconds.load
    return load + share * max(0.0, seconds.total - seconds.load)


# --- the server


def status(service: Service, key: str) -> dict[str, Any]:
    """The job that is drawn is named to whoever may look at it."""
    seen = survey.look()
    hardware = [survey.choose(desk.device, seen) for desk in service.desks]
    around = environment(hardware[0])
    drawing = [ticket.id for ticket in service.drawing if belongs(ticket, key)]
    bounds = service.settings.bounds
    return {
        "version": __version__,
        "versions": {name: around[name] for name in ("python", "torch", "diffusers", "transformers")},
        "started": service.started,
        "devices": [_device(*both) for both in zip(service.desks, hardware, strict=True)],
        "model": _name(service.default_model()),
        "queue": {
            "drawing": drawing,
            "requests": len(service.line.waiting()), "images": service.line.images,
            "most_images": service.line.room.images,
        },
        "drawn": service.drawn,
        "most": {
            "images": bounds.images, "steps": bounds.steps, "width": bounds.width, "height": bounds.height,
            "prompt": PROMPT,
        },
        "samplers": [sampler.name for sampler in samplers.SAMPLERS],
    }  # fmt: skip


def _device(desk: Desk, hardware: Hardware) -> dict[str, Any]:
    return {
        "device": desk.name, "kind": hardware.kind, "name": hardware.name, "total": hardware.total,
        "free": hardware.free, "draws": desk.drawing is not None,
        "holds": list(reversed(desk.worker.held)),  # the one drawn with last first
    }  # fmt: skip


def _name(model: str) -> str:
    """Of a folder or a file on this machine, where the server was started with one, its last part."""
    return Path(model).name if Path(model).exists() else model


def preview(event: Preview) -> dict[str, Any]:
    """An eighth of the image's size, as a JPEG."""
    from PIL import Image

    from sdcli.record.encode import saved

    rough = Image.frombytes("RGB", (event.width, event.height), event.pixels)
    content = base64.b64encode(saved(rough, "JPEG", quality=PREVIEW_QUALITY)).decode()
    return {
        "event": "preview", "batch": event.batch, "index": event.index, "step": event.step, "width": event.width,
        "height": event.height, "image": f"data:image/jpeg;base64,{content}",
    }  # fmt: skip
