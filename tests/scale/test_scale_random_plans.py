"""Random lists on random sets of devices: the short form of `scripts/prove scale`."""

from __future__ import annotations

from scripts import random_plans


def test_whatever_the_list_and_the_devices_each_worker_draws_its_part_as_one_alone_would() -> None:
    found = list(random_plans.checked(20, seed=1))
    assert [each for each in found if each.wrong] == []
    assert sum(each.workers for each in found) > 40 and sum(each.images for each in found) > 40
