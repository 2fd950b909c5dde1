"""Encoded prompts: plain ones equal diffusers', weighted and long ones equal a few plain lines of arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draw_samples import FAMILIES
from torch import Tensor

from sdcli.draw import encode
from sdcli.draw.encode import Encoder, Text
from sdcli.models.families import of_unet
from sdcli.request import tokenizer

PROMPTS = ("a cat on a red sofa", "", "Ein Bär, 2024: it's done?", "word " * 75)
LONG = "stone " * 110 + ", a (red:1.4) castle [in fog] " + "tree " * 90  # 200 tokens and more, weighted


def encoders(pipeline: Any) -> list[Encoder]:
    """Encoders as the family of the pipeline's UNet reads them."""
    family = of_unet(pipeline.unet.config)
    assert family is not None
    return [
        Encoder(getattr(pipeline, one.part), torch.device("cpu"), tokenizer.vocabulary(), one.pad, one.penultimate)
        for one in family.encoders
    ]


def encoded(pipeline: Any, text: str, clip_skip: int = 1, emphasis: str = "a1111") -> Text:
    chunks = tokenizer.chunks(text, emphasis)
    return encode.joined([
        encode.encode(encoder, chunks, clip_skip=clip_skip, emphasis=emphasis) for encoder in encoders(pipeline)
    ])  # fmt: skip


@torch.no_grad()
def from_diffusers(pipeline: Any, prompt: str, negative: str | None = None, **given: Any) -> tuple[Tensor, ...]:
    if hasattr(pipeline, "text_encoder_2"):
        found = pipeline.encode_prompt(
            prompt, device="cpu", do_classifier_free_guidance=True, negative_prompt=negative, **given
        )
        return tuple(found)
    return tuple(pipeline.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative, **given))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_prompts_equal_those_of_diffusers(pipelines: dict[str, Any], family: str, prompt: str) -> None:
    own, other = encoded(pipelines[family], prompt), encoded(pipelines[family], "blurry")
    embeds, negative, *pooled = from_diffusers(pipelines[family], prompt, "blurry")
    assert torch.equal(own.embeds, embeds)
    assert torch.equal(other.embeds, negative)
    if family == "sdxl":
        assert own.pooled is not None and other.pooled is not None
        assert torch.equal(own.pooled, pooled[0])
        assert torch.equal(other.pooled, pooled[1])


def test_an_exclamation_mark_is_a_word_to_both_of_sdxls_encoders(pipelines: dict[str, Any]) -> None:
    """As in training. diffusers' second tokenizer takes "!" for its padding token, which is also spelled "!"."""
    pipeline = pipelines["sdxl"]
    assert tokenizer.chunks("done!") == (((1700, 1.0), (256, 1.0)),)
    assert pipeline.tokenizer_2("done!", add_special_tokens=False).input_ids == [1700, 0]
    first = pipeline.text_encoder.config.hidden_size
    own, theirs = encoded(pipeline, "done!").embeds, from_diffusers(pipeline, "done!")[0]
    assert torch.equal(own[..., :first], theirs[..., :first])
    assert not torch.equal(own[..., first:], theirs[..., first:])


