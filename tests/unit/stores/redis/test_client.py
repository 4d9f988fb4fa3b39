"""The helper threads of a store on a server: whatever a garbled reply makes them raise, they go on, and tell it once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ratekeeper.stores import threads
from ratekeeper.stores.blocks import Blocks
from ratekeeper.stores.redis.address import parse_address
from ratekeeper.stores.redis.client import Client
from ratekeeper.stores.redis.connection import Connection
from ratekeeper.stores.redis.mirror import Mirror
from ratekeeper.stores.redis.protocol import Message
from ratekeeper.stores.redis.pubsub import PubSub


class Store:
    """Stands for a store: its parts of the helper threads' work raise at first."""

    def __init__(self, *errors: type[BaseException]) -> None:
        self.errors = list(errors)
        self.told: list[tuple[str, str]] = []
        self.went_on = threading.Event()

    def work(self, *_: Any) -> bool:
        """Do a part of a helper thread's work."""
        if self.errors:
            raise self.errors.pop(0)("password=SECRET")
        self.went_on.set()
        return False

    def changed(self) -> None:
        """Nothing changed."""

    def died(self, name: str, error: BaseException) -> None:
        """Note what is told."""
        self.told.append((name, type(error).__name__))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_FIRST_PAUSE", 0.001)


@pytest.fixture
def store() -> Store:
    """One whose work fails three times."""
    return Store(OverflowError, RecursionError, SystemExit)


def test_the_client_goes_on(store: Store) -> None:
    """It sends heartbeats and the ends of permits; without it the others would hold this process's share."""
    mirror = Mirror(Blocks(""), {}, 0, store.changed, given=False)
    connection = Connection(parse_address("redis://127.0.0.1:1"))
    client = Client(
        connection, mirror,
        tend=store.work, asked=store.changed, returned=store.changed, died=store.died, given=False,
    )  # fmt: skip
    client.soon(at_once=True)
    assert store.went_on.wait(20)
    assert store.told == [("redis", "OverflowError")]
    client.close()


def test_a_dead_thread_of_the_client_is_replaced(store: Store) -> None:
    """The next command that has to be sent finds that out."""
    store.errors = []
    mirror = Mirror(Blocks(""), {}, 0, store.changed, given=False)
    connection = Connection(parse_address("redis://127.0.0.1:1"))
    client = Client(
        connection, mirror,
        tend=store.work, asked=store.changed, returned=store.changed, died=store.died, given=False,
    )  # fmt: skip
    client._thread = threads.Helper(lambda: None)
    client._thread.join(10)
    client.soon(at_once=True)
    assert store.went_on.wait(20)
    client.close()


class Line:
    """Stands for a connection on which one message after another says that something changed."""

    def ask(self, command: Callable[[Any], Any]) -> Any:
        """Subscribe."""
        return self

    def read(self, reading: Callable[[], Any]) -> Message:
        """Return the next message."""
        threading.Event().wait(0.001)
        return Message("shop", True, [])

    def close(self) -> None:
        """Unsubscribe."""


def test_the_listener_goes_on(store: Store) -> None:
    """Without it no machine wakes the calls of this one."""
    pubsub = PubSub(Line(), store.work, store.died)  # type: ignore[arg-type]
    pubsub.subscribe("one")
    assert store.went_on.wait(20)
    assert store.told == [("wake-ups", "OverflowError")]
    pubsub._thread = threads.Helper(lambda: None)
    pubsub._thread.join(10)
    store.went_on.clear()
    pubsub.look()
    assert store.went_on.wait(20)
    pubsub.close()
