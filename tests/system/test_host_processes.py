"""The host store among real processes: bans, forks, threads, namespaces, and programs that sleep at the wrong moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.hand import SHOP, Worker, charges, now
from tests.support.notes import noted, write

from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Ask, Grant

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and forks")
CAPACITY = 300
OWN_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., list[Worker]]]:
    """Makes so many workers behind a safe share."""
    with ExitStack() as stack:

        def make(number: int, home: str = "h", **options: Any) -> list[Worker]:
            made = [Worker(tmp_path / home, CAPACITY, safe=True, patience=0.25, **options) for _ in range(number)]
            return [stack.enter_context(worker) for worker in made]

        yield make


def test_a_ban_holds_for_the_next_decision(workers: Callable[..., list[Worker]]) -> None:
    """What one process learns of a ban holds for another's next decision, however busy that is."""
    one, two = workers(2)
    assert two("spend", 5.0, 150) == 150  # busy: it takes its permits in batches now
    one("block", SHOP, 60)
    time.sleep(0.05)
    assert two("ask")[::2] == [False, "ban"]


def test_a_ban_survives_everybody(workers: Callable[..., list[Worker]], tmp_path: Path) -> None:
    """After all processes ended, also when the ledgers are lost, a new one knows the ban before its first call."""
    (one,) = workers(1)
    one("block", SHOP, 60)
    one.kill()
    (two,) = workers(1)
    assert two("ask")[2] == "ban"
    two.kill()
    shutil.rmtree(tmp_path / "h" / "ledgers")
    (three,) = workers(1)
    assert three("ask")[2] == "ban"


def test_a_ban_is_known_when_the_store_is_stuck(workers: Callable[..., list[Worker]]) -> None:
    """A new process that cannot get at the store knows of bans all the same."""
    (one,) = workers(1)
    one("block", SHOP, 60)
    one.stop_inside()
    (two,) = workers(1)
    assert two("ask")[2] == "ban"


def test_a_ban_learned_apart_reaches_those_who_are_apart(workers: Callable[..., list[Worker]]) -> None:
    """While the store is stuck, a ban that one process learns still stops another."""
    one, two, three = workers(3)
    one.stop_inside()
    assert two("ask")[0]
    assert three("ask")[0]
    two("block", SHOP, 60)
    end = time.monotonic() + 5
    while three("ask")[2] != "ban":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_who_sleeps_while_apart_is_not_forgotten(workers: Callable[..., list[Worker]]) -> None:
    """Two spend on their safe shares and fall asleep; the stopped one dies; a third, who noticed nothing, must not spend
    what they spent. When they wake up, all of it is written down."""
    stuck, one, two, third = workers(4)
    assert third("spend", 5.0, 10) == 10
    stuck.stop_inside()
    total = 10 + one("spend", 0.5) + two("spend", 0.5)
    assert total > 10
    for worker in (one, two):
        worker.process.send_signal(signal.SIGSTOP)
    stuck.kill()
    total += third("spend", 0.5)
    assert total <= CAPACITY
    for worker in (one, two):
        worker.go_on()
        total += worker("spend", 0.3)
    total += third("spend", 0.3)
    state = third("state")
    assert (total, state["inflight"], state["used"]) == (CAPACITY, 0, CAPACITY)


def test_fork(tmp_path: Path) -> None:
    """A forked child goes on with the same budget, in an environment of its own, and leaves its parent's permits alone."""
    store, plan = HostStore(tmp_path / "h", patience=5.0), charges(CAPACITY)
    held = [store.reserve(Ask(SHOP, plan, (), (1, 0), backlog=None), now()) for _ in range(10)]
    child = os.fork()
    if not child:
        got = sum(isinstance(store.reserve(Ask(SHOP, plan, (), (2, 0), backlog=None), now()), Grant) for _ in range(40))
        os._exit(got)
    mine = sum(isinstance(store.reserve(Ask(SHOP, plan, (), (1, 0), backlog=None), now()), Grant) for _ in range(40))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 40
    assert mine == 40
    assert not any(store.settle(grant, now()).late for grant in held if isinstance(grant, Grant))
    seen = store.read(now)
    assert (seen.ledgers[0].used, seen.ledgers[0].inflight) == (10, 80)
    store.close()


