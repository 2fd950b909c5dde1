"""The text encoders' published figures."""

from __future__ import annotations

import pytest

from sdcli import data
from sdcli.errors import BadFile, Usage
from sdcli.models import text


def test_clip_l_and_bigg_have_their_known_totals() -> None:
    large = text.analyse(data.component_config("sd15", "text_encoder"))
    assert (large.parameters, large.hidden, large.projection) == (123_060_480, 768, 0)
    assert round(large.macs / 1e9, 2) == 6.65
    biggest = text.analyse(data.component_config("sdxl", "text_encoder_2"))
    assert (biggest.parameters, biggest.hidden, biggest.projection) == (694_659_840, 1280, 1280)
    assert round(biggest.macs / 1e9, 1) == 48.9


def test_another_encoder_or_too_many_tokens_is_refused() -> None:
    config = data.component_config("sd15", "text_encoder")
    with pytest.raises(BadFile, match="T5EncoderModel"):
        text.analyse({**config, "architectures": ["T5EncoderModel"]})
    with pytest.raises(Usage, match="at most 77"):
        text.analyse(config, tokens=78)
