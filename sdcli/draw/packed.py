"""Layers as oneDNN, torch's library for CPUs, computes them fastest: weights in its own layout, sums and activations
done while a result is still in the cache. Values are diffusers' up to the rounding of those sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdcli.draw.attention import Attend, Referred, with_references
from sdcli.draw.residual import is_plain

# The layout of a product's weights hardly depends on how many rows come in later; oneDNN only wants to know a number.
ROWS = 1024


class Linear(nn.Module):
    """A product with an activation or a second tensor, done in one call."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
        self.bias = bias

    def forward(self, tokens: Tensor, then: str = "none") -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, then, [], "none")
        return result

    def onto(self, other: Tensor, tokens: Tensor, how: str = "add") -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(tokens, other, self.weight, self.bias, how)
        return result


class Convolution(nn.Module):
    """A convolution, to whose result another image can be added in the same call.

    Weights are packed when the first image comes, for images of that size. On CPUs without AVX-512 the layout depends
    on it, and with another one oneDNN would rearrange the weights in every call, which takes longer than the rest.
    """

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.how = (source.padding, source.stride, source.dilation, source.groups)
        self.weight, self.bias = source.weight.data, _kept(source.bias)
        self.packed_for: torch.Size | None = None

    def forward(self, image: Tensor) -> Tensor:
        call = torch.ops.mkldnn._convolution_pointwise
        result: Tensor = call(image, self.weight_for(image), self.bias, *self.how, "none", [], "none")
        return result

    def onto(self, other: Tensor, image: Tensor) -> Tensor:
        call = torch.ops.mkldnn._convolution_pointwise.binary
        result: Tensor = call(image, other, self.weight_for(image), self.bias, *self.how, "add", 1.0, None, [], None)
        return result

    def into(self, other: Tensor, image: Tensor) -> Tensor:
        """The same, where nobody needs `other` any more."""
        call = torch.ops.mkldnn._convolution_pointwise_.binary
        result: Tensor = call(other, image, self.weight_for(image), self.bias, *self.how, "add", 1.0, None, [], None)
        return result

    def weight_for(self, image: Tensor) -> Tensor:
        if image.shape != self.packed_for:
            plain = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
            plain = plain.contiguous(memory_format=torch.channels_last)
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(plain, *self.how, image.shape)
            self.packed_for = image.shape
        return self.weight


class Residual(nn.Module):
    """diffusers' ResnetBlock2D without resampling, its convolutions packed before."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = source.norm1, source.conv1, source.norm2, source.conv2
        self.time_emb_proj, self.conv_shortcut = source.time_emb_proj, source.conv_shortcut

    def forward(self, image: Tensor, temb: Tensor | None = None) -> Tensor:  # as diffusers calls it
        hidden = self.conv1(functional.silu(self.norm1(image), inplace=True))
        if self.time_emb_proj is not None and temb is not None:
            hidden += self.time_emb_proj(functional.silu(temb))[:, :, None, None]
        hidden = functional.silu(self.norm2(hidden), inplace=True)
        if self.conv_shortcut is None:
            return self.conv2.onto(image, hidden)  # type: ignore[no-any-return]
        return self.conv2.into(self.conv_shortcut(image), hidden)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Queries, keys and values in one product."""

    def __init__(self, source: Any, attend: Attend) -> None:
        super().__init__()
        self.heads, self.attend = source.heads, attend
        self.inward = _side_by_side(source.to_q, source.to_k, source.to_v)
        self.outward = _linear(source.to_out[0])

    def forward(self, tokens: Tensor, residual: Tensor) -> Tensor:
        query, key, value = _heads(self.inward(tokens), 3, self.heads)
        return self.outward.onto(residual, _joined(self.attend(query, key, value)))


class CrossAttention(nn.Module):
    """Attention to the text: keys and values in one product."""

    def __init__(self, source: Any, attend: Attend, layer: str = "") -> None:
        super().__init__()
        self.heads, self.attend, self.layer = source.heads, attend, layer
        self.to_q, self.inward = _linear(source.to_q), _side_by_side(source.to_k, source.to_v)
        self.outward = _linear(source.to_out[0])

    def forward(
        self, tokens: Tensor, residual: Tensor, text: Tensor, references: Referred | None = None
    ) -> Tensor:  # fmt: skip
        (query,) = _heads(self.to_q(tokens), 1, self.heads)
        key, value = _heads(self.inward(text), 2, self.heads)
        mixed = self.attend(query, key, value)
        if references is not None:
            mixed = with_references(mixed, query, self.attend, self.layer, references)
        return self.outward.onto(residual, _joined(mixed))


