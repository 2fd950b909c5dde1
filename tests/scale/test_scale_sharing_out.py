"""Who draws what: whoever has nothing to do, what is left over first, and nobody waits for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sdcli.plan.batches import Batch
from sdcli.scale.sharing_out import READ_AHEAD, SharingOut


def batches(count: int) -> list[Batch]:
    return [(number, ()) for number in range(count)]


def numbers(taken: list[object]) -> list[int]:
    return [one.batch[0] for one in taken]  # type: ignore[attr-defined]


def all_read(sharing: SharingOut) -> None:
    while sharing._waiting and not sharing._ended:
        pass


def test_batches_are_taken_in_order_until_none_is_left() -> None:
    sharing = SharingOut(batches(3), ["one"])
    for expected in (0, 1, 2):
        (taken,) = sharing.take("one", 1.0)
        assert taken.batch[0] == expected
        sharing.finished(taken)
    assert sharing.take("one", 1.0) == [] and not sharing.left


def test_short_batches_are_taken_several_at_once_and_never_more_than_half_a_fair_share() -> None:
    sharing = SharingOut(batches(1000), ["fast", "slow"])
    sharing.take("fast", 1.0)
    sharing.drew("fast", 100, 1.0)
    sharing.drew("slow", 1, 1.0)
    while len(sharing._waiting) < 999:
        pass
    assert len(sharing.take("fast", 1.0)) == 64 and len(sharing.take("fast", 0.1)) == 10
    assert len(sharing.take("slow", 100.0)) == 4  # of 925 left a hundredth is its own
    sharing = SharingOut(batches(10), ["fast", "slow"])
    while len(sharing._waiting) < 10:
        pass
    sharing.drew("fast", 100, 1.0)
    assert len(sharing.take("fast", 1.0)) == 5


def test_what_a_worker_lost_is_drawn_next_and_alone_by_another() -> None:
    sharing = SharingOut(batches(5), ["one", "two"])
    taken = sharing.take("one", 1.0)
    for one in taken:
        one.tries, one.last = 1, "one"
    sharing.give_back("one", taken)
    assert numbers(sharing.take("one", 1.0)) == [1]  # not the one that it died of
    assert numbers(sharing.take("two", 1.0)) == [0]


def test_the_last_worker_tries_what_it_died_of_again() -> None:
    sharing = SharingOut(batches(1), ["one", "two"])
    taken = sharing.take("one", 1.0)
    taken[0].last = "one"
    sharing.give_back("one", taken)
    sharing.leave("two")
    assert sharing.take("one", 1.0) == taken


def test_what_takes_another_much_longer_is_drawn_a_second_time_and_goes_back_only_when_both_lost_it() -> None:
    sharing = SharingOut(batches(1), ["slow", "fast", "new"])
    (taken,) = sharing.take("slow", 1.0)
    sharing.drew("fast", 10, 1.0)
    while not sharing._ended:
        pass
    assert sharing._next("fast", 1.0) == []  # it was taken just now
    taken.since -= 3600
    assert sharing._next("new", 1.0) == [] and sharing._next("slow", 1.0) == []
    assert sharing.take("fast", 1.0) == [taken] and taken.by == ["slow", "fast"]
    assert sharing.is_first(taken, 0, "fast") and not sharing.is_first(taken, 0, "slow")
    sharing.give_back("fast", [taken])
    assert taken.by == ["slow"] and not sharing._again and sharing.left
    sharing.give_back("slow", [taken])
    assert sharing.take("new", 1.0) == [taken]


def test_an_idle_worker_waits_for_what_others_may_lose() -> None:
    sharing = SharingOut(batches(1), ["one", "two"])
    taken, found = sharing.take("one", 1.0), []
    waiting = threading.Thread(target=lambda: found.extend(sharing.take("two", 1.0)))
    waiting.start()
    sharing.give_back("one", taken)
    waiting.join(30)
    assert found == taken


def test_a_stream_is_read_as_it_is_needed() -> None:
    read = 0

    def stream() -> Iterator[Batch]:
        nonlocal read
        for batch in batches(10_000):
            read += 1
            yield batch

    sharing = SharingOut(stream(), ["one"])
    for _ in range(5):
        sharing.finished(*sharing.take("one", 1.0))
    while len(sharing._waiting) < READ_AHEAD:
        pass
    assert read <= READ_AHEAD + 6
    sharing.stop()
    assert sharing.take("one", 1.0) == []


def test_a_stream_that_cannot_be_read_ends_after_what_was_read_of_it() -> None:
    def stream() -> Iterator[Batch]:
        yield 0, ()
        raise ValueError("line 2")

    sharing = SharingOut(stream(), ["one"])
    sharing.finished(*sharing.take("one", 1.0))
    assert sharing.take("one", 1.0) == [] and isinstance(sharing.error, ValueError)


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_list_is_over_at_once(count: int) -> None:
    assert SharingOut([], ["one"][:count]).take("one", 1.0) == []
