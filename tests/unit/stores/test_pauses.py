"""The pauses of a machine: files that its programs obey, whatever the shared store does."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.limit import SECOND
from ratekeeper.stores.blocks import PauseRecord
from ratekeeper.stores.pauses import Pauses

STORE = "redis://127.0.0.1:1"


@pytest.fixture
def pauses(tmp_path: Path) -> Pauses:
    """Those of a folder that does not exist yet."""
    return Pauses(tmp_path / "home", STORE)


def write(pauses: Pauses, scope: str, seconds: float | None = None, *, resumed: bool = False) -> PauseRecord:
    """One more record."""
    length = None if seconds is None else int(seconds * SECOND)
    record = pauses.record(scope, length, "by hand", resumed=resumed)
    pauses.write(record)
    return record


def news(pauses: Pauses) -> list[PauseRecord] | None:
    """The records that a process is told now; None: it has read the folder, and nothing has changed."""
    found: list[list[PauseRecord]] = []
    pauses.heed(found.append)
    return found[-1] if found else None


def told(pauses: Pauses) -> dict[str, bool]:
    """What another process of the folder is told: scope -> whether it is resumed."""
    other = Pauses(pauses._home, pauses.store)
    return {each.scope: each.resumed for each in news(other) or ()}


def test_the_newest_record_of_a_scope_holds(pauses: Pauses) -> None:
    """A pause, the end of it, another pause; other scopes stay as they are; no file is left over."""
    write(pauses, "*")
    write(pauses, "shop")
    assert told(pauses) == {"*": False, "shop": False}
    write(pauses, "*", resumed=True)
    assert told(pauses) == {"*": True, "shop": False}
    write(pauses, "*")
    assert told(pauses) == {"*": False, "shop": False}
    assert len(list((pauses._home / "pauses").iterdir())) == 2


def test_a_shorter_pause_does_not_shorten_a_longer_one(pauses: Pauses) -> None:
    """But taking back takes back both."""
    write(pauses, "shop")
    write(pauses, "shop", 60)
    [record] = news(pauses) or []
    assert record.length is None
    write(pauses, "shop", resumed=True)
    assert told(pauses) == {"shop": True}


def test_a_pause_that_is_over_is_gone(pauses: Pauses) -> None:
    """It is not obeyed, and the next record removes its file."""
    write(pauses, "shop", 1e-9)
    assert told(pauses) == {}
    write(pauses, "mall")
    assert len(list((pauses._home / "pauses").iterdir())) == 1


def test_news_are_told_once(pauses: Pauses) -> None:
    """Whoever has read a folder that rests is told nothing until it changes; what another process writes, it is told."""
    other = Pauses(pauses._home, STORE)
    assert news(other) == []
    assert news(other) is None
    write(pauses, "shop")
    assert [each.scope for each in news(other) or ()] == ["shop"]
    folder = pauses._home / "pauses"
    os.utime(folder, ns=(0, folder.stat().st_mtime_ns - 60 * SECOND))  # it has not changed for a while
    assert news(other) is not None
    assert news(other) is None
    write(pauses, "shop", resumed=True)
    assert [each.resumed for each in news(other) or ()] == [True]


def test_what_the_store_has_got_is_obeyed_on(pauses: Pauses) -> None:
    """A pause stays until it is taken back; the end of a pause goes. Only its own store is given a record."""
    record = write(pauses, "shop")
    stranger = Pauses(pauses._home, "host://")
    assert [each.scope for each in news(stranger) or ()] == ["shop"]
    assert stranger.to_hand_on() == stranger.handed_on() == []
    news(pauses)
    assert [each.file for each in pauses.to_hand_on()] == [record.file]
    pauses.handed(record)
    news(pauses)
    assert pauses.to_hand_on() == []
    [done] = pauses.handed_on()
    assert told(pauses) == {"shop": False}
    pauses.drop(done)  # somebody took it back on another machine
    assert told(pauses) == {}
    pauses.handed(write(pauses, "shop", resumed=True))
    assert told(pauses) == {}


def test_a_newer_record_is_not_lost_to_one_that_is_handed_on(pauses: Pauses) -> None:
    """Somebody resumes while another process brings the pause to the server: the end of the pause remains."""
    record = write(pauses, "shop")
    write(pauses, "shop", resumed=True)
    pauses.handed(record)
    pauses.drop(record)
    assert told(pauses) == {"shop": True}


def test_a_record_that_is_renamed_meanwhile_is_not_missed(pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process hands it on between the look at the folder and the look into the file."""
    record = write(pauses, "shop")
    whole = Path.read_bytes

    def late(path: Path) -> bytes:
        if path.name == record.file and path.exists():
            pauses.handed(record)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", late)
    assert told(pauses) == {"shop": False}


def test_over_a_reboot_wall_time_counts(pauses: Pauses) -> None:
    """A pause without an end holds on, one with an end for what was left of it."""
    record = write(pauses, "shop", 60)
    path = pauses._home / "pauses" / record.file
    old = msgspec.structs.replace(record, boot="another", mono=1 << 61, wall=record.wall - 20 * SECOND)
    path.write_bytes(msgspec.json.encode(old))
    [found] = news(Pauses(pauses._home, STORE)) or []
    assert 30 * SECOND < found.ends() - record.mono < 41 * SECOND
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(old, length=None)))
    assert told(pauses) == {"shop": False}
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(old, wall=record.wall - 61 * SECOND)))
    assert told(pauses) == {}


@pytest.mark.parametrize("raw", [b"", b"[", b"{}", b'{"scope": 1}', b"\xff"])
def test_an_unreadable_file_hides_no_other(pauses: Pauses, raw: bytes) -> None:
    """It is passed over."""
    write(pauses, "shop")
    (pauses._home / "pauses" / "x.new").write_bytes(raw)
    assert told(pauses) == {"shop": False}


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A folder that cannot be made: an error that names it; nobody is told anything."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "pauses").write_text("in the way")
    pauses = Pauses(tmp_path / "home", STORE)
    with pytest.raises(StoreUnavailable, match="home/pauses"):
        write(pauses, "shop")
    assert news(pauses) == []
