"""What the analytic UNet is compared with: the real modules on the meta device, their hooks and live storages."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def build(config: Mapping[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(config)).eval()


def inputs(
    config: Mapping[str, Any], *, height: int, width: int, batch: int = 1, tokens: int = 77, dtype: Any = None
) -> dict[str, Any]:
    """All inputs of this config's forward pass, on the meta device."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    context = config["cross_attention_dim"]
    context = context[0] if isinstance(context, (list, tuple)) else context
    text = config.get("encoder_hid_dim") or context
    time = config["block_out_channels"][0] * (2 if config.get("time_embedding_type") == "fourier" else 4)
    wanted = config.get("projection_class_embeddings_input_dim") or 0
    added: dict[str, torch.Tensor] = {}
    kind = config.get("addition_embed_type")
    if kind == "text_time":
        added = {
            "text_embeds": empty(batch, wanted - 6 * config["addition_time_embed_dim"]),
            "time_ids": empty(batch, 6),
        }
    if kind == "text_image":
        added = {"text_embeds": empty(batch, context), "image_embeds": empty(batch, context)}
    if kind == "image":
        added = {"image_embeds": empty(batch, config["encoder_hid_dim"])}
    if config.get("encoder_hid_dim_type") == "text_image_proj":
        added["image_embeds"] = empty(batch, context)
    if config.get("encoder_hid_dim_type") == "image_proj":
        added["image_embeds"] = empty(batch, config["encoder_hid_dim"])
    labels = None
    classes = config.get("class_embed_type")
    if classes is None and config.get("num_class_embeds"):
        labels = torch.empty((batch,), device="meta", dtype=torch.int64)
    elif classes == "timestep":
        labels = empty(batch)
    elif classes == "identity":
        labels = empty(batch, config.get("time_embedding_dim") or time)
    elif classes in ("projection", "simple_projection"):
        labels = empty(batch, wanted)
    condition = config.get("time_cond_proj_dim")
    return {
        "sample": empty(batch, config["in_channels"], height, width),
        "timestep": torch.empty((), device="meta", dtype=torch.float32 if dtype is None else dtype),
        "encoder_hidden_states": empty(batch, tokens, text),
        "class_labels": labels,
        "timestep_cond": empty(batch, condition) if condition else None,
        "added_cond_kwargs": added or None,
    }


def run(model: torch.nn.Module, given: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], list[str], int]:
    """Output shape of every leaf with weights, their names in call order, multiply-adds of the whole call."""
    shapes: dict[str, tuple[int, ...]] = {}
    order: list[str] = []

    def hook(name: str) -> Any:
        def seen(_module: Any, _inputs: Any, output: Any) -> None:
            shapes[name] = tuple(output.shape)
            order.append(name)

        return seen

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False))
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**given)
    for handle in handles:
        handle.remove()
    return shapes, order, counter.get_total_flops() // 2


def own_parameters(model: torch.nn.Module) -> dict[str, int]:
    """The weights a module has itself, for every module that has any."""
    counts = {name: sum(p.numel() for p in m.parameters(recurse=False)) for name, m in model.named_modules()}
    return {name: count for name, count in counts.items() if count}


class LiveBytes(TorchDispatchMode):
    """The most bytes alive at once in storages made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.known: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {
            StorageWeakRef(item.untyped_storage()).cdata
            for item in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(item, torch.Tensor)
        }
        result = func(*args, **kwargs)
        for key in [key for key, (reference, _) in self.alive.items() if reference.expired()]:
            del self.alive[key]
        for item in torch.utils._pytree.tree_leaves(result):
            if isinstance(item, torch.Tensor):
                storage = item.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.alive and reference.cdata not in before:
                    self.alive[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


class FusedAttention(TorchFunctionMode):
    """A fused kernel keeps no scores; the meta device would write them out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def live_peak(call: Any) -> int:
    with torch.no_grad(), FusedAttention(), LiveBytes() as tracker:
        result = call()
    del result
    return tracker.peak


