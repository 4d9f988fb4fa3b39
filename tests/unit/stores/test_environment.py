"""The files of a folder, the lock in front of them, and what becomes of broken ones."""

from __future__ import annotations

import fcntl
import gc
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from ratekeeper.errors import StoreUnavailable, StoreVersionError
from ratekeeper.stores.blocks import boot_id
from ratekeeper.stores.environment import Environment


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder's lock as another process would."""
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    """An environment with so much patience that a loaded machine does not count as a stopped process."""
    made = Environment(tmp_path / "h", 20.0)
    yield made
    made.close()


def put(environment: Environment, name: bytes, value: bytes) -> None:
    """Write a record."""
    txn = environment.begin()
    txn.put(name, value)
    environment.commit()


def get(environment: Environment, name: bytes) -> bytes | None:
    """Read a record."""
    txn = environment.begin()
    value: bytes | None = txn.get(name)
    environment.abort()
    return value


def again(environment: Environment) -> None:
    """Let the next transaction look at the files themselves."""
    environment._checked = 0


def test_one_for_each_folder(tmp_path: Path) -> None:
    """A folder, by whatever path, is opened once in a process, and let go of with its last user."""
    (tmp_path / "link").symlink_to(tmp_path / "h")
    one = Environment.of(tmp_path / "h", 1.0)
    put(one, b"name", b"value")
    assert Environment.of(tmp_path / "link", 1.0) is one
    assert Environment.of(tmp_path / "other", 1.0) is not one
    del one
    gc.collect()
    assert get(Environment.of(tmp_path / "h", 1.0), b"name") == b"value"


def test_a_boot_has_one_name() -> None:
    """Asked twice, the boot is the same."""
    assert boot_id() == boot_id() != ""


