"""What the configs of a model may say: the types and ranges that sdcli and diffusers can work with.

A UNet's or VAE's structure (widths, blocks, heads) is checked where it is walked, in unet.py, vae.py and text.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdcli.errors import BadFile
from sdcli.terminal import show

# sdcli's samplers assume a thousand training steps, as in all of Stable Diffusion; 100,000 still fit in memory.
FEWEST_STEPS, MOST_STEPS = 1000, 100_000
LARGEST = 1 << 24
_ANOTHER = 'sdcli generate "a cat" -m sd15'


class Rule(NamedTuple):
    """`expected` ends the sentence "beta_start should be …"."""

    expected: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(lowest: int, highest: int = LARGEST) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest

    return Rule(f"a whole number from {lowest:,} to {highest:,}", holds)


def _number(lowest: float, highest: float) -> Rule:
    return Rule(
        f"a number from {lowest:g} to {highest:g}", lambda value: is_number(value) and lowest <= value <= highest
    )


def _above(lowest: float, highest: float) -> Rule:
    return Rule(
        f"a number above {lowest:g}, up to {highest:g}",
        lambda value: is_number(value) and lowest < value <= highest,
    )


def _one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _list_of(rule: Rule, what: str) -> Rule:
    return Rule(what, lambda value: isinstance(value, list) and bool(value) and all(map(rule.holds, value)))


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or null", lambda value: value is None or rule.holds(value))


_YES = Rule("true or false", lambda value: value is None or isinstance(value, bool))
_NO = Rule("false: sdcli does not support it", lambda value: value is None or value is False)
_NULL = Rule("null: sdcli does not support it", lambda value: value is None)
_SIDE = _whole(1)
_PAIR = _list_of(_SIDE, "a list of whole numbers above 0")
_SIDES = Rule("a whole number above 0, or two", lambda value: _SIDE.holds(value) or _PAIR.holds(value))
# only a default size, so other types are ignored
_NOT_BELOW_ONE = Rule("a whole number above 0", lambda value: type(value) is not int or value > 0)
_BETA = Rule("a number between 0 and 1", lambda value: is_number(value) and 0 < value < 1)
_EPSILON = _above(0, 1)
_FACTOR = _above(0, 1e6)
_ACTIVATION = _one_of("silu", "swish", "mish", "gelu", "relu")

_CLASS = Rule("the name of a class", lambda value: isinstance(value, str))

_UNET: Mapping[str, Rule] = {
    "_class_name": _CLASS, "sample_size": _NOT_BELOW_ONE, "act_fn": _ACTIVATION, "norm_num_groups": _whole(1),
    "norm_eps": _EPSILON, "out_channels": _whole(1), "dropout": _number(0, 1), "freq_shift": _number(0, 1),
    "mid_block_scale_factor": _FACTOR, "resnet_out_scale_factor": _FACTOR, "center_input_sample": _YES,
    "flip_sin_to_cos": _YES, "upcast_attention": _YES, "use_linear_projection": _YES, "resnet_skip_time_act": _YES,
    "time_embedding_act_fn": _or_null(_ACTIVATION), "timestep_post_act": _or_null(_ACTIVATION),
    # what such a UNet would need as input besides text, size and time
    "class_embed_type": _NULL, "num_class_embeds": _NULL, "encoder_hid_dim_type": _or_null(_one_of("text_proj")),
    "addition_embed_type": _or_null(_one_of("text", "text_time")),
}  # fmt: skip
_CONTROLNET: Mapping[str, Rule] = {
    **{name: rule for name, rule in _UNET.items() if name not in ("sample_size", "out_channels")},
    "conditioning_channels": Rule("3", lambda value: value == 3 and not isinstance(value, bool)),
    "conditioning_embedding_out_channels": Rule(
        "a list of four whole numbers above 0", lambda value: _PAIR.holds(value) and len(value) == 4
    ),
    "controlnet_conditioning_channel_order": _one_of("rgb", "bgr"), "global_pool_conditions": _YES,
    "layers_per_block": _SIDE, "encoder_hid_dim": _NULL, "encoder_hid_dim_type": _NULL, "num_attention_heads": _NULL,
    "addition_embed_type": _or_null(_one_of("text_time")),
    "mid_block_type": _one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
}  # fmt: skip
_CONTROLNET_UNION: Mapping[str, Rule] = {
    **_CONTROLNET, "num_control_type": _whole(1, 64), "num_trans_channel": _SIDE, "num_trans_head": _SIDE,
    "num_trans_layer": _whole(1, 64), "num_proj_channel": _SIDE, "addition_embed_type": _one_of("text_time"),
    "mid_block_type": _one_of("UNetMidBlock2DCrossAttn"),
}  # fmt: skip
_T2I_ADAPTER: Mapping[str, Rule] = {
    "_class_name": _CLASS, "in_channels": Rule("1 or 3", lambda value: value in (1, 3) and not isinstance(value, bool)),
    "downscale_factor": Rule("8 or 16", lambda value: value in (8, 16)), "num_res_blocks": _whole(1, 64),
    "adapter_type": _one_of("full_adapter", "full_adapter_xl", "light_adapter"), "channels": _PAIR,
}  # fmt: skip
_VAE: Mapping[str, Rule] = {
    "_class_name": _CLASS, "sample_size": _or_null(_SIDES),
    "act_fn": _ACTIVATION, "norm_num_groups": _whole(1), "scaling_factor": _FACTOR,
    "shift_factor": _or_null(_number(-1e6, 1e6)), "force_upcast": _YES, "use_quant_conv": _YES,
    "use_post_quant_conv": _YES, "mid_block_add_attention": _YES,
    "latents_mean": _or_null(_list_of(_number(-1e6, 1e6), "a list of numbers")),
    "latents_std": _or_null(_list_of(_FACTOR, "a list of numbers above 0")),
}  # fmt: skip
_TEXT: Mapping[str, Rule] = {
    "hidden_act": _one_of("quick_gelu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish"),
    "layer_norm_eps": _EPSILON, "attention_dropout": _number(0, 1), "max_position_embeddings": _whole(77),
    "return_dict": Rule("true", lambda value: value is True), "torchscript": _NO, "eos_token_id": _whole(-1),
    "bos_token_id": _or_null(_whole(-1)), "pad_token_id": _or_null(_whole(-1)),
}  # fmt: skip
_VISION: Mapping[str, Rule] = {
    **{
        name: _TEXT[name]
        for name in ("hidden_act", "layer_norm_eps", "attention_dropout", "return_dict", "torchscript")
    },
    "image_size": _whole(1, 4096), "patch_size": _whole(1, 4096),
    "num_channels": Rule("3", lambda value: value == 3 and not isinstance(value, bool)),
}  # fmt: skip
_SCHEDULER: Mapping[str, Rule] = {
    "_class_name": _CLASS,
    "num_train_timesteps": _whole(FEWEST_STEPS, MOST_STEPS), "beta_start": _BETA, "beta_end": _BETA,
    "beta_schedule": _one_of("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "trained_betas": _or_null(_list_of(_BETA, "a list of numbers between 0 and 1")),
    "steps_offset": _whole(0, 10), "timestep_spacing": _one_of("leading", "trailing", "linspace"),
    "interpolation_type": _one_of("linear", "log_linear"), "final_sigmas_type": _one_of("zero", "sigma_min"),
    "timestep_type": _one_of("discrete", "continuous"), "solver_order": _whole(1, 3),
    "predictor_order": _whole(1, 4), "corrector_order": _whole(0, 4), "original_inference_steps": _whole(1, 1000),
    "sigma_min": _or_null(_above(0, 1)), "sigma_max": _or_null(_above(1, 1e6)),
    "flow_shift": _FACTOR, "timestep_scaling": _FACTOR, "rho": _FACTOR, "sigma_data": _FACTOR,
    "sigma_schedule": _one_of("karras", "exponential"),
    "clip_sample_range": _FACTOR, "sample_max_value": _number(1, 1e6), "dynamic_thresholding_ratio": _number(0, 1),
    "lambda_min_clipped": Rule("a number", is_number),
    "disable_corrector": Rule("an empty list", lambda value: value == []),
    "variance_type": _or_null(_one_of("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")),
    **dict.fromkeys(("clip_sample", "set_alpha_to_one", "thresholding", "skip_prk_steps", "predict_x0"), _YES),
    **dict.fromkeys(("rescale_betas_zero_snr", "lower_order_final", "euler_at_final", "use_lu_lambdas"), _YES),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), _YES),
    **dict.fromkeys(("use_flow_sigmas", "use_dynamic_shifting"), _NO),
    **dict.fromkeys(("shift_terminal", "solver_p", "tau_func"), _NULL),
}  # fmt: skip
_RULES = {
    "unet": _UNET,
    "controlnet": _CONTROLNET,
    "controlnet_union": _CONTROLNET_UNION,
    "t2i_adapter": _T2I_ADAPTER,
    "vae": _VAE,
    "text_encoder": _TEXT,
    "text_encoder_2": _TEXT,
    "image_encoder": _VISION,
    "scheduler": _SCHEDULER,
}


def check(part: str, config: Mapping[str, Any], file: Path) -> None:
    """Raise BadFile with the file and the key of the first invalid value."""
    for key, rule in _RULES[part].items():
        if key in config and not rule.holds(config[key]):
            raise _bad(file, f"{key} should be {rule.expected}, not {_shown(config[key])}")
    if part in ("unet", "vae", "controlnet", "controlnet_union"):
        _check_groups(config, file)
    if part == "controlnet_union":
        _check_union(config, file)
    if part == "scheduler":
        _check_betas(config, file)


def _check_groups(config: Mapping[str, Any], file: Path) -> None:
    groups, widths = config.get("norm_num_groups", 32), config.get("block_out_channels", ())
    for width in widths if isinstance(widths, list) else ():
        if isinstance(width, int) and width % groups:
            raise _bad(file, f"norm_num_groups {groups} does not divide block_out_channels {width}")


def _check_union(config: Mapping[str, Any], file: Path) -> None:
    """What is compared of its images are means over the first level's channels, and goes back into these."""
    widths, heads = config.get("block_out_channels"), config.get("num_trans_head", 8)
    first = widths[0] if isinstance(widths, list) and widths else 320
    for key in ("num_trans_channel", "num_proj_channel"):
        width = config.get(key, 320)
        if width != first:
            raise _bad(file, f"{key} should be {_shown(first)}, the first of block_out_channels, not {_shown(width)}")
    if first % heads:
        raise _bad(file, f"num_trans_head {heads} does not divide num_trans_channel {first}")


def _check_betas(config: Mapping[str, Any], file: Path) -> None:
    """At the last step a trace of the image must remain: else float32 would divide by zero."""
    steps, trained = config.get("num_train_timesteps", FEWEST_STEPS), config.get("trained_betas")
    if trained is not None and len(trained) != steps:
        raise _bad(file, f"trained_betas should have {steps} values, as num_train_timesteps says, not {len(trained)}")
    if sum(math.log1p(-beta) for beta in trained or _betas(config, steps)) < -80:
        named = "trained_betas" if trained else "beta_start, beta_end and num_train_timesteps"
        raise _bad(file, f"{named} add more noise than float32 can represent")


def _betas(config: Mapping[str, Any], steps: int) -> Sequence[float]:
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    return [start + (end - start) * step / (steps - 1) for step in range(steps)]


def _bad(file: Path, what: str) -> BadFile:
    return BadFile(f"{show(file)}: {what}", hint=_ANOTHER)


def _shown(value: Any) -> str:
    """As JSON, so that "1" and 1 look different."""
    return show(json.dumps(value)[:1000], 60)
