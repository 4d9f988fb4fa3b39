"""Where kept answers lie: one suite for every kind of storage."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.server import Server

from ratekeeper.stores.redis.address import parse_address
from ratekeeper.stores.redis.connection import Connection
from ratekeeper.stores.responses import FileResponses, MemoryResponses, ResponseStorage, ServerResponses

KEY, OTHER = b"\x01" * 16, b"\x02" * 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server."""
    with Server(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture(params=["memory", "file", "server"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> ResponseStorage:
    """Each kind, for 4000 bytes."""
    if request.param == "memory":
        return MemoryResponses(4000)
    if request.param == "file":
        return FileResponses(tmp_path / "answers", 4000)
    connection = Connection(parse_address(request.getfixturevalue("server").url))
    connection.redis.flushall()
    return ServerResponses(connection, 4000)


def test_what_is_put_is_there(storage: ResponseStorage) -> None:
    """Under its key, whatever the bytes; the last one counts."""
    assert storage.get(KEY) is None
    for value in (b"one", b"", bytes(range(256)), b" 12 blanks "):
        storage.put(KEY, value, 60)
        assert storage.get(KEY) == value
    assert storage.get(OTHER) is None


def test_it_ends(storage: ResponseStorage) -> None:
    """After its time nobody gets it."""
    storage.put(KEY, b"x", 0.1)
    assert storage.get(KEY) == b"x"
    time.sleep(0.15)
    assert storage.get(KEY) is None


def test_it_is_bounded(storage: ResponseStorage) -> None:
    """Much more than fits: what is kept is little, and the last is among it."""
    for number in range(400):
        storage.put(number.to_bytes(16, "big"), b"v" * 100, 60)
    kept = [number for number in range(400) if storage.get(number.to_bytes(16, "big")) is not None]
    assert 399 in kept
    assert len(kept) <= (40 if not isinstance(storage, FileResponses) else 40 + 32)


def test_what_never_fits_is_not_kept(storage: ResponseStorage) -> None:
    """And drives nothing else out."""
    storage.put(KEY, b"small", 60)
    storage.put(OTHER, b"v" * 5000, 60)
    assert storage.get(OTHER) is None
    assert storage.get(KEY) == b"small"


def test_many_threads(storage: ResponseStorage) -> None:
    """Nobody ever reads half an answer."""
    wrong: list[bytes] = []

    def work(letter: bytes) -> None:
        for _ in range(60):
            storage.put(KEY, letter * 1500, 60)
            found = storage.get(KEY)
            if found is not None and (len(found) != 1500 or len(set(found)) != 1):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_a_file_is_for_all_processes_and_only_its_owner(tmp_path: Path) -> None:
    """Another process finds it; nobody else may read it."""
    FileResponses(tmp_path / "answers", 4000).put(KEY, b"shared", 60)
    code = (
        "import sys; from pathlib import Path; from ratekeeper.stores.responses import FileResponses;"
        "print(FileResponses(Path(sys.argv[1]), 4000).get(b'\\x01' * 16))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "answers"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "b'shared'"
    assert (tmp_path / "answers").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "answers").iterdir()} == {0o600}


def test_another_boot_s_answers_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their instants mean nothing now."""
    FileResponses(tmp_path, 4000).put(KEY, b"old", 3600)
    monkeypatch.setattr("ratekeeper.stores.responses.boot_id", lambda: "another")
    assert FileResponses(tmp_path, 4000).get(KEY) is None


@pytest.mark.parametrize("broken", [b"", b"garbage", b"\xff" * 50])
def test_a_broken_file_is_a_miss(tmp_path: Path, broken: bytes) -> None:
    """And is written anew."""
    (tmp_path / KEY.hex()).write_bytes(broken)
    storage = FileResponses(tmp_path, 4000)
    assert storage.get(KEY) is None
    storage.put(KEY, b"new", 60)
    assert storage.get(KEY) == b"new"


def test_trouble_is_a_miss_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that cannot be written, and a server that is gone."""
    (tmp_path / "file").write_bytes(b"")
    gone = parse_address("redis://127.0.0.1:1")
    for storage in (FileResponses(tmp_path / "file" / "answers", 4000), ServerResponses(Connection(gone), 4000)):
        caplog.clear()
        for _ in range(3):
            storage.put(KEY, b"x", 60)
            assert storage.get(KEY) is None
        assert len(caplog.records) == 1
        assert "cannot be kept" in caplog.text


def test_old_files_are_swept(tmp_path: Path) -> None:
    """What was left by programs of last month goes."""
    old = tmp_path / ("f" * 32)
    old.write_bytes(b"left")
    os.utime(old, (1, 1))
    FileResponses(tmp_path, 4000).put(KEY, b"new", 60)
    assert not old.exists()
