"""A store that is broken, cut, full, read-only, too new or gone: a clear error or a new beginning, bans kept, no open tap."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import lmdb
import pytest
from tests.support.hand import SHOP, Worker, charges, now
from tests.support.notes import write

from ratekeeper.errors import StoreUnavailable, StoreVersionError
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Ask, Grant

CAPACITY, PAGE = 300, 4096
Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers on one home."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Worker(tmp_path / "h", CAPACITY, **options))


@pytest.fixture
def used_home(tmp_path: Path) -> Path:
    """A home whose limit of an hour has half of it spent, where another owner is banned, and which nobody uses now."""
    with Worker(tmp_path / "h", CAPACITY) as worker:
        worker("take", CAPACITY // 2)
        worker("settle")
        worker("block", "other", 600)
        worker.end()
    return tmp_path / "h"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zero length": lambda raw: b"",
    "cut within a page": lambda raw: raw[: 2 * PAGE + 1808],
    "cut to its head": lambda raw: raw[: 2 * PAGE],
    "cut to half": lambda raw: raw[: len(raw) // 2 // PAGE * PAGE],
    "noise": lambda raw: os.urandom(len(raw)),
    "zeros": lambda raw: bytes(len(raw)),
    "noise behind the head": lambda raw: raw[: 2 * PAGE] + os.urandom(len(raw) - 2 * PAGE),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_before_it_is_opened(used_home: Path, start: Start, damage: Callable[[bytes], bytes]) -> None:
    """Damaged ledgers are laid aside: the ban is in force before the first call, and half of the limit counts as spent."""
    data = used_home / "ledgers" / "data.mdb"
    data.write_bytes(damage(data.read_bytes()))
    worker = start()
    assert worker("state")["blocks"] == ["other"]
    assert worker("take", CAPACITY) <= CAPACITY // 2
    state = worker("state")
    assert state["rebuilt"]
    assert state["used"] + state["inflight"] <= CAPACITY
    assert (used_home / "ledgers.broken" / "data.mdb").exists()


def test_the_file_is_missing(used_home: Path, start: Start) -> None:
    """Ledgers that are gone without the folder are a loss too: no fresh budget."""
    (used_home / "ledgers" / "data.mdb").unlink()
    worker = start()
    assert worker("take", CAPACITY) == CAPACITY // 2
    assert worker("state")["blocks"] == ["other"]


def test_a_short_window_starts_as_used_up(tmp_path: Path) -> None:
    """After a loss a limit of a minute grants nothing until a minute is over, then all of it."""
    home, plan = tmp_path / "h", charges(CAPACITY, period=60)
    with Worker(home, CAPACITY) as worker:
        worker("take", 1)
    (home / "ledgers" / "data.mdb").write_bytes(b"")
    with closing(HostStore(home, patience=5.0)) as store:
        no = store.reserve(Ask(SHOP, plan, (SHOP,), (7, 0), backlog=None), now())
        assert isinstance(no, Refusal)
        assert 50 * SECOND < no.available_at - now().mono <= 61 * SECOND
        later = Instant(*(clock + 61 * SECOND for clock in now()))
        assert isinstance(store.reserve(Ask(SHOP, plan, (SHOP,), (7, 0), backlog=None), later), Grant)


def test_one_ledger_is_garbled(used_home: Path) -> None:
    """A record that is no ledger counts as lost; the rest of the store stays."""
    with lmdb.open(str(used_home / "ledgers")) as env, env.begin(write=True) as txn, txn.cursor() as cursor:
        assert cursor.set_range(b"L")
        assert txn.put(bytes(cursor.key()), b"not a ledger")
    with closing(HostStore(used_home, patience=5.0)) as store:
        plan, granted = charges(CAPACITY), 0
        while isinstance(store.reserve(Ask(SHOP, plan, (SHOP,), (7, 0), backlog=None), now()), Grant):
            granted += 1
        assert granted <= CAPACITY // 2
        assert not store.rebuilt()


def test_ledgers_of_another_boot(used_home: Path, start: Start) -> None:
    """After a restart of the machine the ledgers begin anew, by half for an hour's limit, and the ban is still there."""
    with lmdb.open(str(used_home / "ledgers")) as env, env.begin(write=True) as txn:
        txn.put(b"!boot", b"another")
    worker = start()
    assert worker("state")["blocks"] == ["other"]
    assert worker("take", CAPACITY) == CAPACITY // 2
    assert worker("state")["rebuilt"] == "reboot"


def test_written_by_a_newer_version(used_home: Path, start: Start) -> None:
    """A newer format is an error that says to upgrade, or the safe share; the files stay as they are; bans hold."""
    with lmdb.open(str(used_home / "ledgers")) as env, env.begin(write=True) as txn:
        txn.put(b"!version", b"2")
    before = (used_home / "ledgers" / "data.mdb").read_bytes()
    with closing(HostStore(used_home)) as store, pytest.raises(StoreVersionError, match="upgrade"):
        store.reserve(Ask(SHOP, charges(CAPACITY), (SHOP,), (7, 0), backlog=None), now())
    worker = start(safe=True, patience=0.25)
    assert worker("take", CAPACITY) <= CAPACITY // 2
    assert worker("state")["said"] == ["store lost"]
    worker("block", "shop", 600)
    assert worker("ask")[2] == "ban"
    assert start(safe=True, patience=0.25)("ask")[2] == "ban"
    assert (used_home / "ledgers" / "data.mdb").read_bytes() == before


