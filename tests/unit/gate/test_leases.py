"""What is held while something is open."""

from __future__ import annotations

import gc
import threading

import pytest

from ratekeeper.gate.leases import Leases


class Open:
    """Something open, that counts."""

    def __init__(self, *, holds: bool = True) -> None:
        self.holds = holds
        self.closed = 0
        self.renewed = threading.Event()

    def renew(self) -> None:
        """Note it."""
        self.renewed.set()

    def close(self) -> None:
        """Note it."""
        self.closed += 1


@pytest.fixture
def quick() -> Leases:
    """One that renews a thousand times as often."""
    return Leases(0.015)


def helpers() -> list[threading.Thread]:
    """Threads that renew."""
    return [thread for thread in threading.enumerate() if thread.name == "ratekeeper-leases"]


def test_what_is_open_is_renewed_until_it_is_removed(quick: Leases) -> None:
    """One that holds nothing is left alone; when nothing is left the thread ends, and begins again with the next."""
    one, idle = Open(), Open(holds=False)
    for each in (one, idle):
        quick.add(each)
    assert one.renewed.wait(10)
    assert not idle.renewed.is_set()
    for each in (one, idle):
        quick.remove(each, "its name")
    for thread in helpers():
        thread.join(10)
    assert not helpers()
    another = Open()
    quick.add(another)
    assert another.renewed.wait(10)
    quick.close()
    for thread in helpers():
        thread.join(10)
    assert not helpers()


def test_what_nobody_refers_to_is_forgotten(quick: Leases) -> None:
    """Its lease ends by itself, and so does the thread."""
    quick.add(Open())
    gc.collect()
    for thread in helpers():
        thread.join(10)
    assert not helpers()


def test_all_is_given_back_at_the_end(quick: Leases) -> None:
    """Each once."""
    several = [Open() for _ in range(3)]
    for each in several:
        quick.add(each)
    quick.close()
    assert [each.closed for each in several] == [1, 1, 1]


def test_names_are_used_again() -> None:
    """A name is of one thing at a time."""
    names = Leases()
    first, second = names.name(), names.name()
    assert first != second
    names.remove(Open(), first)
    assert names.name() == first
    assert names.name() not in (first, second)