def test_only_its_owner_may_read(environment: Environment) -> None:
    """The folder and its files are closed to others."""
    put(environment, b"name", b"value")
    for path in (environment.folder, environment.folder / "ledgers"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (environment.folder / "lock", environment.folder / "ledgers" / "data.mdb"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_aborted_is_not_written(environment: Environment) -> None:
    """What was thrown away is not there, and the lock is free."""
    txn = environment.begin()
    txn.put(b"name", b"value")
    environment.abort()
    assert get(environment, b"name") is None


def test_the_lock_is_waited_for_with_a_deadline(environment: Environment) -> None:
    """A lock that is held too long is an error in due time, not a hanging program; afterwards all is well."""
    put(environment, b"name", b"value")
    environment.patience = 0.05
    with held(environment.folder):
        begin = time.monotonic()
        with pytest.raises(StoreUnavailable, match="stopped"):
            environment.begin()
        assert 0.05 <= time.monotonic() - begin < 5
        with pytest.raises(StoreUnavailable):
            environment.begin(0.0)
    environment.patience = 20.0
    assert get(environment, b"name") == b"value"


def test_the_lock_is_taken_when_it_comes_free(environment: Environment) -> None:
    """A lock that comes free within the patience is taken."""
    put(environment, b"name", b"value")
    free = threading.Event()

    def hold() -> None:
        with held(environment.folder):
            holding.set()
            free.wait(20)

    holding = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(20)
    threading.Timer(0.02, free.set).start()
    assert get(environment, b"name") == b"value"
    thread.join()


def test_peeking_needs_no_lock(environment: Environment) -> None:
    """What was written last can be read while another holds the lock, also by a process that never opened the files."""
    put(environment, b"name", b"value")
    newcomer = Environment(environment.folder, 20.0)
    with held(environment.folder):
        assert environment.peek(b"name") == b"value"
        assert environment.peek(b"other") is None
        environment.close()
        assert newcomer.peek(b"name") == b"value"
    assert get(newcomer, b"name") == b"value"
    newcomer.close()


@pytest.mark.parametrize(("name", "value"), [(b"!boot", b"another"), (b"!version", b"99")])
def test_peeking_believes_no_other_boot_or_version(environment: Environment, name: bytes, value: bytes) -> None:
    """A newcomer takes nothing from ledgers of another boot or of a newer format, nor from none."""
    with pytest.raises(StoreUnavailable):
        environment.peek(b"name")
    put(environment, name, value)
    environment.close()
    with pytest.raises(StoreUnavailable):
        environment.peek(b"name")


def test_state_changes_with_every_write(environment: Environment) -> None:
    """The number of the last transaction grows with each that wrote, and with no other."""
    put(environment, b"name", b"1")
    before = environment.state()
    assert get(environment, b"name") == b"1"
    assert environment.state() == before
    put(environment, b"name", b"2")
    assert environment.state() != before


def test_written_too_late_is_said(environment: Environment) -> None:
    """Who held the lock beyond the patience is told that others may not have waited."""
    environment.begin()
    environment._begun -= 10**11
    with pytest.raises(StoreUnavailable, match="others did not wait"):
        environment.commit()
    assert get(environment, b"name") is None


def test_no_transaction_within_another(environment: Environment) -> None:
    """A thread in the middle of a transaction cannot begin a second one: it would wait for itself."""
    environment.begin()
    with pytest.raises(StoreUnavailable, match="in the middle"):
        environment.begin()
    environment.abort()


def test_a_newer_format_is_left_alone(environment: Environment) -> None:
    """A newer version's files are an error of its own, again and again, and are not laid aside."""
    put(environment, b"!version", b"2")
    environment.close()
    for _ in range(2):
        with pytest.raises(StoreVersionError, match="format 2"):
            environment.begin()
    assert sorted(path.name for path in environment.folder.iterdir()) == ["ledgers", "lock"]


def test_broken_files_are_laid_aside_once(environment: Environment) -> None:
    """Noise is laid aside, twice over; the new store says since when it is new."""
    for _ in range(2):
        put(environment, b"name", b"value")
        environment.close()
        (environment.folder / "ledgers" / "data.mdb").write_bytes(b"noise" * 4096)
        assert get(environment, b"name") is None
        assert environment.rebuilt
        assert int(get(environment, b"!rebuilt") or b"0") <= time.monotonic_ns()
    assert (environment.folder / "ledgers.broken" / "data.mdb").read_bytes() == b"noise" * 4096


def test_another_boot(environment: Environment) -> None:
    """Ledgers of another boot are laid aside as old, not as broken."""
    put(environment, b"!boot", b"another")
    environment.close()
    assert get(environment, b"!boot") == boot_id().encode()
    assert environment.rebuilt == "reboot"
    assert (environment.folder / "ledgers.old").exists()


def test_removed_files_are_noticed(environment: Environment) -> None:
    """Files that were removed under us are begun anew as lost, with the lock that others see."""
    put(environment, b"name", b"value")
    environment.folder.rename(environment.folder.with_name("elsewhere"))
    again(environment)
    assert get(environment, b"!rebuilt") is not None
    with held(environment.folder), pytest.raises(StoreUnavailable):
        environment.begin(0.0)


def test_replaced_files_are_opened_anew(environment: Environment) -> None:
    """Who finds other files under the old name works on those."""
    put(environment, b"name", b"old")
    other = Environment(environment.folder.with_name("other"), 1.0)
    put(other, b"name", b"new")
    other.close()
    environment.folder.rename(environment.folder.with_name("old"))
    other.folder.rename(environment.folder)
    again(environment)
    assert get(environment, b"name") == b"new"


def test_a_file_that_was_cut_is_not_touched(environment: Environment) -> None:
    """To read beyond a file's end would kill the process: it is looked at before."""
    put(environment, b"name", b"value" * 700)
    os.truncate(environment.folder / "ledgers" / "data.mdb", 0)
    again(environment)
    assert get(environment, b"name") is None
    assert "cut off" in environment.rebuilt


def test_lmdb_makes_no_lock_file(environment: Environment) -> None:
    """LMDB would write into a lock file of its own through memory: on a full disk that would kill the process."""
    put(environment, b"name", b"value")
    assert [path.name for path in (environment.folder / "ledgers").iterdir()] == ["data.mdb"]


def test_an_error_of_the_files_is_ours(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """What LMDB or the system says when it cannot open becomes a StoreUnavailable, and the lock is free again."""
    for error in (lmdb.Error("odd"), PermissionError(13, "Permission denied")):

        def refuse(*_: object, problem: Exception = error, **__: object) -> None:
            raise problem

        with monkeypatch.context() as patch:
            patch.setattr(lmdb, "open", refuse)
            with pytest.raises(StoreUnavailable, match=r"odd|Permission denied"):
                environment.begin()
        put(environment, b"name", b"value")
        environment.close()
