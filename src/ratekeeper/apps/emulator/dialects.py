"""How the providers' websockets talk: what a client's message means, and how data, orders and pings are written.

One dialect object serves one connection. Nothing here waits, counts or sends: `Sockets` does. Every data message carries
``seq``, our own addition, which rises by one from tick to tick on all connections alike, so that a test sees each gap.
Shapes of acknowledgements and data are told from memory of the providers' pages and marked where they are a guess.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import msgspec

from .market import USDM_SYMBOLS
from .ticks import binance_tick, bitget_tick, orderly_tick

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .market import Symbol
    from .orders import Order

__all__ = ["LISTEN_KEY", "Binance", "BinanceSpot", "Bitget", "Dialect", "Heard", "Orderly", "dialect_of"]

LISTEN_KEY = "emulated-"
"""What our listen keys begin with; the account's label follows."""


class Heard(NamedTuple):
    """What a client's message asks for."""

    replies: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Topics that it subscribes to, those that it has already left out."""
    removed: tuple[str, ...] = ()
    pong: bool = False
    """Whether it answers a ping of the server that was sent as text."""


class Dialect:
    """A provider that we know nothing of: JSON that says "subscribe" is acknowledged and gets ticks; the rest is echoed.

    Args:
        target: path and query with which the socket was opened.
        label: makes the label of an account of the secret that names it.
        symbols: the markets by name.
        account: label of the account that the handshake's headers name; ``""`` if none.

    Attributes:
        topics: what is subscribed, in the words of the provider.
        accounts: labels of the accounts whose orders are told here.
    """

    control_counts = False
    """Whether ping and pong frames count as messages."""

    def __init__(
        self, target: str, label: Callable[[str], str], symbols: Mapping[str, Symbol], account: str = ""
    ) -> None:
        self.path, _, query = target.partition("?")
        self.query = parse_qs(query)
        self.label = label
        self.symbols = symbols
        self.topics: dict[str, Any] = {}
        self.accounts: set[str] = {account} if account else set()

    def opening(self) -> tuple[str, ...]:
        """Topics that the address itself subscribes to."""
        return ()

    def hear(self, text: str, now: int) -> Heard:
        """What `text` asks for at `now` (milliseconds)."""
        if text == "ping":
            return Heard(("pong",))
        tree = _tree(text)
        return self.understand(tree, text, now) if tree is not None else Heard((text,))

    def understand(self, tree: dict[str, Any], text: str, now: int) -> Heard:
        """The same for a JSON object."""
        verb = next((str(tree[name]) for name in ("op", "event", "method", "type") if name in tree), "").lower()
        wanted = tree.get("args") or tree.get("params") or tree.get("topic") or tree.get("channel") or [verb]
        topics = [
            one if isinstance(one, str) else _text(one) for one in (wanted if isinstance(wanted, list) else [wanted])
        ]
        if "unsub" in verb:
            return self.drop(topics, text)
        return self.take(topics, text) if "sub" in verb else Heard((text,))

    def take(self, topics: list[str], *replies: str) -> Heard:
        """Subscribe to what is not subscribed yet."""
        return Heard(replies, tuple(topic for topic in dict.fromkeys(topics) if topic not in self.topics))

    def drop(self, topics: list[str], *replies: str) -> Heard:
        """Subscribe no longer to what is subscribed."""
        return Heard(replies, (), tuple(topic for topic in dict.fromkeys(topics) if topic in self.topics))

    def tick(self, topic: str, seq: int, now: int) -> str | None:
        """The market's message number `seq` on `topic` at `now` (ms), or ``None`` if there is none."""
        return _text({"topic": topic, "seq": seq, "ts": now})

    def report(self, account: str, order: Order, seq: int, now: int) -> list[str]:
        """What this connection is told when an order of `account` changes; `seq` counts the account's changes."""
        return []

    def ping(self, now: int) -> str | None:
        """The server's ping as text; ``None``: a ping frame."""
        return None

    def farewell(self, now: int) -> str | None:
        """What is said before a connection ends because of its age."""
        return None


_CATEGORY = re.compile("^/(public|market|private)(?=/)")


