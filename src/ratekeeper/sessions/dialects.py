"""The subscription and ping messages of each provider's websockets: data, not code.

Subscriptions follow the vendors' documentation; pings follow the rule files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.reading import decoded
from ratekeeper.rules.schema import Socket
from ratekeeper.rules.times import duration

if TYPE_CHECKING:
    from ratekeeper.rules.provider import Provider

__all__ = ["Dialect", "Habits", "dialect_of", "habits_of"]

_SHORT: Final = 512
"""Longer messages are data: this module never parses them."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The message format of one provider.

    Attributes:
        verb: field that names the action.
        add, remove: its values.
        topics: field that holds the topics.
        most: topics in one message; 1: the field holds one topic and no list.
        numbered: whether messages carry a number ``id``.
        ping: text of the client's ping; empty: a ping frame.
        pong: text that answers the server's ping, where that comes as text.
        told: fields of messages that are no data, and their values (empty: any): acknowledgements, pings, pongs.
    """

    verb: str = "op"
    add: str = "subscribe"
    remove: str = "unsubscribe"
    topics: str = "args"
    most: int = 50
    numbered: bool = False
    ping: str = ""
    pong: str = ""
    told: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def wanting(self, topics: Sequence[Any], number: int, *, gone: bool = False) -> list[str]:
        """Return the fewest messages that subscribe to (or, `gone`, unsubscribe from) topics."""
        size = max(1, self.most)
        parts = [topics[at : at + size] for at in range(0, len(topics), size)]
        messages = []
        for place, part in enumerate(parts):
            body: dict[str, Any] = {"id": number + place} if self.numbered else {}
            body |= {
                self.verb: self.remove if gone else self.add,
                self.topics: part[0] if self.most == 1 else list(part),
            }
            messages.append(msgspec.json.encode(body).decode())
        return messages

    def reply(self, message: str | bytes) -> tuple[bool, str]:
        """Return (whether a message is no data, the reply to send)."""
        if message == "pong":
            return True, ""
        if len(message) > _SHORT or not self.told:
            return False, ""
        tree = decoded(message)
        if not isinstance(tree, dict):
            return False, ""
        for name, values in self.told:
            if name in tree and (not values or str(tree[name]) in values):
                return True, self.pong if tree[name] == "ping" else ""
        return False, ""


@dataclass(frozen=True, slots=True)
class Habits:
    """What a rule file states about a socket; seconds, 0 if it states nothing.

    Attributes:
        lifetime: after which the provider closes it.
        ping_every: between pings.
        client_pings: whether the client must ping.
    """

    lifetime: float = 0.0
    ping_every: float = 0.0
    client_pings: bool = False


_ACKS: Final = ("subscribe", "unsubscribe", "ping", "pong")
_BINANCE: Final = Dialect("method", "SUBSCRIBE", "UNSUBSCRIBE", "params", numbered=True, told=(("result", ()),))
_ORDERLY: Final = Dialect(
    "event", topics="topic", most=1, numbered=True, pong='{"event":"pong"}', told=(("event", _ACKS),)
)
_TEXT: Final = Dialect(ping="ping", told=(("event", _ACKS),))
_BYBIT: Final = Dialect(most=10, told=(("op", _ACKS),))


def dialect_of(provider: str) -> Dialect:
    """Return the dialect of a provider, by the name of its rule file; for an unknown one, the most common dialect."""
    known = {
        "binance-spot": _BINANCE,
        "binance-usdm": _BINANCE,
        "binance-coinm": _BINANCE,
        "orderly": _ORDERLY,
        "bitget": _TEXT,
        "okx": _TEXT,
        "bybit": _BYBIT,
    }
    return known.get(provider, Dialect())


def habits_of(provider: Provider | None, path: str) -> Habits:
    """Return what the rules state about the socket with that path."""
    if provider is None:
        return Habits()
    sockets = provider.file.socket
    kind = "api" if "/ws-api" in path or "/ws-fapi" in path else "streams"
    habit = sockets.get(kind) or sockets.get("all") or Socket()
    lifetime, every = (duration(text) / SECOND if text else 0.0 for text in (habit.lifetime, habit.ping_every))
    return Habits(lifetime, every, habit.ping_from == "client")
