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


def ended(leases: Leases) -> bool:
    """Whether no thread renews any more, after ten seconds at most."""
    thread = leases._thread
    if thread is not None:
        thread.join(10)
    return thread is None or not thread.is_alive()


def test_what_is_open_is_renewed_until_it_is_removed(quick: Leases) -> None:
    """One that holds nothing is left alone; when nothing is left the thread ends, and begins again with the next."""
    one, idle = Open(), Open(holds=False)
    for each in (one, idle):
        quick.add(each)
    assert one.renewed.wait(10)
    assert not idle.renewed.is_set()
    for each in (one, idle):
        quick.remove(each, "its name")
    assert ended(quick)
    another = Open()
    quick.add(another)
    assert another.renewed.wait(10)
    quick.close()
    assert ended(quick)


def test_what_nobody_refers_to_is_forgotten(quick: Leases) -> None:
    """Its lease ends by itself, and so does the thread."""
    quick.add(Open())
    gc.collect()
    assert ended(quick)


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


def test_one_that_fails_does_not_keep_the_others_from_their_renewal(
    quick: Leases, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread goes on, and the failure is told once, without the text of the error."""

    class Failing(Open):
        def renew(self) -> None:
            super().renew()
            raise RuntimeError("apiKey=SECRET")

    failing, sound = Failing(), Open()
    for each in (failing, sound):
        quick.add(each)
    for _ in range(3):
        assert failing.renewed.wait(10) and sound.renewed.wait(10)
        failing.renewed.clear()
        sound.renewed.clear()
    quick.close()
    assert ended(quick)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "'leases' failed (RuntimeError at " in said[0] and "SECRET" not in caplog.text
