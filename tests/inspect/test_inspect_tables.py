"""Tables add up, however they are summed; CSV and Markdown hold what the screen holds."""

from __future__ import annotations

import csv
import io

import pytest

from sdcli.errors import Usage
from sdcli.inspect import tables
from sdcli.inspect.facts import At, Inspection, inspect, to_json
from sdcli.inspect.source import of_family
from sdcli.terminal import cells


@pytest.fixture(scope="module")
def sd15() -> Inspection:
    return inspect(of_family("sd15"), At(width=512, height=512))


def test_every_sum_is_the_whole(sd15: Inspection) -> None:
    rows = tables.layers(sd15)
    assert len(rows) == len(sd15.unet.leaves)
    for summed in (
        rows,
        tables.by_kind(rows),
        tables.by_block(sd15, rows),
        *(tables.by_depth(rows, n) for n in (1, 2, 5)),
    ):
        assert sum(row.macs for row in summed) == sd15.unet.macs
        assert sum(row.parameters for row in summed) == 859_520_964
        assert sum(row.leaves for row in summed) == len(rows)


def test_kinds_are_the_published_shares(sd15: Inspection) -> None:
    kinds = {row.name: round(row.macs / 1e9, 1) for row in tables.by_kind(tables.layers(sd15))}
    assert kinds["ResNets"] == 172.3
    assert kinds["feed-forward"] == 76.8
    assert kinds["self-attention products"] + kinds["cross-attention products"] == pytest.approx(63.0, abs=0.06)
    assert kinds["down- and upsampling"] == 36.8
    assert kinds["self-attention projections"] == 25.6
    assert kinds["cross-attention projections"] == 14.3
    assert kinds["into and out of transformers"] == 12.8


def test_depth_counts_a_number_with_its_list(sd15: Inspection) -> None:
    rows = tables.layers(sd15)
    names = [row.name for row in tables.by_depth(rows, 1)]
    assert names[:4] == ["time_embedding", "conv_in", "down_blocks.0", "down_blocks.1"]
    assert "down_blocks.0.attentions.0" in [row.name for row in tables.by_depth(rows, 2)]


def test_rows_are_chosen_and_sorted(sd15: Inspection) -> None:
    rows = tables.layers(sd15)
    chosen = tables.ordered(tables.matching(rows, r"attn2\.attention$"), "macs")
    assert len(chosen) == 16
    assert [row.macs for row in chosen] == sorted((row.macs for row in chosen), reverse=True)
    blocks = tables.by_block(sd15, chosen)
    assert [row.name for row in blocks] == [b.name for b in sd15.unet.blocks if "CrossAttn" in b.type]
    assert sum(row.macs for row in blocks) == sum(row.macs for row in chosen)
    with pytest.raises(Usage, match="not a regular expression"):
        tables.matching(rows, "(")
    with pytest.raises(Usage, match="not one of call, name"):
        tables.ordered(rows, "size")


@pytest.mark.parametrize("width", [80, 100, 160])
def test_text_stays_within_its_width_and_keeps_whole_names(sd15: Inspection, width: int) -> None:
    rows = tables.layers(sd15)
    lines = tables.text(rows, sd15, width, view="layers")
    assert max(map(cells, lines)) <= width
    assert not any("…" in line for line in lines)
    for view, summed in (("sums", tables.by_kind(rows)), ("blocks", tables.by_block(sd15, rows))):
        lines = tables.text(summed, sd15, width, view=view)
        assert max(map(cells, lines)) <= width
        assert not any("…" in line for line in lines)
        assert lines[-1].endswith("GMAC (100 %)")


def test_csv_and_markdown_hold_every_row(sd15: Inspection) -> None:
    rows = tables.layers(sd15)
    read = list(csv.DictReader(io.StringIO(tables.as_csv(rows))))
    assert [row["name"] for row in read] == [row.name for row in rows]
    assert sum(int(row["macs"]) for row in read) == sd15.unet.macs
    assert read[2]["weight_shape"] == "320x4x3x3"
    lines = tables.as_markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {len(tables.FIELDS) + 1}


def test_the_json_matches_its_schema(sd15: Inspection) -> None:
    document = to_json(sd15)
    assert document["schema"] == "sdcli.unet/1"
    assert sum(layer["macs"] for layer in document["layers"]) == document["totals"]["macs"] == 401_636_720_640
    assert document["totals"]["flops"] == 2 * document["totals"]["macs"]
    assert sum(document["totals"]["macs_by_kind"].values()) == document["totals"]["macs"]
    assert document["totals"]["leaves"] == len(document["layers"])
    assert document["totals"]["bytes"] == 1_719_041_928
    assert [block["role"] for block in document["blocks"]] == ["time", "in", *["down"] * 4, "mid", *["up"] * 4, "out"]
    assert document["skips"][-1] == {
        "from": "conv_in",
        "to": "up_blocks.3.resnets.2",
        "channels": 320,
        "resolution": [64, 64],
        "concatenated_channels": 640,
    }
    assert document["conditioning"] == {
        "time_channels": 1280,
        "time_enters": 22,
        "text_channels": 768,
        "text_enters": 16,
    }
    assert document["measured"] is None
