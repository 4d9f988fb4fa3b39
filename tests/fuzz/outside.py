"""What else comes from outside: programs' requests, files, replies of Redis and Telegram, the proxy's clients, exchanges."""

from __future__ import annotations

import asyncio
import json
import posixpath
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
from tests.fuzz.base import SECRET, Base

from ratekeeper import Gate
from ratekeeper.adapters._wire import from_url
from ratekeeper.apps.proxy.guard import Guard, crooked, straight
from ratekeeper.apps.proxy.upstreams import Upstream, Upstreams
from ratekeeper.errors import RatekeeperError, RuleError
from ratekeeper.gate.call import Reply, packed, unpacked
from ratekeeper.ledger.limit import Charge, Limit, Window
from ratekeeper.rules.book import normal_host
from ratekeeper.rules.call import Headers, Identity, Request
from ratekeeper.rules.reading import FAULTS, listed
from ratekeeper.rules.secrets import concealed, redact, secrets_of
from ratekeeper.sessions.control import Command as SessionCommand
from ratekeeper.sessions.history import Record, Records
from ratekeeper.stores import encoding
from ratekeeper.stores.blocks import Blocks, read_blocks
from ratekeeper.stores.encoding import meant_blocks, meant_learned, read_or
from ratekeeper.stores.redis.protocol import Command, read_message
from ratekeeper.stores.redis.protocol import Request as ScriptCall
from ratekeeper.stores.responses import FileResponses
from ratekeeper.typed import json_decoder

TESTLAND: Final = Path(__file__).parents[1] / "support" / "testland.toml"
HOSTS: Final = (
    "127.0.0.1",
    "localhost",
    "LOCALHOST.",
    "[::1]:9",
    "evil.test",
    "127.0.0.1.evil.test",
    "",
    "a b",
    "[",
    "é.test",
)
ORIGINS: Final = ("https://evil.test", "null", "", "http://127.0.0.1:1", "*", "http://localhost")
PARTS: Final = (
    "..", ".", "%2e%2e", "%2E.", "%252e%252e", "..;a", "..%2f", "..%5c", "a", "b%2Fc", "", "%00", "%", "%zz", "x" * 300, ";",
    "a;b", "\\..\\", "#", "?", "%3f..", "%c0%ae%c0%ae", "...", ".. ", "%20", "é", "a..b", "//", "%25" * 4 + "2e",
)  # fmt: skip
TOML: Final = (
    "[", "]", "{", "}", "=", "\n", '"', "'", '"""', "'''", "#", "\\", ",", ".", "a", "[[a]]", "[a.b]", "a.b.c = 1", "1e999",
    "9" * 5000, "[" * 100, "a." * 100 + "b = 1", "1979-13-45", "é", "\x00", "\ufeff", "store = 1", "hosts = {}", "limits",
    "inf", "nan",
)  # fmt: skip
LINES: Final = (
    "Referer: http://127.0.0.1/t/x/a", "Content-Length: 3", "Content-Length: -1", "Transfer-Encoding: chunked", "X: \x00",
    "Upgrade: websocket", "Connection: Upgrade", "Host: evil.test", "Sec-Fetch-Site: cross-site", "Expect: 100-continue",
    "X-Ratekeeper-Timeout: nan", "X-Ratekeeper-Priority: \xe9", "Accept-Encoding: " + "br," * 99, "A" * 70_000,
)  # fmt: skip
KEPT: Final = frozenset({200, 400, 401, 403, 404, 405, 411, 413, 414, 421, 426, 429, 431, 501, 505})
"""Statuses with which the proxy may answer; above all not 500."""


