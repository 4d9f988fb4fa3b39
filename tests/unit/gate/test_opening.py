"""The key of a state folder."""

from __future__ import annotations

from pathlib import Path

from ratekeeper.config.file import home_folder
from ratekeeper.gate.opening import secret_of


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    """All processes of a folder digest keys alike, and nobody else can read the secret."""
    home = home_folder(tmp_path / "h")
    first = secret_of(home)
    assert secret_of(home) == first
    assert len(first) == 32
    assert (home / "secret").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["secret"]
