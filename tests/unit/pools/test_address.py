"""The ``[egress]`` part of the configuration: what it may say, and how it says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratekeeper import RuleError
from ratekeeper.config.file import read_settings
from ratekeeper.pools.address import EgressSettings, addresses_of, pins

GOOD = """
[egress]
name = "office"
echo = "http://127.0.0.1:9/ip"
[egress.addresses]
main = "203.0.113.10"
spare = { bind = "203.0.113.11" }
far = { proxy = "http://me:word@10.0.0.2:3128", scope = "nat-1" }
[egress.pools.binance-usdm]
primary = "main"
backups = ["spare", "far"]
pin = { desk = "main" }
"""


def load(folder: Path, text: str) -> EgressSettings:
    """The egress part of a configuration file."""
    path = folder / "ratekeeper.toml"
    path.write_text(text)
    found = read_settings(path).settings.egress
    assert isinstance(found, EgressSettings)
    return found


def test_addresses_may_be_bound_or_proxied(tmp_path: Path) -> None:
    """Both short and long forms are read; a proxy's password is never shown."""
    said = load(tmp_path, GOOD)
    found = addresses_of(said)
    assert [found[name].bind for name in ("main", "spare", "far")] == ["203.0.113.10", "203.0.113.11", ""]
    assert found["far"].leaves == "proxy 10.0.0.2:3128"
    assert "word" not in repr(found)
    assert pins(said.pools["binance-usdm"]) == {"desk": ["main"]}


def test_one_name_is_still_enough(tmp_path: Path) -> None:
    """``egress = "name"`` names the one address, as it always did."""
    path = tmp_path / "ratekeeper.toml"
    path.write_text('egress = "office"')
    assert read_settings(path).settings.egress == "office"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("203.0.113.10", "not-a-number"), "$.egress.addresses.main"),
        (("http://me:word@", "gopher://me:word@"), "$.egress.addresses.far.proxy"),
        (('primary = "main"', "primary = []"), "$.egress.pools.binance-usdm.primary"),
        (('primary = "main"', 'primary = "mian"'), "$.egress.pools.binance-usdm.primary"),
        (('["spare", "far"]', '["nowhere"]'), "$.egress.pools.binance-usdm.backups"),
        (('desk = "main"', 'desk = "nowhere"'), "$.egress.pools.binance-usdm.pin.desk"),
        (('desk = "main"', "desk = []"), "$.egress.pools.binance-usdm.pin.desk"),
        (("http://127.0.0.1:9/ip", "ip-echo"), "$.egress.echo"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], key: str) -> None:
    """Each error names file and key, and never repeats a proxy's URL."""
    with pytest.raises(RuleError) as caught:
        load(tmp_path, GOOD.replace(*change))
    assert caught.value.key == key
    assert "ratekeeper.toml" in caught.value.file
    assert "word" not in str(caught.value)
