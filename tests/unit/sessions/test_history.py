"""What is kept of sessions on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratekeeper.sessions.history import KEPT, Record, Records
from ratekeeper.sessions.restarts import Progress, Recovery


def test_kept_and_read(tmp_path: Path) -> None:
    """What was written is read again, of the history the latest entries; names may hold anything."""
    records = Records(tmp_path)
    history = tuple(Recovery(float(n), "OSError", "gone", 1.0, 2.0, 1, ok=True) for n in range(KEPT + 20))
    record = Record("a/../b@bot.py", 7, 8, "cooldown", 9.0, "gone", Progress(2, 1, (3.0,), 4.0, 5.0), history)
    records.write(record)
    found = records.read("a/../b@bot.py")
    assert found.history == history[20:]
    assert found.progress == record.progress
    assert list(records.all()) == [found]
    assert {path.parent for path in tmp_path.rglob("*.json")} == {records.folder}
    assert records.read("nobody@bot") == Record("nobody@bot")


@pytest.mark.parametrize("spoiled", [b'{"id":"grid@bot"', b'{"id":"\xff"}', b"[" * 5000, b"", b"\x00" * 99])
def test_torn_file(spoiled: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that something else spoiled is told about, and the session begins anew."""
    records = Records(tmp_path)
    records.write(Record("grid@bot", pid=7))
    records.path("grid@bot").write_bytes(spoiled)
    assert records.read("grid@bot") == Record("grid@bot")
    assert "begins anew" in caplog.text
    assert list(records.all()) == []


def test_full_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be written, sessions go on, and that is said once."""
    (tmp_path / "sessions").write_text("a file where the folder should be")
    records = Records(tmp_path)
    records.write(Record("grid@bot"))
    records.write(Record("grid@bot"))
    assert caplog.text.count("cannot be kept") == 1
