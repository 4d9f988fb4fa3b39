"""How the providers' websockets talk: what a client's message means, and how data, orders and pings are written.

One dialect object serves one connection. Nothing here waits, counts or sends: `Sockets` does. Every data message carries
``seq``, our own addition, which rises by one from tick to tick on all connections alike, so that a test sees each gap.
Bodies of data and of order reports are templates of the data files; statistics that no client checks are constants there.
Shapes are told from memory of the providers' pages and marked where they are a guess.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import msgspec

from .market import INTERVALS, MARKETS, Candle, Quote
from .templates import Sheet

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
        sheet: templates of what it writes; read from the data file if it is not given.

    Attributes:
        topics: what is subscribed, in the words of the provider.
        accounts: labels of the accounts whose orders are told here.
    """

    venue = ""
    """Whose data file has the templates."""
    control_counts = False
    """Whether ping and pong frames count as messages."""

    def __init__(
        self,
        target: str,
        label: Callable[[str], str],
        symbols: Mapping[str, Symbol],
        account: str = "",
        sheet: Sheet | None = None,
    ) -> None:
        self.sheet = sheet or Sheet.of(self.venue)
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

    def data(self, symbol: Symbol, kind: str, seq: int, now: int, /, interval: str = "", **more: Any) -> Any:
        """The market's data of one kind: message number `seq` at `now` (ms); a candle if `interval` names its length."""
        name = f"tick {kind}"
        if interval in INTERVALS:
            candle = _candle(symbol, interval, now)
            end = candle.at + INTERVALS[interval]
            more |= {"candle": candle, "interval": interval, "end": end, "last": end - 1}
            name = "tick kline"
        elif not self.sheet.knows(name) or kind == "kline":
            name = "tick *"
        values = {"odd": bool(seq % 2), "before": seq - 1, "after": now + 1, "quote": Quote(symbol, now)}
        return self.sheet.fill(name, symbol=symbol, seq=seq, now=now, **values, **more)

    def ping(self, now: int) -> str | None:
        """The server's ping as text; ``None``: a ping frame."""
        return None

    def farewell(self, now: int) -> str | None:
        """The message before the server closes a connection because of its age; ``None`` if it sends none."""
        return None


_CATEGORY = re.compile("^/(public|market|private)(?=/)")


class Binance(Dialect):
    """Streams of spot and of USD-M futures; user data on ``/ws/<listenKey>``, or ``/private/ws?listenKey=…`` (ccxt)."""

    venue = "binance-usdm"
    control_counts = True  # facts: "ping, pong and JSON all count"

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
        word, _, interval = kind.partition("_")
        name = "depth" if kind.startswith("depth") else kind.partition("@")[0]
        interval = interval if word == "kline" else ""
        return self._written(topic, self.data(symbol, name, seq, now, interval=interval, kind=word))

    def report(self, account: str, order: Order, seq: int, now: int) -> list[str]:
        topic = LISTEN_KEY + account
        if topic not in self.topics:
            return []
        return [self._written(topic, self.sheet.fill("report", order=order, seq=seq, now=now))]


class BinanceSpot(Binance):
    """Spot: other order reports, and a word before the connection ends."""

    venue = "binance-spot"

    def farewell(self, now: int) -> str | None:
        return _text({"e": "serverShutdown", "E": now})  # the event is documented; how long before the end is not


class Orderly(Dialect):
    """``/ws/stream/{account}`` for the market, ``/v2/ws/private/stream/{account}`` for one's own orders."""

    venue = "orderly"

    def __init__(self, target: str, *more: Any) -> None:
        super().__init__(target, *more)
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
        word, _, interval = kind.partition("_")
        data = self.data(symbol, kind, seq, now, interval=interval if word == "kline" else "", name=name)
        return _text({"topic": topic, "ts": now, "seq": seq, "data": data})

    def report(self, account: str, order: Order, seq: int, now: int) -> list[str]:
        if account not in self.accounts:
            return []
        told = {"executionreport": self.sheet.fill("report", order=order, now=now)}
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

    venue = "bitget"

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
        length = channel.removeprefix("candle").replace("H", "h").replace("D", "d").replace("W", "w")
        kind = "books" if channel.startswith("books") else channel
        data = self.data(symbol, kind, seq, now, interval=length if channel.startswith("candle") else "")
        return _text({"action": "snapshot", "arg": arg, "data": [data], "ts": now, "seq": seq})

    def report(self, account: str, order: Order, seq: int, now: int) -> list[str]:
        if account not in self.accounts:
            return []
        args = [msgspec.json.decode(topic, type=dict[str, str]) for topic in self.topics]
        data = self.sheet.fill("report", order=order, now=now)
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


def _candle(symbol: Symbol, interval: str, now: int) -> Candle:
    """The candle that holds `now`, as far as it has come."""
    start = now - now % INTERVALS[interval]
    opening, closing = symbol.price(start), symbol.price(now)
    high, low = max(opening, closing), min(opening, closing)
    return Candle(start, symbol.show(opening), symbol.show(high), symbol.show(low), symbol.show(closing), closing)


def _coin(name: str) -> str:
    """``BTC`` of ``PERP_BTC_USDC`` and of ``SPOT_BTC_USDC``."""
    parts = name.split("_")
    return next((part for part in parts if f"{part}USDT" in MARKETS["usdm"]), "")


def _text(body: Any) -> str:
    return msgspec.json.encode(body).decode()


def _tree(text: str) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
