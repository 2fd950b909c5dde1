"""How large the tiles are that a model enlarges at once: the largest that fit, since smaller ones overlap more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from sdcli.plan.forecast import Forecast
from sdcli.plan.plan import Budget, Decision, Setup
from sdcli.plan.techniques.technique import gib

STAGE, SLOT = "upscale", "upscaler_tile"
TILES = (1024, 512, 256, 128, 64)  # sides in pixels of what is given to a net at once
WHOLE = 0  # in the place of such a side


def settled(setup: Setup, forecast: Forecast, limits: Budget) -> Setup:
    """The setup with its tile; where no image is enlarged by a model, as it is."""
    if not forecast.model.upscalers:
        return setup
    ways = [replace(setup, upscaler_tile=tile) for tile in (WHOLE, *TILES)]
    return next((way for way in ways if _over(way, forecast, limits) <= 0), ways[-1])


def no_larger(setup: Setup, than: Setup) -> Setup:
    """With the tile of another setup, unless its own is smaller: a fallback that need not move pixels does not."""
    own, other = setup.upscaler_tile, than.upscaler_tile
    if own == other or (own and (not other or own < other)):
        return setup
    return replace(setup, upscaler_tile=other)


def smaller_tiles(tile: int, needs: Callable[[int], int]) -> Iterator[int]:
    """The tiles below it, those that need less, each than the one before."""
    least = needs(tile)
    for one in TILES:
        if (tile == WHOLE or one < tile) and (needed := needs(one)) < least:
            least = needed
            yield one


def _over(setup: Setup, forecast: Forecast, limits: Budget) -> int:
    """Bytes above the budget while an image is enlarged."""
    most = [row for row in forecast.phases(setup) if row.name == STAGE]
    return max((max(row.device - limits.device, row.host - limits.host) for row in most), default=0)


def decision(setup: Setup, forecast: Forecast, limits: Budget) -> Decision:
    whole, peak = replace(setup, upscaler_tile=WHOLE), forecast.peaks(setup)[0]
    if setup.upscaler_tile == WHOLE:
        because = "enlarged whole: tiles would take longer and change pixels slightly"
    else:
        over = gib(_over(whole, forecast, limits))
        because = f"enlarging the image whole needs {over} more than the budget; tiles of {setup.upscaler_tile} fit"
    return Decision(
        slot=SLOT, choice=str(setup.upscaler_tile or "whole"), because=because, source="auto", device_peak=peak,
        device_peak_without=forecast.peaks(whole)[0] if setup.upscaler_tile else None,
    )  # fmt: skip
