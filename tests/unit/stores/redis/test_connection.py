"""Whatever goes wrong with a server is `StoreUnavailable`, told in one line without what was sent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import redis

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.stores.redis.address import parse_address
from ratekeeper.stores.redis.connection import Connection


@pytest.fixture
def connection() -> Connection:
    """To a server that nobody has asked yet."""
    return Connection(parse_address("redis://me:hidden@127.0.0.1:1"))


def raising(error: Exception) -> Callable[[Any], object]:
    """A command that goes wrong."""

    def command(_: Any) -> object:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (redis.exceptions.ResponseError("WRONGTYPE Operation\nline two"), "ResponseError: WRONGTYPE Operation"),
        (redis.exceptions.TimeoutError("too slow"), "it does not answer in time (too slow)"),
        (redis.exceptions.ClusterDownError("CLUSTERDOWN"), "ClusterDownError"),
        (redis.exceptions.ConnectionError("gone"), "it cannot be reached: gone"),
        (redis.exceptions.ConnectionError(""), "it cannot be reached: the connection broke"),
        (redis.exceptions.RedisClusterException("no node"), "no node of the cluster can be reached"),
        (OSError("gone"), "OSError: gone"),
        (ValueError("hidden"), "a request or an answer that cannot be read: ValueError"),
        (TypeError("hidden"), "a request or an answer that cannot be read: TypeError"),
        (KeyError("hidden"), "a request or an answer that cannot be read: KeyError"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "hidden"),
            "a request or an answer that cannot be read: UnicodeDecodeError",
        ),
    ],
)
def test_what_goes_wrong_is_told(connection: Connection, error: Exception, said: str) -> None:
    """Each as one line that names the server and no password."""
    with pytest.raises(StoreUnavailable) as caught:
        connection.ask(raising(error))
    assert str(caught.value).startswith(f"redis://127.0.0.1:1: {said}")
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_are_whose_they_are(connection: Connection) -> None:
    """An exception that a signal's handler of the program raises is the program's."""
    with pytest.raises(AssertionError):
        connection.ask(raising(AssertionError()))
    with pytest.raises(StoreUnavailable, match=r"^before$"):
        connection.ask(raising(StoreUnavailable("before")))


def test_a_server_that_is_not_there(connection: Connection) -> None:
    """Its clock cannot be known either."""
    with pytest.raises(StoreUnavailable, match=r"^redis://127\.0\.0\.1:1: it cannot be reached: Connection refused$"):
        _ = connection.clock
    assert not connection.made


def test_without_redis_py(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, whatever was asked first."""
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.exceptions", None)
    with pytest.raises(StoreError, match="needs redis-py"):
        connection.ask(lambda client: client.ping())
