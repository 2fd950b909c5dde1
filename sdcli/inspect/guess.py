"""A UNet's config read back from the shapes of its tensors; which known family it is, if any."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from sdcli import data
from sdcli.errors import BadFile
from sdcli.models.expected import tensors_of
from sdcli.models.families import families
from sdcli.models.kinds import TITLES
from sdcli.models.unet import analyse

Shapes = Mapping[str, tuple[int, ...]]

FAMILIES = ("sd15", "sd2", "sdxl", "refiner")


def title(family: str, channels: int = 4) -> str:
    """For people; "" is an unknown family."""
    if family == "unet2015":
        return "The U-Net of 2015"
    if not family:
        return "UNet of an unknown family"
    name = TITLES.get(family) or families()[family].title
    return f"UNet of {name}" + (f", {channels} input channels" if channels != 4 else "")


@functools.cache
def expected(family: str) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape of a known family; empty for an unknown one."""
    config = data.component_config(family, "unet") if family else None
    return tensors_of(analyse(config, height=8, width=8).leaves) if config else {}


def known_family(shapes: Shapes) -> tuple[str, int]:
    """The known family that most of the tensors fit, and how many input channels; ("", 0) if none comes close."""
    best, score = "", 0.0
    for family in FAMILIES:
        theirs = expected(family)
        fitting = sum(1 for name, shape in theirs.items() if shapes.get(name) == shape)
        share = fitting / max(len(theirs), len(shapes), 1)
        if share > score:
            best, score = family, share
    if score < 0.6:
        return "", 0
    first = shapes.get("conv_in.weight", ())
    return best, first[1] if len(first) == 4 and 0 < first[1] <= 64 else 4


def config_of(shapes: Shapes) -> dict[str, Any]:
    """The config whose UNet has these tensors; BadFile if no such UNet has them."""
    try:
        return _Reader(shapes).read()
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        lacking = error.args[0] if error.args else ""
        raise BadFile(
            f"not a UNet2DConditionModel that sdcli supports: {lacking} is missing or has the wrong shape"
        ) from None