class Outside(Base):
    """The kinds of input that programs, people and servers other than providers send."""

    # -- programs --------------------------------------------------------------------------------------------------

    def try_requests(self) -> None:
        """A request of a program: it has a plan of known costs, and no secret of it gets a name of its own."""
        provider = self.dice.choice(self.providers)
        matches = [match for route in provider.file.routes for match in listed(route.match)]
        method, _, path = self.dice.choice(matches).partition(" ")
        path = path.replace("{", self.dice.choice(["{", ""])).replace("*", self.dice.choice([*PARTS, f"{SECRET}1"]))
        names = ["symbol", "limit", "signature", "apiKey", "batchOrders", "instId", "n", "category"]
        params = {name: self.odd() for name in self.dice.sample(names, 4)}
        if params.get("instId") == SECRET:
            params["instId"] = "BTC-USDT"  # it names an owner, and is none
        headers = Headers(
            {name: str(self.odd())[:300] for name in ("authorization", "x-mbx-apikey", "cookie", "ok-access-key")}
        )
        body = self.dice.choice([None, {"apiSecret": SECRET, "args": [self.odd()]}, [self.odd()] * 3, self.odd()])
        request = Request(method, path, params, body, headers)
        plan = provider.plan(request, Identity("default", "", b"key"))
        assert all(isinstance(charge.cost, int) and 0 < charge.cost < 1 << 63 for charge in plan.charges)
        names = [*plan.scopes, *(charge.key for charge in plan.charges)]
        assert not [name for name in names if "\n" in name or "\x00" in name]
        assert SECRET not in str(names)
        provider.signed_until(request)
        provider.handling.key(request, plan)
        text = redact(f"{self.odd()} {params} {headers} {body}", secrets_of(request))
        assert SECRET not in text
        assert len(text) <= 200
        assert SECRET not in concealed(path, b"key")

    def try_urls(self) -> None:
        """A URL and a body as a client sends them: they are read, or the URL is none."""
        url = self.dice.choice(["https://", "wss://", "//", "http://u:p@", ""]) + self.dice.choice(HOSTS)
        url += self.dice.choice(["", ":443", ":99999", ":x"]) + "/" + "/".join(self.dice.choices(PARTS, k=3)) + "?"
        url += "&".join(f"{self.odd()}"[:50] for _ in range(3))
        try:
            outbound = from_url(
                "get", url, {"content-type": self.dice.choice(["application/json", "x-www-form-urlencoded", ""])}
            )
        except ValueError:
            return  # clients refuse such URLs themselves
        if outbound is not None:
            outbound._replace(body=self.body(self.dice.choice(self.providers))).request()
            assert normal_host(outbound.netloc, outbound.scheme) == outbound.netloc
            assert normal_host(normal_host(url)) == normal_host(url)

    # -- files and records -----------------------------------------------------------------------------------------

    def try_toml(self) -> None:
        """A file of the user's: it is read, or one error tells what is wrong with it."""
        from ratekeeper.config.file import read_settings
        from ratekeeper.rules.files import parse, parse_head

        text = "".join(self.dice.choices(TOML, k=self.dice.randint(1, 12)))
        if self.dice.random() < 0.5:
            good = TESTLAND.read_text("utf-8")
            at = self.dice.randrange(len(good))
            text = good[:at] + text + good[at + self.dice.randint(0, 9) :]
        told = []
        for read in (parse, parse_head):
            try:
                read(text, "f.toml")
            except RuleError as error:
                told.append(str(error))
        file = self.folder / "ratekeeper.toml"
        file.write_text(text, "utf-8", "replace")
        try:
            read_settings(file)
        except RuleError as error:
            told.append(str(error))
            assert str(file) in told[-1]
        assert all(len(each) < 3000 for each in told)

    def try_records(self) -> None:
        """Records of a store, of sessions and of kept answers: they are read, or count as lost."""
        state = ["s", "ban", self.odd(), self.odd(), self.dice.choice([0, 2**62, -1]), 0, "boot"]
        names = ["scope", "kind", "reason", "length", "mono", "wall", "boot"]
        raw = self.damaged(msgspec.json.encode([dict(zip(names, map(_jsonable, state), strict=True))]))
        blocks = Blocks("here")
        blocks.load(meant_blocks(read_or([], encoding.decode_blocks, raw)), 10**15, 10**18)
        assert all(state.length is None or state.length <= 7 * 86_400 * 10**9 for state in blocks.states())
        meant_learned(read_or({}, encoding.decode_learned, self.damaged(b'{"a":{"b":[1,2]}}')))
        read_or((), encoding.decode_held, self.damaged(msgspec.msgpack.encode([("a", 1)])))
        read_or([], encoding.decode_offline, self.dice.randbytes(20))
        (self.folder / "blocks.json").write_bytes(raw)
        read_blocks(self.folder / "blocks.json")
        for kind in (Record, SessionCommand):
            whole = msgspec.json.encode(Record("a@b") if kind is Record else SessionCommand("stop", 1))
            read_or(None, json_decoder(kind), self.damaged(whole))
        records = Records(self.folder)
        records.write(Record("a@b", why="x"))
        records.path("a@b").write_bytes(self.damaged(records.path("a@b").read_bytes()))
        list(records.all()), records.read("a@b")
        unpacked(self.damaged(packed(Reply(200, (("a", "b"),), b"c"), 1, 60.0)))
        storage = FileResponses(self.folder / "answers", 1 << 20)
        storage.put(b"k", b"v", 60)
        kept = self.folder / "answers" / b"k".hex()
        kept.write_bytes(self.damaged(kept.read_bytes()))
        storage.get(b"k")

    # -- Redis -----------------------------------------------------------------------------------------------------

    def try_replies(self) -> None:
        """A reply of the script, and a message of a channel: they are read, or what they raise is among what is caught."""
        call = ScriptCall("shop", lambda charge: charge.limit)
        charge = Charge("shop/calls/ip:a", Limit("calls", "calls", 10, 60_000_000_000, Window.FIXED), 1)
        items: list[list[Any]] = [
            ["reserve", call.charges([charge]), *[0] * 9, 1, 0, 1],
            ["settle", 1], ["note", "topic"], ["swap", "t", False, 1, False], ["block", 1], ["beat"],
        ]  # fmt: skip
        told: list[Any] = [["ok", 1, [0]], [True, [1], ["1f"], [1, 5]], 1, [True, False], ["s", "ban", "r", 5, 1], 7]
        for item in items:
            call.add(Command(lambda request, item=item: item))
        told = [self.odd_reply() if self.dice.random() < 0.3 else each for each in told]
        head = ["ok", 1_700_000_000_000_000, 1, told, [1, 1, 1], 1]
        if self.dice.random() < 0.3:
            head[self.dice.randrange(len(head))] = self.odd_reply()
        raw: Any = [msgspec.msgpack.encode(head), self.dice.randbytes(9)]
        if self.dice.random() < 0.4:
            raw = self.dice.choice([[self.damaged(raw[0]), b""], [], None, b"x", [1, 2], "OK", 7, [None]])
        try:
            call.read(raw)
        except FAULTS:
            pass
        try:
            read_message(self.dice.choice([b"hg:{shop}:bell", self.dice.randbytes(8)]), self.dice.randbytes(9))
        except FAULTS:
            pass

    def odd_reply(self) -> Any:
        """What msgpack can say and nobody expects."""
        return self.dice.choice(
            [None, True, -1, 2**63, 0.5, "x", b"\xff", [], {}, [1] * 9, ["no", 9, 1, 1, 1, 1, 1], ["ok"], 10**6]
        )

    # -- Telegram --------------------------------------------------------------------------------------------------

    def try_telegram(self) -> None:
        """What Telegram answers, and what people write: the bot goes on, and a stranger commands nothing."""
        good = {"update_id": 5, "message": {"chat": {"id": 1}, "date": time.time(), "text": "/status"}}
        update = json.loads(json.dumps(good))
        for place in (update, update["message"], update["message"]["chat"]):
            if self.dice.random() < 0.4:
                name = self.dice.choice(list(place))
                place[name] = _jsonable(self.odd())
        if isinstance(update["message"], dict) and self.dice.random() < 0.6:
            words = [
                "/status",
                "/pause",
                "/resume",
                "/close",
                "/confirm",
                "/positions",
                "/",
                "/\x00",
                "x" * 5000,
                "orders",
                "\ud800",
            ]
            update["message"]["text"] = " ".join(self.dice.choices(words, k=3))
        code, hints = _jsonable(self.odd()), _jsonable(self.odd())
        answers: list[Any] = [
            {"ok": True, "result": [update]}, {"ok": True, "result": hints}, [update], hints,
            {"ok": False, "error_code": code, "parameters": hints, "description": _jsonable(self.odd())},
            {"ok": False, "error_code": 429, "parameters": {"retry_after": hints}},
        ]  # fmt: skip
        self.telegram.fed(self.dice.choice(answers), good)

    @cached_property
    def telegram(self) -> Telegram:
        """A bot without a network."""
        return Telegram()

    # -- the proxy -------------------------------------------------------------------------------------------------

    def try_paths(self) -> None:
        """A path of a client: it is refused, or stays in its base however often a server decodes it."""
        path = "/" + "/".join(self.dice.choices(PARTS, k=self.dice.randint(1, 6)))
        if self.dice.random() < 0.2:
            path = quote(path)
        assert straight(path).startswith("/")
        assert ".." not in straight(path).split("/")
        if not crooked(path):
            assert not leaves(path), path
        host, origin = self.dice.choice(HOSTS), self.dice.choice(ORIGINS)
        guard = Guard(self.dice.choice(["127.0.0.1", "0.0.0.0", "::"]))
        assert guard.is_own(host) is (host.lower().rstrip(".") in ("127.0.0.1", "localhost", "[::1]:9"))
        assert not guard._is_own_origin(origin, "127.0.0.1:9200")
        Upstreams(self.book, {}).find(self.dice.choice([*PARTS, *HOSTS])) if self.dice.random() < 0.02 else None

    def try_lines(self) -> None:
        """The bytes of a request to a running proxy: an answer that is no 500, and nothing sent that should not be."""
        host, origin = self.dice.choice(HOSTS), self.dice.choice([None, None, None, *ORIGINS])
        path = "/".join(
            ["", self.dice.choice(["mine", "mine", "t", "", "..", "evil.test"]), *self.dice.choices(PARTS, k=3)]
        )
        method = self.dice.choice(["GET", "POST", "CONNECT", "OPTIONS", "TRACE", "X"])
        head = f"{method} {path}?q=/../{self.odd()!s:.40} HTTP/1.1\r\n"
        lines = [f"Host: {host}"] + ([] if origin is None else [f"Origin: {origin}"])
        lines += self.dice.sample(LINES, self.dice.randint(0, 4))
        raw = (head + "\r\n".join([*lines, "Connection: close", "", ""])).encode("utf-8", "replace") + b"abc"
        if self.dice.random() < 0.2:
            raw = self.damaged(raw)
            origin = host = None  # who knows
        status, sent = self.proxy.ask(raw)
        assert status is None or status in KEPT or status in (502, 504), (status, raw)
        if host is not None and not Guard().is_own(host):
            assert not sent, (raw, sent)
        if origin is not None:
            assert not sent, (raw, sent)
        for line in sent:
            target = line.split(b" ")[1].decode("latin-1")
            assert target.startswith("/base/"), line
            assert not leaves(target.removeprefix("/base").partition("?")[0]), line

    @cached_property
    def proxy(self) -> Doors:
        """A proxy with an upstream, in a thread of this process; it ends with the process."""
        return Doors()

    # -- exchanges by hand -----------------------------------------------------------------------------------------

    def try_by_hand(self) -> None:
        """What an exchange answers a person: it is shown, or one error says that it cannot be read."""
        desk = self.desk
        rows = [
            {
                "symbol": self.value(["BTCUSDT"]),
                "positionAmt": self.value(["0.5"]),
                "orderId": self.odd(),
                "status": self.odd(),
            }
        ]
        told = self.dice.choice([rows, rows[0], self.odd(), {"data": rows}, {"code": self.odd(), "msg": self.odd()}])
        desk.exchange.request = lambda *_args, **_named: told
        asked: list[Callable[[], object]] = [
            desk.positions,
            desk.orders,
            desk.cancel_all,
            lambda: desk.close_position(self.position),
        ]
        said = ""
        try:
            self.dice.choice(asked)()
        except RatekeeperError as error:
            said = str(error)
        assert SECRET not in said

    @cached_property
    def desk(self) -> Any:
        """A desk whose exchange sends nothing."""
        import ccxt

        from ratekeeper.apps.exchange.accounts import Account
        from ratekeeper.apps.exchange.desk import Desk
        from ratekeeper.config.schema import ExchangeSettings

        desk = object.__new__(Desk)
        exchange = ccxt.binanceusdm({"apiKey": SECRET, "secret": SECRET})
        market = {
            "id": "BTCUSDT",
            "symbol": "BTC/USDT:USDT",
            "base": "BTC",
            "quote": "USDT",
            "settle": "USDT",
            "type": "swap",
        }
        market |= {"swap": True, "contract": True, "linear": True, "spot": False, "contractSize": 1.0}
        market |= {"precision": {"amount": 0.001, "price": 0.1}}
        exchange.set_markets([exchange.safe_market_structure(market)])
        desk.account, desk.exchange = Account("main", "binanceusdm", ExchangeSettings()), exchange
        desk._sleep = lambda _: None
        return desk

    @property
    def position(self) -> Any:
        """A position to close."""
        from ratekeeper.apps.exchange.desk import Position

        return Position("BTC/USDT:USDT", "long", 0.5, 1.0, 1.0, 0.0, 1.0, False)

    @cached_property
    def folder(self) -> Path:
        """A place for files; it goes with this object."""
        found = tempfile.mkdtemp(prefix="ratekeeper-fuzz-")
        weakref.finalize(self, shutil.rmtree, found, ignore_errors=True)
        return Path(found)


