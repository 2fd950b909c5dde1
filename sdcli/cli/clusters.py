"""--engine ray[=ADDRESS]: the cluster that draws, for as long as a command lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sdcli.asking import planning

if TYPE_CHECKING:
    from sdcli.scale.cluster import Cluster


@contextlib.contextmanager
def joined(typed: Mapping[str, Any]) -> Iterator[Cluster | None]:
    """None where this machine draws."""
    address = planning.of_cluster(typed)
    if address is None:
        yield None
        return
    from sdcli.scale.cluster import Cluster

    with Cluster(address) as cluster:
        yield cluster