def random_config(seed: int) -> tuple[dict[str, Any], dict[str, int]]:
    """A small random UNet, which may have any kind of block, and a size to run it at."""
    dice = random.Random(seed)
    levels = dice.choice([1, 2, 2, 3, 3, 4])
    groups = dice.choice([2, 4])
    widths = [8 * dice.randint(1, 6) for _ in range(levels)]
    added_kv = dice.random() < 0.2
    plain_attention = not added_kv and dice.random() < 0.25
    attending = "SimpleCrossAttn" if added_kv else "Attn" if plain_attention else "CrossAttn"
    with_attention = [dice.random() < 0.65 for _ in range(levels)]
    without = "Resnet{}sampleBlock2D" if dice.random() < 0.2 else "{}Block2D"
    down = [f"{attending}DownBlock2D" if yes else without.format("Down") for yes in with_attention]
    up = [f"{attending}UpBlock2D" if yes else without.format("Up") for yes in reversed(with_attention)]
    if dice.random() < 0.3:  # the way up need not mirror the way down
        up = [dice.choice(["UpBlock2D", f"{attending}UpBlock2D"]) for _ in range(levels)]
    mid = dice.choice(["UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None])
    if added_kv:
        mid = dice.choice(["UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2D", None])
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": dice.choice([3, 4, 9]),
        "out_channels": dice.choice([3, 4, 8]),
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "mid_block_type": mid,
        "norm_num_groups": groups,
        "layers_per_block": dice.choice([1, 2, [dice.randint(1, 3) for _ in range(levels)]]),
        "attention_head_dim": dice.choice([2, 4, [dice.choice([1, 2, 4, 8]) for _ in range(levels)]]),
        "cross_attention_dim": dice.choice([8, 16, [dice.choice([16])] * levels]),
        "use_linear_projection": dice.random() < 0.5,
        "only_cross_attention": dice.choice([False, False, True, [dice.random() < 0.5 for _ in range(levels)]]),
        "resnet_time_scale_shift": dice.choice(["default", "default", "scale_shift"]),
        "downsample_padding": dice.choice([1, 1, 0]),
        "conv_in_kernel": dice.choice([3, 3, 1, 5]),
        "conv_out_kernel": dice.choice([3, 3, 1, 5]),
    }
    _depths(config, dice, levels)
    if added_kv and dice.random() < 0.5:
        config["cross_attention_norm"] = "group_norm"
        config["cross_attention_dim"] = 32
    _embeddings(config, dice)
    fixed = any(kind.startswith(("Resnet", "Simple", "Attn")) for kind in (*down, *up))
    step = 2 ** (levels - 1)
    sides = [step * dice.randint(2, 5) if fixed else dice.randint(2 * step, 6 * step) for _ in range(2)]
    if config["downsample_padding"] == 0:  # rounds down where the way up doubles
        sides = [step * dice.randint(2, 5) for _ in range(2)]
    size = {"height": sides[0], "width": sides[1], "batch": dice.choice([1, 2, 3]), "tokens": dice.choice([1, 7, 77])}
    return config, size


def _depths(config: dict[str, Any], dice: random.Random, levels: int) -> None:
    layers = config["layers_per_block"]
    layers = [layers] * levels if isinstance(layers, int) else layers
    how = dice.random()
    if how < 0.4:
        config["transformer_layers_per_block"] = dice.randint(1, 2)
    elif how < 0.7:
        config["transformer_layers_per_block"] = [dice.randint(1, 3) for _ in range(levels)]
    else:
        config["transformer_layers_per_block"] = [[dice.randint(1, 2) for _ in range(count)] for count in layers]
        config["reverse_transformer_layers_per_block"] = [
            [dice.randint(1, 2) for _ in range(count + 1)] for count in reversed(layers)
        ]


def _embeddings(config: dict[str, Any], dice: random.Random) -> None:
    context = config["cross_attention_dim"]
    if dice.random() < 0.3:
        config["time_cond_proj_dim"] = 12
    if dice.random() < 0.2:
        config["time_embedding_type"] = "fourier"
    if dice.random() < 0.2:
        config["time_embedding_dim"] = 24
    kind = dice.choice([None, None, "text_time", "text", "text_image", "image"])
    wanted = 6 * 8 + 20
    if kind == "text_time":
        config |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": wanted}
    if kind == "text":
        config |= {"addition_embed_type_num_heads": 2}
    if isinstance(context, list) and kind in ("text", "text_image"):
        config["cross_attention_dim"] = context = context[0]
    if kind == "image":
        config |= {"encoder_hid_dim": 10, "encoder_hid_dim_type": "image_proj"}
        config["cross_attention_dim"] = context = context[0] if isinstance(context, list) else context
    elif isinstance(context, int) and dice.random() < 0.25:
        config["encoder_hid_dim"] = 14
        if kind == "text_image":
            config["encoder_hid_dim_type"] = "text_image_proj"
    config["addition_embed_type"] = kind
    classes = dice.choice([None, None, "number", "timestep", "identity", "projection", "simple_projection"])
    if classes == "number":
        config["num_class_embeds"] = 5
    elif classes:
        config["class_embed_type"] = classes
        if "projection" in classes and kind != "text_time":
            config["projection_class_embeddings_input_dim"] = 18
    if classes and kind is None and dice.random() < 0.3:
        config["class_embeddings_concat"] = True
