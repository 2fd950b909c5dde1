"""What A1111 answers once something is drawn, and while it is."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdcli import __version__, events
from sdcli.errors import SdcliError
from sdcli.record.encode import saved
from sdcli.record.metadata import a1111, read
from sdcli.record.metadata.own import RecordedModel
from sdcli.request import samplers
from sdcli.request.request import Job
from sdcli.serve.sdapi_body import Body
from sdcli.serve.ticket import Drawn, Ticket

# The fields that an answer repeats. Whatever else a client sends, which may be a password, is nobody's business.
_REPEATED = (
    "prompt", "negative_prompt", "styles", "seed", "subseed", "subseed_strength", "seed_resize_from_h",
    "seed_resize_from_w", "sampler_name", "sampler_index", "scheduler", "batch_size", "n_iter", "steps", "cfg_scale",
    "width", "height", "restore_faces", "tiling", "do_not_save_samples", "do_not_save_grid", "eta",
    "denoising_strength", "s_churn", "s_tmax", "s_tmin", "s_noise", "s_min_uncond",
    "override_settings_restore_afterwards", "refiner_checkpoint", "refiner_switch_at", "enable_hr",
    "firstphase_width", "firstphase_height", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x",
    "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt",
    "resize_mode", "image_cfg_scale", "mask_blur", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding",
    "inpainting_mask_invert", "initial_noise_multiplier", "script_name", "send_images", "save_images",
)  # fmt: skip
_OVERRIDES = ("sd_model_checkpoint", "CLIP_stop_at_last_layers", "sd_vae", "samples_format", "randn_source", "emphasis")
_IMAGES = ("init_images", "mask")
_PLAIN = (str, int, float, bool, type(None))


def drawn(ticket: Ticket, body: Mapping[str, Any]) -> dict[str, Any]:
    images = sorted(ticket.images, key=lambda one: one.index)
    sent = [] if body.get("send_images") is False else [encoded(Path(one.path).read_bytes()) for one in images]
    return {"images": sent, "parameters": _parameters(body), "info": json.dumps(_info(ticket, images, body))}


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    repeated = {name: body[name] for name in _REPEATED if isinstance(body.get(name), _PLAIN) and name in body}
    override = body.get("override_settings")
    if isinstance(override, Mapping):
        kept = {name: override[name] for name in _OVERRIDES if isinstance(override.get(name, {}), _PLAIN)}
        repeated["override_settings"] = kept
    if "init_images" in body:
        keep = body.get("include_init_images") is True
        repeated |= {name: body.get(name) if keep else None for name in _IMAGES}
    return repeated


def _info(ticket: Ticket, images: Sequence[Drawn], body: Mapping[str, Any]) -> dict[str, Any]:
    """As A1111's Processed.js writes it."""
    plan, jobs = ticket.plan, [one.job for one in images]
    first, prompt = jobs[0], str(body.get("prompt") or "")
    recorded = RecordedModel(name=plan.model.name, revision=plan.model.revision, hash=plan.model.hash)
    texts = [a1111.write(a1111.infotext(job, plan.setup, recorded, __version__)) for job in jobs]
    vae = next((one for one in plan.setup.adapters if one.kind == "vae"), None)
    return {
        "prompt": prompt, "all_prompts": [prompt] * len(jobs), "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [job.negative_prompt for job in jobs], "seed": first.seed,
        "all_seeds": [job.seed for job in jobs], "subseed": -1, "all_subseeds": [-1] * len(jobs),
        "subseed_strength": 0, "width": first.width, "height": first.height,
        "sampler_name": samplers.find(first.sampler).a1111[0], "cfg_scale": first.guidance, "steps": first.steps,
        "batch_size": Body(body).whole("batch_size") or 1, "restore_faces": False, "face_restoration_model": None,
        "sd_model_name": plan.model.name, "sd_model_hash": plan.model.hash, "sd_vae_name": vae and vae.name,
        "sd_vae_hash": vae and vae.sha256[:10], "seed_resize_from_w": -1, "seed_resize_from_h": -1,
        "denoising_strength": _strength(first), "extra_generation_params": {}, "index_of_first_image": 0,
        "infotexts": texts, "styles": [], "job_timestamp": _timestamp(ticket), "clip_skip": first.clip_skip,
        "is_using_inpainting_conditioning": plan.model.sees_mask, "version": f"sdcli {__version__}",
        "interrupted": ticket.state == "cancelled",
    }  # fmt: skip