class Binance(Dialect):
    """Streams of spot and of USD-M futures; user data on ``/ws/<listenKey>``, or ``/private/ws?listenKey=…`` (ccxt)."""

    control_counts = True  # facts: "ping, pong and JSON all count"
    futures = True

    def opening(self) -> tuple[str, ...]:
        self.path = _CATEGORY.sub("", self.path)
        names = [name for value in self.query.get("streams", ()) for name in value.split("/")]
        names += self.query.get("listenKey", ())
        if self.path.startswith("/ws/"):
            names += self.path.removeprefix("/ws/").split("/")
        return tuple(dict.fromkeys(name for name in names if name))

    def understand(self, tree: dict[str, Any], text: str, now: int) -> Heard:
        number, params = tree.get("id"), tree.get("params")
        names = [str(name) for name in params] if isinstance(params, list) else []
        done = _text({"result": None, "id": number})
        match tree.get("method"):
            case "SUBSCRIBE":
                return self.take(names, done)
            case "UNSUBSCRIBE":
                return self.drop(names, done)
            case "LIST_SUBSCRIPTIONS":
                return Heard((_text({"result": list(self.topics), "id": number}),))
        return Heard((text,))

    def _written(self, topic: str, body: dict[str, Any]) -> str:
        return _text({"stream": topic, "data": body} if self.path == "/stream" else body)

    def tick(self, topic: str, seq: int, now: int) -> str | None:
        name, _, kind = topic.partition("@")
        symbol = self.symbols.get(name.upper())
        if symbol is None or not kind:
            return None
        return self._written(topic, {**binance_tick(symbol, kind, seq, now), "seq": seq})

    def report(self, account: str, order: Order, seq: int, now: int) -> list[str]:
        topic = LISTEN_KEY + account
        if topic not in self.topics:
            return []
        own: dict[str, Any] = {
            "s": order.symbol,
            "c": order.client_id,
            "S": order.side,
            "o": order.kind,
            "f": order.time_in_force,
            "q": str(order.quantity),
            "p": str(order.price),
            "x": "TRADE" if order.status == "FILLED" else order.status,
            "X": order.status,
            "i": order.number,
            "l": str(order.filled),
            "z": str(order.filled),
            "L": str(order.average),
            "T": now,
            "t": order.number if order.filled else -1,
            "m": False,
        }
        if self.futures:
            own |= {
                "ap": str(order.average),
                "sp": str(order.stop_price),
                "R": order.reduce_only,
                "ps": order.position_side,
            }
            body: dict[str, Any] = {"e": "ORDER_TRADE_UPDATE", "E": now, "T": now, "o": own}
        else:
            body = {"e": "executionReport", "E": now, **own, "O": order.time, "Z": str(order.filled * order.average)}
        return [self._written(topic, {**body, "seq": seq})]


class BinanceSpot(Binance):
    """Spot: other order reports, and a word before the connection ends."""

    futures = False

    def farewell(self, now: int) -> str | None:
        return _text({"e": "serverShutdown", "E": now})  # the event is documented; how long before the end is not


class Orderly(Dialect):
    """``/ws/stream/{account}`` for the market, ``/v2/ws/private/stream/{account}`` for one's own orders."""

    def __init__(
        self, target: str, label: Callable[[str], str], symbols: Mapping[str, Symbol], account: str = ""
    ) -> None:
        super().__init__(target, label, symbols, account)
        self.private = "/private/" in self.path
        self.name = self.path.rpartition("/stream/")[2]
        self.known = not self.private

    def understand(self, tree: dict[str, Any], text: str, now: int) -> Heard:
        topic, event = str(tree.get("topic", "")), tree.get("event")
        reply = {"id": tree.get("id"), "event": event, "success": True, "ts": now}
        match event:
            case "ping":
                return Heard((_text({"event": "pong", "ts": now}),))
            case "pong":
                return Heard(pong=True)
            case "auth":
                params = tree.get("params")
                key = str(params.get("orderly_key", "")) if isinstance(params, dict) else ""
                # REST calls name the account by either header, so both are this account
                self.accounts |= {self.label(secret) for secret in (self.name, key) if secret}
                self.known = True
                return Heard((_text(reply),))
            case "subscribe" if not self.known:  # wording is a guess
                return Heard((_text({**reply, "success": False, "errorMsg": "auth required"}),))
            case "subscribe":
                return self.take([topic], _text({**reply, "data": {"topic": topic}}))
            case "unsubscribe":
                return self.drop([topic], _text({**reply, "data": {"topic": topic}}))
        return Heard((text,))

    def tick(self, topic: str, seq: int, now: int) -> str | None:
        name, _, kind = topic.partition("@")
        symbol = self.symbols.get(name) or self.symbols.get(_coin(name) + "USDT")
        if symbol is None or not kind:
            return None
        return _text({"topic": topic, "ts": now, "seq": seq, "data": orderly_tick(symbol, name, kind, seq, now)})

    def report(self, account: str, order: Order, seq: int, now: int) -> list[str]:
        if account not in self.accounts:
            return []
        told: dict[str, dict[str, Any]] = {
            "executionreport": {
                "symbol": order.symbol,
                "clientOrderId": order.client_id,
                "orderId": order.number,
                "type": order.kind,
                "side": order.side,
                "quantity": float(order.quantity),
                "price": float(order.price),
                "executedPrice": float(order.average),
                "executedQuantity": float(order.filled),
                "totalExecutedQuantity": float(order.filled),
                "avgPrice": float(order.average),
                "status": {"CANCELED": "CANCELLED"}.get(order.status, order.status),
                "reduceOnly": order.reduce_only,
                "timestamp": now,
            }
        }
        if order.filled:
            told["position"] = {"positions": [{"symbol": order.symbol, "timestamp": now}]}  # only that it changed
        return [
            _text({"topic": topic, "ts": now, "seq": seq, "data": data})
            for topic, data in told.items()
            if topic in self.topics
        ]

    def ping(self, now: int) -> str | None:
        return _text({"event": "ping", "ts": now})


