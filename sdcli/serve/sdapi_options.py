"""A1111's options: what each client sets for its own later requests, and what one request sets for itself alone."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from sdcli.errors import ModelMissing
from sdcli.serve.bodies import BadBody
from sdcli.serve.openapi import within
from sdcli.serve.sdapi_body import Body
from sdcli.serve.sdapi_names import Names, path_of
from sdcli.serve.sdapi_schemas import ANYTHING, TEXT, Fields, Schema, any_whole, of_object, one_of

MOST_CLIENTS = 1000

# What draws other images in A1111 when it is changed, and cannot be changed here.
FIXED: dict[str, Any] = {
    "eta_noise_seed_delta": 0, "img2img_fix_steps": False, "img2img_color_correction": False,
    "initial_noise_multiplier": 1.0, "token_merging_ratio": 0.0, "token_merging_ratio_img2img": 0.0,
    "token_merging_ratio_hr": 0.0, "eta_ddim": 0.0, "eta_ancestral": 1.0, "s_churn": 0.0, "s_noise": 1.0,
    "s_min_uncond": 0.0, "sd_hypernetwork": "None", "upcast_attn": False, "face_restoration": False, "tiling": False,
    "always_discard_next_to_last_sigma": False, "enable_batch_seeds": True, "use_old_emphasis_implementation": False,
    "use_old_karras_scheduler_sigmas": False, "dont_fix_second_order_samplers_schedule": False,
}  # fmt: skip
# How files are kept and shown: no image differs.
_ABOUT_FILES = re.compile(
    r"(save|outdir|grid|show|live_preview|directories|jpeg|webp|return|do_not|add|enable_pnginfo|export|filter_nsfw"
    r"|samples_filename|sd_checkpoint_cache|sd_checkpoints_limit|memmon|sd_vae_checkpoint_cache)(_\w*)?"
)
_FORMATS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp"}
_RNG = {"CPU": "cpu", "NV": "nv"}
_EMPHASIS = {"Original": "a1111", "None": "none"}
# What is honoured.
FIELDS: Fields = {
    "sd_model_checkpoint": TEXT, "CLIP_stop_at_last_layers": any_whole(within("clip_skip")), "sd_vae": TEXT,
    "samples_format": TEXT, "randn_source": TEXT, "emphasis": TEXT,
}  # fmt: skip
# Of a body: what is as it is anyway passes too.
SCHEMA: Schema = {
    **of_object({**FIELDS, **{name: one_of([value]) for name, value in FIXED.items()}, "sd_checkpoint_hash": ANYTHING}),
    "patternProperties": {f"^{_ABOUT_FILES.pattern}$": {}}, "additionalProperties": {"enum": [None, "", [], {}]},
}  # fmt: skip


class Options:
    """Of every client by itself: nothing that one sets changes what another draws."""

    def __init__(self, names: Names, typed: Mapping[str, Any]) -> None:
        self._names = names
        self._typed = typed
        self._set: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def shown(self, client: str) -> dict[str, Any]:
        """What GET answers."""
        own = self._of(client)
        title, sha256 = self._shown_checkpoint(own.get("sd_model_checkpoint"))
        formats, rng = str(self._typed.get("format", "png")), str(self._typed.get("rng", "cpu"))
        return {
            "CLIP_stop_at_last_layers": int(str(self._typed.get("clip_skip", 1))), "sd_vae": "Automatic",
            "samples_format": formats, "randn_source": rng.upper(),
            "emphasis": "None" if self._typed.get("emphasis") == "none" else "Original",
            **own, "sd_model_checkpoint": title, "sd_checkpoint_hash": sha256, **FIXED,
        }  # fmt: skip

    def _shown_checkpoint(self, asked: str | None) -> tuple[str, str]:
        try:
            found = self._names.checkpoint(asked) if asked else self._names.checkpoints()[0]
        except ModelMissing:  # it was there when it was set
            return asked or "", ""
        return found.title, found.sha256 or ""

    def change(self, client: str, body: Mapping[str, Any]) -> None:
        """All of it or nothing. What is as GET gave it may be sent along."""
        before = self.shown(client)
        changed = {name: value for name, value in body.items() if name not in before or before[name] != value}
        checked = self._checked(Body(changed))
        with self._lock:
            self._set[client] = {**self._set.pop(client, {}), **checked}
            while len(self._set) > MOST_CLIENTS:
                self._set.popitem(last=False)

    def settings(self, client: str, override: Body) -> dict[str, Any]:
        """generate's settings: what the client has set before, and on top of it what this request says."""
        merged = {**self._of(client), **self._checked(override)}
        return {name: value for key in merged for name, value in _HONOURED[key](self, Body(merged), key).items()}

    def _of(self, client: str) -> dict[str, Any]:
        with self._lock:
            return dict(self._set.get(client, {}))

    def _checked(self, given: Body) -> dict[str, Any]:
        """Those that are honoured; the others have to be as they are."""
        honoured = {}
        for name, value in given.fields.items():
            if name in _HONOURED:
                if value is not None and value != "":
                    _HONOURED[name](self, given, name)
                    honoured[name] = value
            elif name in FIXED:
                given.neutral(name, (FIXED[name],))
            elif not _ABOUT_FILES.fullmatch(name) and value not in (None, "", [], {}) and name != "sd_checkpoint_hash":
                raise given.refused(name, "not a setting of this server")
        return honoured

    # --- each as generate's

    def _checkpoint(self, given: Body, name: str) -> dict[str, Any]:
        found = self._names.checkpoint(given.text(name) or "")
        return {} if found.setting is None else {"model": found.setting}

    def _clip_skip(self, given: Body, name: str) -> dict[str, Any]:
        layers = given.whole(name)
        if layers is None or not 1 <= layers <= 12:
            raise given.refused(name, f"{layers} is not between 1 and 12")
        return {"clip_skip": str(layers)}

    def _vae(self, given: Body, name: str) -> dict[str, Any]:
        text, own = given.text(name) or "", self._typed.get("vae_file")
        if text.casefold() == "none" and own:
            raise given.refused(name, "this server was started with a VAE")
        if text.casefold() in ("automatic", "none"):
            return {}
        try:
            return {"vae_file": path_of(self._names.beside(text, "VAE", "vae"))}
        except ModelMissing as missing:
            raise given.refused(name, missing.message) from None

    def _format(self, given: Body, name: str) -> dict[str, Any]:
        return {"format": _one_of(given, name, _FORMATS)}

    def _rng(self, given: Body, name: str) -> dict[str, Any]:
        if given.text(name) == "GPU":
            raise given.refused(name, "noise of this GPU is no other's; NV draws as an NVIDIA GPU does")
        return {"rng": _one_of(given, name, _RNG)}

    def _emphasis(self, given: Body, name: str) -> dict[str, Any]:
        return {"emphasis": _one_of(given, name, _EMPHASIS)}


_HONOURED: dict[str, Callable[[Options, Body, str], dict[str, Any]]] = {
    "sd_model_checkpoint": Options._checkpoint, "CLIP_stop_at_last_layers": Options._clip_skip,
    "sd_vae": Options._vae, "samples_format": Options._format, "randn_source": Options._rng,
    "emphasis": Options._emphasis,
}  # fmt: skip


def _one_of(given: Body, name: str, choices: Mapping[str, str]) -> str:
    text = given.text(name) or ""
    chosen = choices.get(text) or choices.get(text.lower())
    if chosen is None:
        raise BadBody(f"{given.where}{name}: not one of {', '.join(choices)}", given.where + name)
    return chosen
