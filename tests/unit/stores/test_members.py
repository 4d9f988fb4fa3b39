"""WakeSockets: datagrams that wake, and tell who is alive."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratekeeper.stores.members import WakeSockets


@pytest.fixture
def wake_sockets(tmp_path: Path) -> Iterator[WakeSockets]:
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


def rung(wake_socket: socket.socket) -> bool:
    """Whether somebody rang."""
    try:
        return bool(wake_socket.recv(16))
    except BlockingIOError:
        return False


def dies(wake_sockets: WakeSockets) -> None:
    """What the kernel does for a process that is killed."""
    for wake_socket in wake_sockets._own.values():
        wake_socket.close()
    wake_sockets._own.clear()


def test_ringing_wakes_those_named(wake_sockets: WakeSockets, others: WakeSockets) -> None:
    """A ring is heard by the members named and by nobody else."""
    one, two = others.open(1), others.open(2)
    wake_sockets.wake([2])
    assert not rung(one)
    assert rung(two)


def test_living_are_counted_without_being_woken(wake_sockets: WakeSockets, others: WakeSockets) -> None:
    """Own and other members are alive; asking wakes nobody."""
    one, two = wake_sockets.open(1), others.open(2)
    assert wake_sockets.living() == others.living() == {1, 2}
    assert not rung(one)
    assert not rung(two)


def test_the_dead_are_forgotten(wake_sockets: WakeSockets, others: WakeSockets, tmp_path: Path) -> None:
    """The socket of a process that was killed is found dead, and removed."""
    wake_sockets.open(1)
    others.open(2)
    dies(others)
    assert wake_sockets.living() == {1}
    assert [path.name for path in (tmp_path / "wake").iterdir()] == [f"{1:016x}"]


def test_ringing_the_dead_or_unknown_is_no_error(wake_sockets: WakeSockets, others: WakeSockets) -> None:
    """Whoever is not there is not woken, and nobody minds."""
    others.open(2)
    dies(others)
    wake_sockets.wake([2, 3])
    assert wake_sockets.living() == set()


def test_a_full_queue_is_alive(wake_sockets: WakeSockets, others: WakeSockets) -> None:
    """A process that does not listen for a while is alive, and ringing it does not wait."""
    others.open(2)
    wake_sockets.wake([2] * 2000)
    assert wake_sockets.living() == {2}


def test_taking_down(wake_sockets: WakeSockets, others: WakeSockets) -> None:
    """A member that leaves is not alive; others of its process are; leaving twice is no error."""
    others.open(2)
    others.open(3)
    others.shut(2)
    others.shut(2)
    assert wake_sockets.living() == {3}
    others.close()
    assert wake_sockets.living() == set()


def test_a_forked_child_leaves_its_parents_bell(wake_sockets: WakeSockets, others: WakeSockets) -> None:
    """`abandon` closes copies only: the parent still hears."""
    mine = wake_sockets.open(1)
    child = WakeSockets(wake_sockets._folder)
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