class Bitget(Dialect):
    """Channels of ``{"op": "subscribe", "args": [{"instType", "channel", "instId"}]}``; the client pings with text."""

    def understand(self, tree: dict[str, Any], text: str, now: int) -> Heard:
        args = [one for one in tree.get("args") or () if isinstance(one, dict)]
        verb = tree.get("op")
        if verb == "login":
            self.accounts |= {self.label(str(one.get("apiKey", ""))) for one in args}
            return Heard((_text({"event": "login", "code": 0, "msg": ""}),))
        if verb not in ("subscribe", "unsubscribe"):
            return Heard((text,))
        replies = [_text({"event": verb, "arg": one}) for one in args]
        topics = [_text({name: str(one.get(name, "")) for name in sorted(one)}) for one in args]
        return (self.take if verb == "subscribe" else self.drop)(topics, *replies)

    def tick(self, topic: str, seq: int, now: int) -> str | None:
        arg = msgspec.json.decode(topic, type=dict[str, str])
        symbol = self.symbols.get(arg.get("instId", ""))
        channel = arg.get("channel", "")
        if symbol is None or not channel:
            return None
        data = bitget_tick(symbol, channel, seq, now)
        return _text({"action": "snapshot", "arg": arg, "data": [data], "ts": now, "seq": seq})

    def report(self, account: str, order: Order, seq: int, now: int) -> list[str]:
        if account not in self.accounts:
            return []
        args = [msgspec.json.decode(topic, type=dict[str, str]) for topic in self.topics]
        data = {
            "instId": order.symbol,
            "orderId": str(order.number),
            "clientOid": order.client_id,
            "side": order.side.lower(),
            "orderType": order.kind.lower(),
            "size": str(order.quantity),
            "price": str(order.price),
            "accBaseVolume": str(order.filled),
            "priceAvg": str(order.average),
            "status": {"NEW": "live", "FILLED": "filled", "CANCELED": "canceled"}.get(order.status, "canceled"),
            "cTime": str(order.time),
            "uTime": str(now),
        }
        return [
            _text({"action": "snapshot", "arg": arg, "data": [data], "ts": now, "seq": seq})
            for arg in args
            if arg.get("channel") == "orders" and arg.get("instId") in ("default", order.symbol)
        ]


def dialect_of(provider: str) -> type[Dialect]:
    """How the sockets of a provider talk."""
    found = {
        "binance-spot": BinanceSpot,
        "binance-usdm": Binance,
        "binance-coinm": Binance,
        "orderly": Orderly,
        "bitget": Bitget,
    }
    return found.get(provider, Dialect)


def _coin(name: str) -> str:
    """``BTC`` of ``PERP_BTC_USDC`` and of ``SPOT_BTC_USDC``."""
    parts = name.split("_")
    return next((part for part in parts if f"{part}USDT" in USDM_SYMBOLS), "")


def _text(body: Any) -> str:
    return msgspec.json.encode(body).decode()


def _tree(text: str) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
