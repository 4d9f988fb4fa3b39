"""WakeSockets: datagrams that wake, and tell who is alive."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratekeeper.stores.members import WakeSockets


@pytest.fixture
def bells(tmp_path: Path) -> Iterator[WakeSockets]:
    """The doorbells of a folder."""
    made = WakeSockets(tmp_path / "wake")
    yield made
    made.close()


@pytest.fixture
def others(tmp_path: Path) -> Iterator[WakeSockets]:
    """Those of another process."""
    made = WakeSockets(tmp_path / "wake")
    yield made
    made.close()


def rung(bell: socket.socket) -> bool:
    """Whether somebody rang."""
    try:
        return bool(bell.recv(16))
    except BlockingIOError:
        return False


def dies(bells: WakeSockets) -> None:
    """What the kernel does for a process that is killed."""
    for bell in bells._own.values():
        bell.close()
    bells._own.clear()


def test_ringing_wakes_those_named(bells: WakeSockets, others: WakeSockets) -> None:
    """A ring is heard by the members named and by nobody else."""
    one, two = others.open(1), others.open(2)
    bells.wake([2])
    assert not rung(one)
    assert rung(two)


def test_living_are_counted_without_being_woken(bells: WakeSockets, others: WakeSockets) -> None:
    """Own and other members are alive; asking wakes nobody."""
    one, two = bells.open(1), others.open(2)
    assert bells.living() == others.living() == {1, 2}
    assert not rung(one)
    assert two.recv(16) == b""


def test_the_dead_are_forgotten(bells: WakeSockets, others: WakeSockets, tmp_path: Path) -> None:
    """The socket of a process that was killed is found dead, and removed."""
    bells.open(1)
    others.open(2)
    dies(others)
    assert bells.living() == {1}
    assert [path.name for path in (tmp_path / "wake").iterdir()] == [f"{1:016x}"]


def test_ringing_the_dead_or_unknown_is_no_error(bells: WakeSockets, others: WakeSockets) -> None:
    """Whoever is not there is not woken, and nobody minds."""
    others.open(2)
    dies(others)
    bells.wake([2, 3])
    assert bells.living() == set()


def test_a_full_queue_is_alive(bells: WakeSockets, others: WakeSockets) -> None:
    """A process that does not listen for a while is alive, and ringing it does not wait."""
    others.open(2)
    bells.wake([2] * 2000)
    assert bells.living() == {2}


def test_taking_down(bells: WakeSockets, others: WakeSockets) -> None:
    """A member that leaves is not alive; others of its process are; leaving twice is no error."""
    others.open(2)
    others.open(3)
    others.shut(2)
    others.shut(2)
    assert bells.living() == {3}
    others.close()
    assert bells.living() == set()


def test_a_forked_child_leaves_its_parents_bell(bells: WakeSockets, others: WakeSockets) -> None:
    """`abandon` closes copies only: the parent still hears."""
    mine = bells.open(1)
    child = WakeSockets(bells._folder)
    child._own[1] = mine.dup()
    child.abandon()
    others.wake([1])
    assert rung(mine)


def test_long_paths(tmp_path: Path) -> None:
    """A folder deeper than a socket's name may be long works all the same."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    deep = WakeSockets(tmp_path / ("d" * 120) / "wake")
    other = WakeSockets(tmp_path / ("d" * 120) / "wake")
    mine = deep.open(1)
    other.wake([1])
    assert rung(mine)
    assert other.living() == {1}
    other.close()
    deep.close()


def test_no_folder(tmp_path: Path) -> None:
    """Where there is no folder only own members are alive."""
    assert WakeSockets(tmp_path / "gone").living() == set()