def cut(home: Path) -> None:
    """Cut the file off behind its head."""
    os.truncate(home / "ledgers" / "data.mdb", 4 * PAGE)


def noise(home: Path) -> None:
    """Overwrite the file in its place."""
    with (home / "ledgers" / "data.mdb").open("r+b") as file:
        file.write(os.urandom(os.fstat(file.fileno()).st_size))


LOSSES: dict[str, Callable[[Path], None]] = {
    "folder": shutil.rmtree,
    "ledgers": lambda home: shutil.rmtree(home / "ledgers"),
    "file": lambda home: (home / "ledgers" / "data.mdb").unlink(),
    "cut": cut,
    "noise": noise,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_lost_while_in_use(tmp_path: Path, start: Start, loss: Callable[[Path], None]) -> None:
    """Lost under two running processes: both go on in one new store, by half, and newcomers find the ban in it."""
    two = [start(safe=True) for _ in range(2)]
    assert sum(worker("take", 100) for worker in two) == 200
    two[0]("block", "other", 600)
    two[1]("ask")
    time.sleep(0.3)  # a busy process has written what it had pending
    loss(tmp_path / "h")
    time.sleep(0.2)  # the files are looked at ten times a second
    granted = sum(worker("take", CAPACITY) for worker in two)
    time.sleep(0.1)
    granted += sum(worker("take", CAPACITY) for worker in two)
    assert granted <= CAPACITY // 2
    late = start(safe=True)
    assert late("take", CAPACITY) == CAPACITY // 2 - granted
    for worker in (*two, late):
        state = worker("state")
        assert state["blocks"] == ["other"]
        assert state["degraded"] == ""
        assert state["used"] + state["inflight"] == CAPACITY


def mounts() -> bool:
    """Whether this user may mount in a namespace of its own."""
    try:
        words = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


mounting = pytest.mark.skipif(not mounts(), reason="may not mount")


def mounted(home: Path, how: str) -> list[str]:
    """Words before a command that give it a mount of its own at `home`."""
    home.mkdir(exist_ok=True)
    return ["unshare", "-m", "sh", "-c", f'{how.format(home)} && exec "$@"', "sh"]


def outside(worker: Worker, path: Path) -> Path:
    """A path in a worker's mounts, as the test sees it."""
    return Path(f"/proc/{worker.process.pid}/root{path}")


def fill_disk(folder: Path) -> Path:
    """Leave no byte free; returns the file to delete."""
    with (folder / "filling").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            return folder / "filling"


@mounting
@pytest.mark.parametrize("begun", [False, True], ids=["before the first opening", "while in use"])
def test_full_disk(tmp_path: Path, start: Start, begun: bool) -> None:
    """On a full disk processes live on with the safe share and know a ban; with space again all of it is written down."""
    home = tmp_path / "h"
    how = "mount -t tmpfs -o size=1m none {0}" + ("" if begun else "; dd if=/dev/zero of={0}/filling 2>/dev/null; true")
    worker = start(safe=True, patience=0.25, prefix=mounted(home, how))
    taken = worker("take", 3) if begun else 0
    filling = fill_disk(outside(worker, home)) if begun else outside(worker, home) / "filling"
    for _ in range(300):
        worker("note", 3000)  # the store must grow
        if "store lost" in worker("state")["said"]:
            break
    assert "No space" in worker("state")["degraded"]
    taken += worker("take", CAPACITY)
    assert taken <= CAPACITY
    worker("block", "shop", 600)
    assert worker("ask")[2] == "ban"
    filling.unlink()
    time.sleep(0.2)
    assert worker("ask")[2] == "ban"
    state = worker("state")
    assert state["said"] == ["store lost", "store back"]
    assert (state["inflight"], state["permits"], state["blocks"]) == (taken, taken, ["shop"])


@mounting
def test_read_only_folder(used_home: Path, start: Start) -> None:
    """In a folder that cannot be written: a clear error, the safe share, and the bans that are in it."""
    worker = start(
        safe=True, patience=0.25, prefix=mounted(used_home, "mount --bind {0} {0} && mount -o remount,bind,ro {0}")
    )
    assert worker("take", CAPACITY) <= CAPACITY // 2
    state = worker("state")
    assert state["said"] == ["store lost"]
    assert "Read-only" in state["degraded"]
    worker("block", "shop", 600)
    assert worker("ask")[2] == "ban"


@mounting
def test_read_only_and_empty(tmp_path: Path, start: Start) -> None:
    """The same for a folder in which nobody ever was: an error, not a crash, and never the whole limit twice."""
    how = mounted(tmp_path / "h", "mount -t tmpfs -o ro none {0}")
    assert start(prefix=how)("take", 1)["error"] == StoreUnavailable.__name__
    worker = start(safe=True, patience=0.25, prefix=how)
    assert worker("take", 2 * CAPACITY) <= CAPACITY
    assert worker("state")["said"] == ["store lost"]


def test_the_home_is_a_file(tmp_path: Path) -> None:
    """A home that is no folder is a clear error."""
    (tmp_path / "h").write_text("x")
    with closing(HostStore(tmp_path / "h")) as store, pytest.raises(StoreUnavailable, match=str(tmp_path / "h")):
        write(store, "topic", b"x")
