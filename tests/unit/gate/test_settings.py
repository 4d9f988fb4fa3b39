"""Where a gate finds what it needs to know, and what it says when that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from headgate import Gate, Priority, RuleError, StoreError
from headgate.gate.settings import home_folder, load_settings, parse_hosts, secret_of


def test_the_file_is_read_and_the_environment_goes_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments win over the environment, the environment over the file, the file over the defaults."""
    file = tmp_path / "headgate.toml"
    file.write_text(
        'store = "memory://"\npriority = "low"\nmax_wait = 7.5\nweight = 3\n'
        '[hosts]\n"127.0.0.1:9300" = "binance-usdm"\n[headroom.binance-usdm]\nweight-1m = "10%"\norders-10s = 20\n'
    )
    monkeypatch.setenv("HEADGATE_CONFIG", str(file))
    with Gate() as gate:
        limits = gate.provider("binance-usdm").limits
        assert (limits["weight-1m"].headroom, limits["orders-10s"].headroom) == (240, 20)
        assert limits["weight-1m"].usable == 2160
        assert (gate.max_wait, gate.weight) == (7.5, 3)
        assert gate.permit("binance-usdm", "GET", "/fapi/v1/time")._klass == Priority.LOW
        found = gate.match("127.0.0.1:9300")
        assert found is not None
        assert found.namespace == "binance-usdm@127.0.0.1:9300"
    monkeypatch.setenv("HEADGATE_PRIORITY", "high")
    monkeypatch.setenv("HEADGATE_WEIGHT", "5")
    with Gate(max_wait=1) as gate:
        assert gate.permit("binance-usdm", "GET", "/fapi/v1/time")._klass == Priority.HIGH
        assert (gate.max_wait, gate.weight) == (1, 5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_wait = 'long'", "$.max_wait"),
        ("colour = 1", "unknown field `colour`"),
        ("max_wait =", "is not TOML"),
        ("store = 'memory://'\n[headroom.binance-usdm]\nweight-1m = 99999", "$.headroom.binance-usdm.weight-1m"),
        ("store = 'memory://'\n[headroom.binance-usdm]\nweigth = 1", "has no such limit. It has: weight-1m"),
    ],
)
def test_a_wrong_file_is_told_with_file_and_key(tmp_path: Path, text: str, told: str) -> None:
    """One clear error names the place."""
    file = tmp_path / "headgate.toml"
    file.write_text(text)
    with pytest.raises(RuleError) as caught, Gate(config=file) as gate:
        gate.provider("binance-usdm")
    assert told in str(caught.value)


def test_a_missing_file_is_told() -> None:
    """A file that is named must be there."""
    with pytest.raises(RuleError, match="cannot be read"):
        load_settings("/no/such/headgate.toml")


def test_hosts_in_text_and_their_errors() -> None:
    """The environment's form of hosts, and what a typing error in it says."""
    assert parse_hosts(" A:1 = x , b=y,") == {"a:1": "x", "b": "y"}
    with pytest.raises(RuleError, match="is not HOST"):
        parse_hosts("127.0.0.1:9300")


def test_an_unknown_store_is_refused() -> None:
    """A store that does not exist is named, with those that do."""
    with pytest.raises(StoreError, match="use host://, memory:// or redis://"):
        Gate("sqlite://x")


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    """All processes of a folder digest keys alike, and nobody else can read the secret."""
    home = home_folder(tmp_path / "h")
    first = secret_of(home)
    assert secret_of(home) == first
    assert len(first) == 32
    assert (home / "secret").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["secret"]