def test_sd15_clip_skip_is_a1111s_count_of_diffusers_skipped_layers(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["sd15"]
    encoder = pipeline.text_encoder
    if not hasattr(encoder, "text_model"):  # diffusers 0.42 looks for what transformers 5.6 has moved
        object.__setattr__(encoder, "text_model", encoder)
    try:
        for count in (2, 3):
            expected = from_diffusers(pipeline, "a cat", clip_skip=count - 1)[0]
            assert torch.equal(encoded(pipeline, "a cat", clip_skip=count).embeds, expected)
            assert not torch.equal(expected, encoded(pipeline, "a cat").embeds)
    finally:
        object.__delattr__(encoder, "text_model")


def test_sdxl_clip_skip_two_is_the_layer_it_was_trained_on_and_three_one_before(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["sdxl"]
    one, two, three = (encoded(pipeline, "a cat", clip_skip=count).embeds for count in (1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(two, from_diffusers(pipeline, "a cat")[0])
    assert torch.equal(three, from_diffusers(pipeline, "a cat", clip_skip=1)[0])


def by_hand(pipeline: Any, encoder: Encoder, rows: list[list[tuple[int, float]]], emphasis: str) -> Tensor:
    """Weights and chunks computed again, from the modules alone."""

    def states(ids: list[int]) -> Tensor:
        row = [49406, *ids, 49407] + [49407 if encoder.pad is None else encoder.pad] * (75 - len(ids))
        out = encoder.module(torch.tensor([row]), output_hidden_states=True)
        return out.hidden_states[-2] if encoder.penultimate else out.last_hidden_state

    parts = []
    with torch.no_grad():
        for row in rows:
            plain = states([token for token, _ in row])
            weights = torch.tensor([1.0, *[weight for _, weight in row], *[1.0] * (76 - len(row))])[None, :, None]
            if emphasis == "comfy":
                empty = states([])
                parts.append(empty + (plain - empty) * weights)
            elif (weights == 1).all():
                parts.append(plain)
            else:
                scaled = plain * weights
                parts.append(scaled * (plain.mean() / scaled.mean()))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("emphasis", ["a1111", "comfy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_200_tokens_equal_a_plain_calculation(
    pipelines: dict[str, Any], family: str, emphasis: str
) -> None:
    pipeline = pipelines[family]
    words = [
        ("stone " * 110 + ", a ", 1.0),
        ("red", 1.4),
        (" castle ", 1.0),
        ("[in fog]", 1.0) if emphasis == "comfy" else ("in fog", 1 / 1.1),  # square brackets are text to ComfyUI
        (" " + "tree " * 90, 1.0),
    ]
    tokenize = pipeline.tokenizer
    tokens = [(id, weight) for text, weight in words for id in tokenize(text, add_special_tokens=False).input_ids]
    comma = next(place for place, (token, _) in enumerate(tokens) if token == 267)
    assert comma == 110 and len(tokens) >= 200
    rows = [tokens[:75], tokens[75:150], tokens[150:]]
    own = encoded(pipeline, LONG, emphasis=emphasis)
    expected = torch.cat([by_hand(pipeline, encoder, rows, emphasis) for encoder in encoders(pipeline)], dim=-1)
    assert own.embeds.shape[1] == 3 * 77 and own.tokens == len(tokens)
    torch.testing.assert_close(own.embeds, expected, rtol=1e-5, atol=1e-6)
    plain = encoded(pipeline, "stone " * 75).pooled
    if plain is not None and own.pooled is not None:
        assert torch.equal(own.pooled, plain)  # the first chunk's, without its weights


def test_a_weight_of_one_and_emphasis_none_change_nothing(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["sd15"]
    assert torch.equal(encoded(pipeline, "a (red:1.0) cat").embeds, encoded(pipeline, "a red cat").embeds)
    assert not torch.equal(encoded(pipeline, "a (red:1.3) cat").embeds, encoded(pipeline, "a red cat").embeds)
    literal = from_diffusers(pipeline, "a (red:1.3) cat")[0]
    assert torch.equal(encoded(pipeline, "a (red:1.3) cat", emphasis="none").embeds, literal)


def test_filling_up_with_empty_chunks_equals_encoding_them(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["sdxl"]
    short, empty = encoded(pipeline, "a cat"), encoded(pipeline, "")
    filled = encode.padded(short, empty, 3)
    assert torch.equal(filled.embeds, torch.cat([short.embeds, empty.embeds, empty.embeds], dim=1))
    assert filled.pooled is short.pooled and filled.chunks == 3
    assert encode.padded(filled, empty, 2) is filled


def test_a_distilled_unet_gets_the_guidance_as_in_diffusers(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["sd15"]
    for guidance, width in ((7.5, 32), (1.0, 33)):
        expected = pipeline.get_guidance_scale_embedding(torch.tensor(guidance - 1).repeat(2), embedding_dim=width)
        own = encode.guidance_row(guidance, width, expected).repeat(2, 1)
        torch.testing.assert_close(own, expected, rtol=0, atol=0)