class Block(nn.Module):
    """diffusers' BasicTransformerBlock with layer norms: self-attention, attention to the text, a gated product."""

    def __init__(self, source: Any, attend: Attend, name: str = "") -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = source.norm1, source.norm2, source.norm3
        self.attn1 = SelfAttention(source.attn1, attend)
        self.attn2 = CrossAttention(source.attn2, attend, f"{name}.attn2")
        gated, last = source.ff.net[0].proj, source.ff.net[2]
        (value, gate), (value_bias, gate_bias) = gated.weight.data.chunk(2), gated.bias.data.chunk(2)
        self.value = Linear(value, _kept(value_bias.clone()))
        self.gate = Linear(gate, _kept(gate_bias.clone()))
        self.last = _linear(last)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None, **unused: Any,
    ) -> Tensor:  # fmt: skip
        references = (cross_attention_kwargs or {}).get("references")
        tokens = self.attn1(self.norm1(tokens), tokens)
        tokens = self.attn2(self.norm2(tokens), tokens, encoder_hidden_states, references)
        hidden = self.norm3(tokens)
        return self.last.onto(tokens, self.value.onto(self.gate(hidden, "gelu"), hidden, "mul"))


class Transformer(nn.Module):
    """diffusers' Transformer2DModel over images, its blocks packed before. In channels_last an image's pixels are its
    tokens, so nothing is copied between the two."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = source.norm, source.proj_in, source.proj_out
        self.transformer_blocks = source.transformer_blocks
        self.linear = source.use_linear_projection

    def forward(
        self, image: Tensor, encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None, **unused: Any,
    ) -> tuple[Tensor]:  # fmt: skip
        size = image.shape[-2:]
        hidden = self.norm(image)
        hidden = self.proj_in(_tokens(hidden)) if self.linear else _tokens(self.proj_in(hidden))
        for block in self.transformer_blocks:
            hidden = block(
                hidden, encoder_hidden_states=encoder_hidden_states, cross_attention_kwargs=cross_attention_kwargs
            )
        if self.linear:
            return (_image(self.proj_out.onto(_tokens(image), hidden), size),)
        return (self.proj_out.onto(image, _image(hidden, size)),)


def _tokens(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def _image(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    batch, _, channels = tokens.shape
    return tokens.view(batch, *size, channels).permute(0, 3, 1, 2)


def _heads(product: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    batch, tokens, _ = product.shape
    return product.view(batch, tokens, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind()


def _joined(mixed: Tensor) -> Tensor:
    return mixed.transpose(1, 2).flatten(2)


def _kept(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.data, requires_grad=False)


def _linear(source: Any) -> Linear:
    return Linear(source.weight.data, _kept(source.bias))


def _side_by_side(*sources: Any) -> Linear:
    biases = [source.bias.data for source in sources if source.bias is not None]
    bias = _kept(torch.cat(biases)) if biases else None
    return Linear(torch.cat([source.weight.data for source in sources]), bias)


# --- from diffusers' modules


class Packer:
    """Packs a module's layers one by one, each as soon as its last weight is filled in, so that only one layer's
    weights are in memory twice. Layers of any other kind stay as diffusers makes them."""

    def __init__(self, module: nn.Module, attend: Attend) -> None:
        self._module, self._attend = module, attend
        # the last weight of each layer → the layers and how they are packed, inner ones first
        self._waiting: dict[str, list[tuple[str, Callable[[Any], nn.Module]]]] = {}
        last = {path: key for key in module.state_dict() for path in _owners(key)}
        inside = [path for path, part in module.named_modules() if _whole(part)]
        for path, part in module.named_modules():
            packed = self._packing(path, part)
            if packed is not None and path in last and not any(path.startswith(f"{outer}.") for outer in inside):
                self._waiting.setdefault(last[path], []).insert(0, (path, packed))

    def __call__(self, key: str) -> None:
        """The weight called `key` is there."""
        for path, packed in self._waiting.pop(key, ()):
            above, _, leaf = path.rpartition(".")
            owner = self._module.get_submodule(above)
            setattr(owner, leaf, packed(owner.get_submodule(leaf)))

    def _packing(self, path: str, part: Any) -> Callable[[Any], nn.Module] | None:
        if type(part) is nn.Linear:
            return _linear
        if type(part) is nn.Conv2d:
            return Convolution
        if _whole(part):
            return partial(Block, attend=self._attend, name=path)
        return _WALKED[type(part).__name__] if _walked(part) else None


_WALKED: Mapping[str, Callable[[Any], nn.Module]] = {"ResnetBlock2D": Residual, "Transformer2DModel": Transformer}


def _owners(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _whole(part: Any) -> bool:
    """A block that is packed at once, from weights that are still plain."""
    if type(part).__name__ != "BasicTransformerBlock":
        return False
    plain = part.norm_type == "layer_norm" and part.pos_embed is None and not part.only_cross_attention
    attentions = [part.attn1, part.attn2] if part.attn2 is not None else []
    gated = type(part.ff.net[0]).__name__ == "GEGLU"
    return plain and gated and len(attentions) == 2 and all(map(_usual, attentions)) and not hasattr(part, "fuser")


def _usual(attention: Any) -> bool:
    extras = (
        attention.group_norm, attention.spatial_norm, attention.norm_q, attention.norm_k, attention.norm_cross,
        attention.add_k_proj,
    )  # fmt: skip
    return all(extra is None for extra in extras) and not attention.residual_connection


def _walked(part: Any) -> bool:
    """A module whose own steps are done here, with its layers packed before."""
    if type(part).__name__ == "ResnetBlock2D":
        return is_plain(part)
    if type(part).__name__ == "Transformer2DModel":
        return bool(part.is_input_continuous) and all(map(_whole, part.transformer_blocks))
    return False
