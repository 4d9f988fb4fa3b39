"""Addresses of servers: what they mean, and what they never show."""

from __future__ import annotations

import pytest

from ratekeeper.errors import StoreError
from ratekeeper.stores.redis.address import is_address, parse_address


@pytest.mark.parametrize(
    ("text", "kind", "hosts", "group", "db", "tls"),
    [
        ("redis://a", "", (("a", 6379),), "", 0, False),
        ("valkey://a:1/2", "", (("a", 1),), "", 2, False),
        ("rediss://u:p@a:1", "", (("a", 1),), "", 0, True),
        ("redis+sentinel://a,b:2/main/3", "sentinel", (("a", 26379), ("b", 2)), "main", 3, False),
        ("valkeys+cluster://a:1,[::1]:2", "cluster", (("a", 1), ("::1", 2)), "", 0, True),
    ],
)
def test_what_an_address_means(
    text: str, kind: str, hosts: tuple[tuple[str, int], ...], group: str, db: int, tls: bool
) -> None:
    """Kind, hosts, group, database and TLS."""
    found = parse_address(text)
    assert (found.kind, found.hosts, found.group, found.db, found.tls) == (kind, hosts, group, db, tls)


def test_options() -> None:
    """Those of Ratekeeper are taken out, the others are redis-py's."""
    found = parse_address("redis://a?timeout=0.5&processes=20&ssl_ca_certs=/x")
    assert (found.timeout, found.processes, found.options) == (0.5, 20, {"ssl_ca_certs": "/x"})


def test_a_password_is_read_and_not_shown() -> None:
    """Neither as text nor in a repr; special characters are written as in any URL."""
    found = parse_address("redis://me:k%401@a")
    assert (found.user, found.password) == ("me", "k@1")
    assert "k@1" not in f"{found} {found!r} {[found]}"


@pytest.mark.parametrize(
    "text",
    ["redis+far://k1@a", "redis://", "redis://:k1@a:port", "redis+sentinel://a", "redis://a?timeout=0", "redis://a/b"],
)
def test_what_is_no_address(text: str) -> None:
    """One error that says what is wrong, without a password."""
    with pytest.raises(StoreError) as error:
        parse_address(text)
    assert "k1" not in str(error.value)


def test_which_stores_are_servers() -> None:
    """Other stores' names are none of ours."""
    assert is_address("redis+cluster://a")
    assert not is_address("host://")
    assert not is_address("memory")
