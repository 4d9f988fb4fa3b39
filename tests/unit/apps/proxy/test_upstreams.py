"""ratekeeper.apps.proxy.upstreams: names, hosts, and nothing else."""

from __future__ import annotations

import pytest

from ratekeeper import RuleError, UnknownProvider
from ratekeeper.apps.proxy.upstreams import Upstream, Upstreams, is_loopback, mapped, parse
from ratekeeper.rules.book import Rulebook


def test_every_provider_at_its_first_host() -> None:
    """Over TLS, and its further hosts under their own names."""
    upstreams = Upstreams(Rulebook.load(), {})
    assert upstreams.named["binance-usdm"].url == "https://fapi.binance.com"
    assert upstreams.find("binance-usdm") == Upstream("https", "fapi.binance.com")
    for spelled in ("FStream.binance.com", "fstream.binance.com.", "fstream.binance.com.:443"):
        assert upstreams.find(spelled) == Upstream("https", "fstream.binance.com")


def test_all_calls_of_a_mapped_provider_go_to_the_users_host() -> None:
    """Also those to a real host's name; over plain HTTP only where it cannot leave the machine."""
    upstreams = Upstreams(Rulebook.load({"127.0.0.1:9300": "binance-usdm", "mirror.test": "binance-spot"}), {})
    for segment in ("binance-usdm", "127.0.0.1:9300", "fapi.binance.com", "fstream.binance.com"):
        assert upstreams.find(segment) == Upstream("http", "127.0.0.1:9300")
    assert upstreams.find("binance-spot") == Upstream("https", "mirror.test")


@pytest.mark.parametrize(
    "segment",
    [
        "",
        "example.org",
        "fapi.binance.com:8080",
        "fapi.binance.com:80",
        "fapi\u3002binance.com",
        "x@fapi.binance.com",
        "fapi.binance.com#",
        "127.0.0.1",
        "binance",
        "..",
    ],
)
def test_nothing_else_is_reached(segment: str) -> None:
    """No other host, port or user part."""
    assert Upstreams(Rulebook.load(), {}).find(segment) is None


def test_only_what_is_named() -> None:
    """A list on the command line is the whole list."""
    upstreams = Upstreams(Rulebook.load(), parse(["binance-spot", "mine=http://127.0.0.1:8000/v1/"]))
    assert dict(upstreams.named) == {
        "binance-spot": Upstream("https", "api.binance.com"),
        "mine": Upstream("http", "127.0.0.1:8000", "/v1"),
    }
    assert upstreams.find("fapi.binance.com") is None
    with pytest.raises(UnknownProvider, match="nowhere"):
        Upstreams(Rulebook.load(), parse(["nowhere"]))


@pytest.mark.parametrize(
    "spec",
    [
        "t",
        "healthz=http://a",
        "A b",
        "x=",
        "x=ftp://a",
        "x=http://u:p@a",
        "x=http://a?b",
        "x=http://a#b",
        "x=//a",
        "=http://a",
    ],
)
def test_what_is_neither_name_nor_url(spec: str) -> None:
    """Said at the start, not at the first call."""
    with pytest.raises(RuleError, match="--upstream"):
        parse([spec])


def test_a_url_for_a_provider_keeps_its_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate takes that host for the provider; a host of the provider itself keeps the real ledgers."""
    monkeypatch.setenv("RATEKEEPER_HOSTS", "127.0.0.1:1=binance-spot")
    specs = ["binance-usdm=http://127.0.0.1:2", "mine=http://127.0.0.1:3"]
    assert mapped(parse(specs)) == {"127.0.0.1:1": "binance-spot", "127.0.0.1:2": "binance-usdm"}
    for url in ("https://fapi.binance.com", "https://FAPI.binance.com.:443"):
        assert parse([f"x={url}/"])["x"] == Upstream("https", "fapi.binance.com")
        assert mapped(parse([f"binance-usdm={url}"])) == {"127.0.0.1:1": "binance-spot"}


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_loopback(host: str, local: bool) -> None:
    """Only what cannot be reached from another machine."""
    assert is_loopback(host) is local
