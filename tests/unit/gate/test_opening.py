"""The key of a state folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratekeeper import Blocked, Gate
from ratekeeper.config.file import home_folder
from ratekeeper.gate.opening import secret_of, spare_store
from ratekeeper.stores.pauses import Pauses


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    """All processes of a folder digest keys alike, and nobody else can read the secret."""
    home = home_folder(tmp_path / "h")
    first = secret_of(home)
    assert secret_of(home) == first
    assert len(first) == 32
    assert (home / "secret").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["secret"]


def test_a_spare_store_obeys_the_pauses_of_its_machine(tmp_path: Path) -> None:
    """A program that could open no store keeps to a share of each limit, and stops when a person stops everything."""
    pauses = Pauses(tmp_path, "host://")
    with Gate(spare_store(None, tmp_path), home=tmp_path, hosts={}, learn=False) as gate:
        pauses.write(pauses.record("*", None, "by hand"))
        with pytest.raises(Blocked, match="by hand"), gate.permit("okx", "GET", "/api/v5/market/ticker"):
            pass