def _strength(job: Job) -> float | None:
    changed = job.second or job.start
    return changed.strength if changed else None


def _timestamp(ticket: Ticket) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(ticket.created))


# --- while it is drawn


def progress(ticket: Ticket | None, image: bool) -> dict[str, Any]:
    """Of this ticket; idle without one. `image`: with the last preview."""
    if ticket is None:
        return _progress(0.0, 0.0, None, None)
    share, seconds = _share(ticket)
    preview = ticket.preview if image else None
    return _progress(share, seconds, ticket, None if preview is None else _of_preview(preview))


def _progress(share: float, seconds: float, ticket: Ticket | None, image: str | None) -> dict[str, Any]:
    step, steps = ticket.step if ticket else (0, 0)
    count, done = (len(ticket.plan.jobs), len(ticket.images)) if ticket else (0, 0)
    state = {
        "skipped": False, "interrupted": bool(ticket and ticket.cancelled), "stopping_generation": False,
        "job": f"Batch {done + 1} out of {count}" if ticket else "", "job_count": count,
        "job_timestamp": _timestamp(ticket) if ticket else "0", "job_no": done, "sampling_step": step,
        "sampling_steps": steps,
    }  # fmt: skip
    return {"progress": share, "eta_relative": seconds, "state": state, "current_image": image, "textinfo": None}


def _share(ticket: Ticket) -> tuple[float, float]:
    """Of the UNet's calls in all passes of all images, and the seconds that the rest of them takes."""
    calls = sum(job.all_calls for job in ticket.plan.jobs)
    last = next((event for _, event in reversed(ticket.events) if isinstance(event, events.Step)), None)
    begun = ticket.steps.values()  # more than one where several devices draw
    done = sum(drawn.job.all_calls for drawn in list(ticket.images))
    done += sum(step.step + _before(ticket.plan.batch(step.batch)[0], step.stage) for step in begun)
    share = min(0.01 + done / calls, 1.0)
    return share, (calls - done) * last.seconds / max(1, len(begun)) if last is not None else 0.0


def _before(job: Job, stage: str) -> int:
    """Calls in the passes before this one."""
    stages = [one.stage for one in job.passes]
    return sum(one.unet_calls for one in job.passes[: stages.index(stage)]) if stage in stages else 0


def _of_preview(preview: events.Preview) -> str:
    from PIL import Image

    image = Image.frombytes("RGB", (preview.width, preview.height), preview.pixels)
    return encoded(saved(image, "PNG"))


# --- what is stored in an image


def stored(path: str) -> dict[str, Any]:
    """A1111's text of an image, whichever program wrote what is in it; an empty one where it holds nothing."""
    texts = read.stored(path)
    info = a1111.read(texts.parameters) if texts.parameters else None
    if info is None or not info.pairs:
        info = _translated(path) or info
    items = {"sdcli": texts.own, "prompt": texts.comfyui, "invokeai_metadata": texts.invokeai}
    return {
        "info": "" if info is None else a1111.write(info), "parameters": _pairs(info),
        "items": {name: text for name, text in items.items() if text},
    }  # fmt: skip


def _pairs(info: a1111.Infotext | None) -> dict[str, str]:
    if info is None:
        return {}
    width, _, height = (info.get("Size") or "").partition("x")
    sides = {"Size-1": width, "Size-2": height} if height else {}
    return {"Prompt": info.prompt, "Negative prompt": info.negative_prompt, **dict(info.pairs), **sides}


_KEYS = {"steps": "Steps", "sampler": "Sampler", "guidance": "CFG scale", "seed": "Seed", "model": "Model"}


def _translated(path: str) -> a1111.Infotext | None:
    try:
        plain = read.read(path).plain
    except SdcliError:
        return None
    pairs = [(key, str(plain[name])) for name, key in _KEYS.items() if name in plain]
    if "width" in plain and "height" in plain:
        pairs.append(("Size", f"{plain['width']}x{plain['height']}"))
    return a1111.Infotext(str(plain.get("prompt", "")), str(plain.get("negative_prompt", "")), tuple(pairs))