class _Reader:
    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def read(self) -> dict[str, Any]:
        first, last = self._weight("conv_in", 4), self._weight("conv_out", 4)
        levels = self._count("down_blocks")
        widths = [self._weight(f"down_blocks.{i}.resnets.0.conv1", 4)[0] for i in range(levels)]
        linear = [self.shapes[name] for name in self._named(r"attentions\.\d+\.proj_in\.weight$")]
        config: dict[str, Any] = {
            "_class_name": "UNet2DConditionModel",
            "in_channels": first[1],
            "out_channels": last[0],
            "conv_in_kernel": first[2],
            "conv_out_kernel": last[2],
            "block_out_channels": widths,
            "layers_per_block": [self._count(f"down_blocks.{i}.resnets") for i in range(levels)],
            "down_block_types": [self._type(f"down_blocks.{i}", "Down") for i in range(levels)],
            "up_block_types": [self._type(f"up_blocks.{i}", "Up") for i in range(self._count("up_blocks"))],
            "mid_block_type": self._mid(),
            "use_linear_projection": bool(linear) and len(linear[0]) == 2,
            "sample_size": 64,
        }
        if not any(name.startswith("conv_norm_out") for name in self.shapes):
            config["norm_num_groups"] = None
        self._text(config, levels)
        self._depths(config, levels)
        self._only_cross(config, levels)
        self._time(config, widths)
        self._additions(config)
        config["attention_head_dim"] = self._heads(config, widths)
        return config

    def _weight(self, name: str, dimensions: int) -> tuple[int, ...]:
        shape = self.shapes[f"{name}.weight"]
        if len(shape) != dimensions or not all(shape):
            raise ValueError(f"{name}.weight")
        return shape

    def _named(self, pattern: str) -> list[str]:
        regex = re.compile(pattern)
        return [name for name in self.shapes if regex.search(name)]

    def _count(self, prefix: str) -> int:
        numbers = {
            int(match[1]) for name in self.shapes if (match := re.match(rf"{re.escape(prefix)}\.(\d{{1,3}})\.", name))
        }
        if numbers != set(range(len(numbers))):
            raise ValueError(prefix)
        return len(numbers)

    def _type(self, prefix: str, direction: str) -> str:
        sampler = "downsamplers" if direction == "Down" else "upsamplers"
        by_resnet = f"{prefix}.{sampler}.0.conv1.weight" in self.shapes
        start = f"{prefix}.attentions.0."
        if f"{start}transformer_blocks.0.attn2.to_k.weight" in self.shapes:
            return f"CrossAttn{direction}Block2D"
        if f"{start}add_k_proj.weight" in self.shapes:
            return f"SimpleCrossAttn{direction}Block2D"
        if f"{start}to_q.weight" in self.shapes:
            return f"Attn{direction}Block2D"
        return f"Resnet{direction}sampleBlock2D" if by_resnet else f"{direction}Block2D"

    def _mid(self) -> str | None:
        if not any(name.startswith("mid_block.") for name in self.shapes):
            return None
        if "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" in self.shapes:
            return "UNetMidBlock2DCrossAttn"
        if "mid_block.attentions.0.add_k_proj.weight" in self.shapes:
            return "UNetMidBlock2DSimpleCrossAttn"
        return "UNetMidBlock2D"

    def _text(self, config: dict[str, Any], levels: int) -> None:
        widths: list[int | None] = []
        for level in range(levels):
            names = self._named(
                rf"^(down_blocks\.{level}|up_blocks\.{levels - 1 - level})\.attentions\.0\."
                r"(transformer_blocks\.0\.attn2\.to_k|add_k_proj)\.weight$"
            )
            widths.append(self.shapes[names[0]][1] if names else None)
        mid = self._named(r"^mid_block\.attentions\.0\.(transformer_blocks\.0\.attn2\.to_k|add_k_proj)\.weight$")
        some = next((width for width in widths if width), self.shapes[mid[0]][1] if mid else self._other_width())
        filled = [width or some for width in widths]
        config["cross_attention_dim"] = filled[0] if len(set(filled)) == 1 else filled
        if "encoder_hid_proj.weight" in self.shapes:
            config["encoder_hid_dim"] = self._weight("encoder_hid_proj", 2)[1]
            config["encoder_hid_dim_type"] = "text_proj"
        if self._named(r"\.norm_cross\.weight$"):
            config["cross_attention_norm"] = "group_norm"

    def _other_width(self) -> int:
        """The text's width in a UNet that never attends to it, from another use of it, else 1."""
        for name, axis in (
            ("encoder_hid_proj.weight", 0),
            ("encoder_hid_proj.text_proj.weight", 0),
            ("encoder_hid_proj.norm.weight", 0),
            ("add_embedding.norm1.weight", 0),
            ("add_embedding.text_proj.weight", 1),
        ):
            if len(self.shapes.get(name, ())) > axis:
                return self.shapes[name][axis]
        return 1

    def _depths(self, config: dict[str, Any], levels: int) -> None:
        """Transformer blocks per attention, going down and going up."""

        def of(prefix: str) -> list[int]:
            count = self._count(f"{prefix}.attentions")
            return [self._count(f"{prefix}.attentions.{i}.transformer_blocks") for i in range(count)]

        down = [of(f"down_blocks.{level}") for level in range(levels)]
        up = [of(f"up_blocks.{index}") for index in range(levels)]
        middle = of("mid_block")
        same = [set(a) | set(b) for a, b in zip(down, reversed(up), strict=True)]
        if middle:
            same[-1] |= set(middle)
        if all(len(depths - {0}) <= 1 for depths in same):
            config["transformer_layers_per_block"] = [max(depths, default=1) or 1 for depths in same]
            return
        layers = config["layers_per_block"]
        config["transformer_layers_per_block"] = [
            [depth or 1 for depth in (depths or [1] * layers[level])] for level, depths in enumerate(down)
        ]
        if middle:  # the middle takes the first depth of the last level
            config["transformer_layers_per_block"][-1][0] = middle[0] or 1
        config["reverse_transformer_layers_per_block"] = [
            [depth or 1 for depth in (depths or [1] * (layers[levels - 1 - index] + 1))]
            for index, depths in enumerate(up)
        ]

    def _only_cross(self, config: dict[str, Any], levels: int) -> None:
        """Whether attn1 reads the text too; or, where pixels and text share one attention, only the text."""

        def only(prefix: str) -> bool:
            if f"{prefix}.attentions.0.add_k_proj.weight" in self.shapes:
                return f"{prefix}.attentions.0.to_k.weight" not in self.shapes
            start = f"{prefix}.attentions.0.transformer_blocks.0.attn1"
            query, key = self.shapes.get(f"{start}.to_q.weight", ()), self.shapes.get(f"{start}.to_k.weight", ())
            return bool(query and key and query[1:] != key[1:])

        only_text = [only(f"down_blocks.{i}") or only(f"up_blocks.{levels - 1 - i}") for i in range(levels)]
        if any(only_text):
            config["only_cross_attention"] = only_text
        if only("mid_block"):
            config["mid_block_only_cross_attention"] = True

    def _additions(self, config: dict[str, Any]) -> None:
        """What DeepFloyd's and Kandinsky's UNets add to the time embedding or read instead of text."""
        if "add_embedding.pool.k_proj.weight" in self.shapes:
            config["addition_embed_type"] = "text"
            config["encoder_hid_dim"] = self._weight("add_embedding.pool.k_proj", 2)[1]
            config.setdefault("encoder_hid_dim_type", "text_proj")
            if "encoder_hid_proj.weight" not in self.shapes:
                del config["encoder_hid_dim"], config["encoder_hid_dim_type"]
            config["addition_embed_type_num_heads"] = 64
        elif "add_embedding.text_norm.weight" in self.shapes:
            config["addition_embed_type"] = "text_image"
        elif "add_embedding.image_norm.weight" in self.shapes:
            config["addition_embed_type"] = "image"
            config["encoder_hid_dim"] = self._weight("add_embedding.image_proj", 2)[1]
        if "encoder_hid_proj.text_proj.weight" in self.shapes:
            config["encoder_hid_dim_type"] = "text_image_proj"
            config["encoder_hid_dim"] = self._weight("encoder_hid_proj.text_proj", 2)[1]
        elif "encoder_hid_proj.image_embeds.weight" in self.shapes:
            config["encoder_hid_dim_type"] = "image_proj"
            config["encoder_hid_dim"] = self._weight("encoder_hid_proj.image_embeds", 2)[1]

    def _time(self, config: dict[str, Any], widths: list[int]) -> None:
        first = self._weight("time_embedding.linear_1", 2)
        fourier = "time_proj.weight" in self.shapes
        if fourier:
            config["time_embedding_type"] = "fourier"
        if first[0] != widths[0] * (2 if fourier else 4):
            config["time_embedding_dim"] = first[0]
        if "time_embedding.cond_proj.weight" in self.shapes:
            config["time_cond_proj_dim"] = self._weight("time_embedding.cond_proj", 2)[1]
        if "add_embedding.linear_1.weight" in self.shapes:
            inputs = self._weight("add_embedding.linear_1", 2)[1]
            config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
            config["projection_class_embeddings_input_dim"] = inputs
        if "class_embedding.linear_1.weight" in self.shapes:
            inputs = self._weight("class_embedding.linear_1", 2)[1]
            config["class_embed_type"] = "timestep" if inputs == first[1] else "projection"
            config.setdefault("projection_class_embeddings_input_dim", inputs)
        elif "class_embedding.weight" in self.shapes:
            shape = self._weight("class_embedding", 2)
            if "class_embedding.bias" in self.shapes:
                config |= {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": shape[1]}
            else:
                config["num_class_embeds"] = shape[0]
        added = self.shapes.get("down_blocks.0.resnets.0.time_emb_proj.weight", (0, 0))
        if added[0] == 2 * widths[0]:
            config["resnet_time_scale_shift"] = "scale_shift"
        if added[1] == 2 * first[0]:
            config["class_embeddings_concat"] = True

    def _heads(self, config: dict[str, Any], widths: list[int]) -> Any:
        """Not in the weights. Heads of 64 channels, but 8 heads where the text is CLIP ViT-L's, as in SD1."""
        if config["cross_attention_dim"] == 768 or any(width % 64 for width in widths):
            return 8 if all(width % 8 == 0 for width in widths) else 1
        types = (*config["down_block_types"], *config["up_block_types"])
        if any(kind.startswith(("Attn", "Simple")) for kind in types):
            return 64  # in these the number is a head's width
        return [width // 64 for width in widths]