def leaves(path: str) -> bool:
    """Whether a server that decodes a path so often, or takes a backslash for a slash, finds it outside of its folder."""
    for times in range(5):
        for text in (path, path.replace("\\", "/"), ";".join(path.split(";")[:1])):
            if posixpath.normpath("/1/2" + text.partition("#")[0]).startswith("/1/2") is False:
                return True
        if unquote(path) == path:
            break
        path = unquote(path)
        assert times < 5
    return False


def _jsonable(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None


class Telegram:
    """A bot whose Telegram is a function."""

    def __init__(self) -> None:
        import httpx

        from ratekeeper.apps.telegram import Api, Bot
        from ratekeeper.apps.telegram.replies import Replies

        self._answers: list[Any] = []
        self._stop = threading.Event()
        self.sent: list[Any] = []

        def serve(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("getUpdates"):
                told = self._answers.pop(0) if self._answers else None
                if not self._answers:
                    self._stop.set()
                return httpx.Response(200, content=json.dumps(told).encode())
            self.sent.append(json.loads(request.content))
            return httpx.Response(200, json={"ok": True, "result": {}})

        self.gate = Gate("memory://", learn=False)
        self._api = Api("12:token", "http://telegram.test", lambda seconds: False)
        self._api._client = httpx.Client(
            base_url="http://telegram.test/bot12:token/", transport=httpx.MockTransport(serve)
        )
        self._bot, self._replies = Bot, Replies(self.gate, self._no_desk)

    @staticmethod
    def _no_desk() -> Any:
        raise RatekeeperError("no exchange here")

    def fed(self, answer: Any, good: Any) -> None:
        """Let a bot read an answer, and a good one afterwards, which it must obey. Numbers of updates rise."""
        found = answer.get("result") if isinstance(answer, dict) else None
        stated = [each.get("update_id") for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        last = max([9, *[number for number in stated if type(number) is int and number < 1 << 52]])
        good = {"ok": True, "result": [{**good, "update_id": last + 1}]}
        self._answers, self.sent = [answer, good, {"ok": True, "result": []}], []
        self._stop.clear()
        bot = self._bot(self._api, self._replies, frozenset({1}), self._stop)
        bot._back_off = lambda *_: None  # type: ignore[method-assign]
        bot.run()
        assert all(each["chat_id"] == 1 and isinstance(each["text"], str) for each in self.sent)
        if not (isinstance(answer, dict) and answer.get("error_code") in (401, 404)):
            assert self.sent


class Doors:
    """A proxy in a thread, with one upstream below ``/base``."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._sent: list[bytes] = []
        self._port = asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(30)

    async def _begin(self) -> int:
        from ratekeeper.apps.proxy.server import Proxy, listen
        from ratekeeper.apps.proxy.session import open_session

        upstream = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = upstream.sockets[0].getsockname()[1]
        self._upstream = upstream
        gate = Gate("memory://", hosts={f"127.0.0.1:{port}": "testland"}, rules=[TESTLAND], max_wait=0.0)
        wanted: dict[str, Upstream | None] = {"mine": Upstream("http", f"localhost:{port}", "/base")}
        self._runner = await listen(Proxy(gate, Upstreams(gate.book, wanted), open_session(2.0)), "127.0.0.1", 0)
        found: int = self._runner.addresses[0][1]
        return found

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._sent.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    def ask(self, raw: bytes) -> tuple[int | None, list[bytes]]:
        """The status of the answer to the bytes of a request, None if the connection was closed; and what was sent on."""
        self._sent.clear()
        return asyncio.run_coroutine_threadsafe(self._ask(raw), self._loop).result(60), list(self._sent)

    async def _ask(self, raw: bytes) -> int | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(raw)
            writer.write_eof()
            head = await asyncio.wait_for(reader.readline(), 20)
            return int(head.split(b" ")[1]) if head.startswith(b"HTTP/") else None
        except ConnectionError:
            return None
        finally:
            writer.close()