def test_a_child_keeps_no_lock(tmp_path: Path) -> None:
    """A child forked in the middle of a transaction that never calls us does not hold the lock of its dead parent."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\nfrom pathlib import Path\nfrom ratekeeper.stores.host import HostStore\n"
        "def inside():\n"
        "    if os.fork():\n        print('inside', flush=True)\n"
        "    time.sleep(30)\n    os._exit(0)\n"
        "HostStore(Path(sys.argv[1])).transact(inside)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "h"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "inside\n"
        time.sleep(0.1)
        parent.kill()
        parent.wait()
        store = HostStore(tmp_path / "h", patience=1.0)
        assert isinstance(store.reserve(Ask(SHOP, charges(1), (), (1, 0)), now()), Grant)
        store.close()
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        assert parent.stdout is not None
        parent.stdout.close()


def test_threads(workers: Callable[..., list[Worker]]) -> None:
    """Threads of two processes share the budget with no unit too many or too few."""
    one, two = workers(2)
    one.tell("threads", 6, 60)
    two.tell("threads", 6, 60)
    assert one.hear() + two.hear() == CAPACITY


def test_two_stores_of_a_folder_in_one_thread(tmp_path: Path) -> None:
    """A transaction of one store inside that of another, in one thread, is refused: it could only wait for itself."""
    one, two = HostStore(tmp_path / "h"), HostStore(tmp_path / "h")
    with pytest.raises(Exception, match="in the middle of a transaction"):
        one.transact(lambda: noted(two, "x"))
    assert write(two, "x", b"1") is None
    assert noted(one, "x") == b"1"
    one.close()
    two.close()


def test_two_homes_do_not_meet(workers: Callable[..., list[Worker]]) -> None:
    """Each folder is a budget of its own."""
    (one,), (two,) = workers(1), workers(1, home="other")
    assert [one("take", CAPACITY + 5), two("take", CAPACITY + 5)] == [CAPACITY, CAPACITY]


def test_a_lock_held_by_many_is_only_crowded(tmp_path: Path) -> None:
    """A process that waits long for its turn while others' transactions go on does not take the store for lost."""
    store = HostStore(tmp_path / "h", patience=0.6)
    write(store, "x", b"1")
    # The other one never lets go of the lock between its transactions, for twice our patience.
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom ratekeeper.stores.host import HostStore\n"
        "store = HostStore(Path(sys.argv[1]), patience=5.0)\nstore.update('z', bytes, lambda *_: (b'', None))\n"
        "store._environment._take_lock(1.0)\nprint('ready', flush=True)\nend = time.monotonic() + 1.2\n"
        "while time.monotonic() < end:\n"
        "    txn = store._environment._env.begin(write=True)\n    txn.put(b'Ny', b'%d' % time.monotonic_ns())\n"
        "    txn.commit()\n    time.sleep(0.01)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "h"], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        begin = time.monotonic()
        assert noted(store, "x") == b"1"
        assert time.monotonic() - begin > 0.6
    store.close()


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode != 0,
    reason="no right to make PID namespaces",
)
def test_pid_namespaces(workers: Callable[..., list[Worker]]) -> None:
    """Containers that share the folder share the budget, although their process numbers collide."""
    crew = [*workers(2, prefix=OWN_NAMESPACE), *workers(1)]
    for worker in crew:
        worker.tell("spend", 10.0, CAPACITY // 3)
    assert [worker.hear() for worker in crew] == [CAPACITY // 3] * 3
    for worker in crew:
        assert worker("take", 1) == 0
        assert worker("state")["said"] == []
    assert crew[0]("state")["members"] == 3
