"""The SDKs of exchanges, real ones against a real server: what they send is charged once, and signed after the wait."""

from __future__ import annotations

import ast
import hmac
import inspect
import logging
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from ratekeeper import Blocked, Gate, OutcomeUnknown, Rejected, adapters
from ratekeeper.adapters._client import ClientCall
from ratekeeper.adapters._sdk import install, planned, problems
from ratekeeper.adapters.requests import govern as govern_session

from forward import ForwardProxy  # isort: skip - from tests/support, which the folder's conftest puts on the path

if TYPE_CHECKING:
    from sdks import Kind

# The deprecations are the SDKs' own. They take seconds to import: one worker does, and when the first of them is used.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.xdist_group("sdks")]
NAMES = ("python-binance", "python-binance-async", "binance-connector", "binance-sdk", "pybit", "python-okx")
EACH = pytest.mark.parametrize("kind", NAMES, indirect=True)
REPEATING = pytest.mark.parametrize(
    ("kind", "do"),
    [("binance-sdk", "fail-once"), ("pybit", "code-once")],
    ids=["binance-sdk", "pybit"],
    indirect=["kind"],
)


@cache
def kinds() -> dict[str, Kind]:
    """The SDKs, by name."""
    from sdks import KINDS

    assert tuple(KINDS) == NAMES
    return KINDS


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    """One of them."""
    return kinds()[request.param]


@EACH
def test_what_is_planned_is_what_is_sent(kind: Kind, origin: Any, gate: Any, spent: Any) -> None:
    """The cost follows from the parameters that are sent, in query, form or body; nothing is charged twice."""
    kind.one(origin.url, gate, [("GET", "/priced", {"limit": 50})])
    assert spent() == (7, 0)
    kind.one(origin.url, gate, [("POST", "/json" if kind.json else "/form", {"amount": 50})])
    assert spent() == (7 + (11 if kind.json else 9), 0)
    assert [(a.method, a.path) for a in origin.arrivals] == [("GET", "/priced"), ("POST", origin.arrivals[1].path)]


@EACH
def test_the_key_is_planned_as_it_is_sent(kind: Kind, origin: Any, gate: Any, monkeypatch: Any) -> None:
    """One attempt is opened per request, with the key that the request will carry: limits of accounts need it."""
    opened: list[Any] = []
    original = ClientCall.begin
    monkeypatch.setattr(
        ClientCall, "begin", lambda call, timeout: opened.append(call.outbound) or original(call, timeout)
    )
    kind.one(origin.url, gate, [("GET", "/priced", {"limit": 50})])
    assert [(it.method, it.path) for it in opened] == [("GET", "/priced")]
    [name] = [name for name, value in origin.arrivals[0].headers.items() if value == "kkkk"]
    assert opened[0].headers[name] == "kkkk"


@EACH
def test_the_signature_is_made_after_the_wait(kind: Kind, origin: Any, gate: Any) -> None:
    """A call that has to wait is signed when it may go, so its timestamp is never as old as the wait."""
    free = time.time() + 0.4
    gate.block(f"testland@{origin.place}", 0.4)
    kind.one(origin.url, gate, [("GET", "/priced", {})])
    assert kind.signed_at(origin.arrivals[0]) >= free - 0.05


@REPEATING
def test_a_repetition_waits_before_it_is_signed(
    kind: Kind, do: str, origin: Any, gate: Any, spent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an SDK repeats by itself is a new request: it is charged, it waits, and it is signed after that wait."""
    free: list[float] = []

    def sleep(seconds: float) -> None:
        free.append(time.time() + 0.4)
        gate.block(f"testland@{origin.place}", 0.4)

    module = inspect.getmodule(kind.owner)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, time=time.time))
    kind.one(origin.url, gate, [("GET", "/priced", {"limit": 50, "do": do})])
    first, second = origin.arrivals
    assert spent() == (14, 0)
    assert kind.signed_at(first) < kind.signed_at(second)
    assert kind.signed_at(second) >= free[0] - 0.05


@EACH
def test_a_refusal_is_the_sdks_own_error(kind: Kind, origin: Any, gate: Any, spent: Any) -> None:
    """A rejected call raises the error that the SDK has for it, with its fields and our text; nothing is sent."""
    kind.one(origin.url, gate, [("GET", "/few", {})] * 2)
    with pytest.raises(kind.family) as caught:
        kind.one(origin.url, gate, [("GET", "/few", {})])
    error: Any = caught.value
    assert isinstance(error, Rejected) and error.retry_at is not None
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert "few-1d" in str(one)
        assert {name: getattr(one, name) for name in kind.fields} == kind.fields
    assert spent("few-1d") == (2, 0)
    assert len(origin.arrivals) == 2


@EACH
def test_an_order_that_met_trouble_inside_is_unknown(kind: Kind, origin: Any, gate: Any) -> None:
    """Where the SDK raises its error of a refusal, it is ours as well: nobody knows what became of the order."""
    origin.says = (400, {"code": -1000, "msg": "An unknown error occurred", "retCode": 1, "retMsg": "unknown error"})
    call = [("POST", "/json" if kind.json else "/form", {"amount": 5, "do": "say"})]
    if kind.sdk.name in {"pybit", "python-okx"}:  # they hand such an answer to the program
        kind.one(origin.url, gate, call)
    else:
        with pytest.raises(OutcomeUnknown) as caught:
            kind.one(origin.url, gate, call)
        assert isinstance(caught.value, type(caught.value.__cause__))
    assert len(origin.arrivals) == 1


@EACH
def test_a_long_ban_is_the_sdks_own_error(kind: Kind, origin: Any, gate: Any) -> None:
    """It is told at once, with the status and the code that the provider would have sent; who asked to wait waits."""
    gate.block(f"testland@{origin.place}", 75, "ban", "by the shop")
    with pytest.raises(kind.family) as caught:
        kind.one(origin.url, gate, [("GET", "/priced", {})])
    error: Any = caught.value
    assert isinstance(error, Blocked) and error.seconds is not None
    codes = {name: value for name, value in kind.fields.items() if "code" in name}
    if kind.sdk.name == "pybit":
        codes = {"status_code": 429}  # what Testland answers has no `retCode`
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert {name: getattr(one, name) for name in codes} == codes
        assert (one.kind, one.response) == ("ban", None)
    assert origin.arrivals == []


@EACH
def test_answers_of_any_kind_are_seen(kind: Kind, origin: Any, gate: Any, spent: Any) -> None:
    """A refusal by the server reaches the gate with its body; one that never left costs nothing; a lost one stays."""
    kinds: list[str] = []
    gate.on(lambda event: kinds.append(event.kind))
    if kind.sdk.name == "python-okx":  # raises nothing, whatever the status
        kind.one(origin.url, gate, [("GET", "/priced", {"do": "refuse"})])
    else:
        with pytest.raises(kind.refused):
            kind.one(origin.url, gate, [("GET", "/priced", {"do": "refuse"})])
    assert kinds.count("throttled") == 1
    with pytest.raises(kind.lost):
        kind.one(origin.url, gate, [("POST", "/few?do=reset", {})])
    assert sum(spent("few-1d")) == 1


@EACH
def test_without_a_server_nothing_is_spent(kind: Kind, origin: Any, gate: Any, spent: Any) -> None:
    """No connection: every attempt that was made comes back."""
    origin.server.shutdown()
    origin.server.server_close()
    with pytest.raises(Exception) as caught:
        kind.one(origin.url, gate, [("POST", "/few", {})])
    assert not isinstance(caught.value, Rejected)
    assert spent("few-1d") == (0, 0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "python-okx"])
def test_a_call_that_the_sdk_refuses_is_not_spent(name: str, origin: Any, gate: Any, spent: Any) -> None:
    """No secret: the SDK cannot sign, nothing is sent, nothing is charged."""
    with pytest.raises((AssertionError, AttributeError, PermissionError, ValueError)):
        kinds()[name].one(origin.url, gate, [("GET", "/few", {})], keyed=False)
    assert (origin.arrivals, spent("few-1d")) == ([], (0, 0))


def test_a_timestamp_of_the_callers_own(origin: Any, gate: Any) -> None:
    """binance-sdk keeps a timestamp that it is given: such a call never waits until it is stale."""
    gate.block(f"testland@{origin.place}", 4)
    params = {"timestamp": int(time.time() * 1000), "recvWindow": 1000}
    with pytest.raises(kinds()["binance-sdk"].lost, match="is shut") as caught:
        kinds()["binance-sdk"].one(origin.url, gate, [("POST", "/priced", params)])
    assert isinstance(caught.value.__cause__, Rejected)
    assert origin.arrivals == []


@EACH
def test_only_the_object_that_was_governed(kind: Kind, origin: Any, gate: Any) -> None:
    """A second object of the same SDK passes: the hooks stand in the class, the governor in the object."""
    kind.one(origin.url, gate, [])
    kind.one(origin.url, None, [("GET", "/few", {})])
    assert len(origin.arrivals) == 1
    assert gate.read().ledgers == []


# --- several addresses ------------------------------------------------------------------------------------------

OVER_REQUESTS = ["python-binance", "binance-connector", "binance-sdk", "pybit"]
POOL = """
[egress.addresses]
a = {first}
b = "127.0.0.3"
[egress.pools."*"]
primary = "a"
backups = ["b"]
"""


@pytest.fixture
def pooled(origin: Any, tmp_path: Path) -> Iterator[Callable[[str], Gate]]:
    """Makes a gate with two addresses, the first of which is given as TOML."""
    with ExitStack() as stack:

        def make(first: str = '"127.0.0.2"') -> Gate:
            (tmp_path / "ratekeeper.toml").write_text(POOL.format(first=first))
            rules = [Path(__file__).parents[2] / "support" / "testland.toml"]
            settings = {"config": tmp_path / "ratekeeper.toml", "hosts": {origin.place: "testland"}, "max_wait": 2}
            return stack.enter_context(Gate("memory://", rules=rules, **settings))

        yield make


@EACH
def test_calls_leave_from_the_address_that_they_are_counted_on(kind: Kind, origin: Any, pooled: Any) -> None:
    """Four orders where each address has two: both addresses are used. A client that cannot choose keeps to one."""
    gate = pooled()
    calls = [("POST", "/few", {})] * 2
    kind.one(origin.url, gate, calls)
    if any(kind is kinds()[name] for name in OVER_REQUESTS):
        kind.one(origin.url, gate, calls)
        assert [arrival.source for arrival in origin.arrivals] == ["127.0.0.2"] * 2 + ["127.0.0.3"] * 2
    else:  # the connection pool of a client that exists already
        with pytest.raises(Rejected):
            kind.one(origin.url, gate, calls)
        assert {arrival.source for arrival in origin.arrivals} == {"127.0.0.1"}


def _tell(name: str, client: Any, url: str) -> None:
    """Gives an SDK a proxy, in the way it offers."""
    both = {"http": url, "https": url}
    if name == "python-binance":
        client._requests_params = {"proxies": both}
    elif name == "binance-connector":
        client.proxies = both
    elif name == "binance-sdk":
        host, port = url.removeprefix("http://").split(":")
        client.configuration.proxy = {"protocol": "http", "host": host, "port": int(port)}
    else:
        client.client.proxies = both


@pytest.mark.parametrize("told", ["SDK", "environment"])
@pytest.mark.parametrize("name", OVER_REQUESTS)
def test_a_proxy_of_the_users_own(name: str, told: str, origin: Any, pooled: Any, monkeypatch: Any) -> None:
    """Calls through a proxy that the user gave to the SDK, or to the environment, are counted on the default address."""
    kind, gate = kinds()[name], pooled()
    with ForwardProxy("127.0.0.9") as proxy:

        def make(*given: Any) -> Any:
            client = kind.make(*given)
            if told == "SDK":
                _tell(name, client, proxy.url)
            return client

        if told == "environment":
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.setenv("http_proxy", proxy.url)
        kind._replace(make=make).one(origin.url, gate, [("GET", "/few", {})] * 2)
        with pytest.raises(Rejected):
            kind._replace(make=make).one(origin.url, gate, [("GET", "/few", {})])
    assert [arrival.source for arrival in origin.arrivals] == ["127.0.0.9"] * 2
    assert {view.key.rpartition("/")[2] for view in gate.read().ledgers} == {"ip:a"}


@pytest.mark.parametrize("name", OVER_REQUESTS)
def test_no_connection_from_one_address(name: str, origin: Any, pooled: Any) -> None:
    """The call is made again from the next address, with a signature of its own, and is charged once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    gate = pooled(f'{{ proxy = "http://127.0.0.1:{closed}" }}')
    kinds()[name].one(origin.url, gate, [("GET", "/few", {"symbol": "X"})])
    [arrival] = origin.arrivals
    assert arrival.source == "127.0.0.3"
    if "signature" in arrival.params:
        signed = urlencode({field: value for field, value in arrival.params.items() if field != "signature"})
        assert arrival.params["signature"] == hmac.new(b"ssss", signed.encode(), "sha256").hexdigest()
    spent = {view.key.rpartition(":")[2]: view.used + view.inflight for view in gate.read().ledgers}
    assert {name: used for name, used in spent.items() if used} == {"b": 1}


# --- private hooks ----------------------------------------------------------------------------------------------

ORDER = {
    "python-binance": ["self._get_request_kwargs(", "getattr(self.session, method)("],
    "python-binance-async": ["self._get_request_kwargs(", "getattr(self.session, method)("],
    "pybit": ["while retries_attempted > 0", "self._prepare_headers(", "self.client.send("],
    "binance-sdk": ["while attempt <= retries", "get_timestamp()", "session.request("],
    "python-okx": ["utils.get_timestamp()", "self.get("],
    "binance-connector": ["get_timestamp()", "self.send_request("],
}
"""What a hooked method does, in this order: sign, then call its HTTP client."""


@pytest.mark.parametrize("name", NAMES)
def test_hooks_are_where_we_think(name: str) -> None:
    """Every private method that we hook is there, takes what we read, and signs inside, before it sends."""
    kind = kinds()[name]
    advice = (
        f"{kind.sdk.name} {version(kind.sdk.name)} has moved what Ratekeeper hooks. Look at how it signs and sends now,"
        f" change ratekeeper.adapters (the module that describes {kind.sdk.name}), then this test"
    )
    assert not problems(kind.sdk, kind.owner), advice
    source = inspect.getsource(inspect.unwrap(getattr(kind.owner, next(iter(kind.sdk.calls)))))
    places = [source.find(text) for text in ORDER[name]]
    assert -1 not in places and places == sorted(places), advice


def test_a_moved_hook_is_said_and_harmless(caplog: pytest.LogCaptureFixture) -> None:
    """An SDK of another shape is left as it is, with one warning that names it and says what follows."""

    class Client:
        def _request(self, verb: str) -> str:
            return verb

    sdk = kinds()["python-binance"].sdk
    with caplog.at_level(logging.WARNING, "ratekeeper"):
        install(sdk, Client)
        install(sdk, SimpleNamespace(__name__="binance"))
    assert Client()._request("get") == "get"
    first, second = [record.getMessage() for record in caplog.records]
    assert f"python-binance {version('python-binance')}" in first
    assert "Client._request does not take method, uri, signed, force_params, kwargs" in first
    assert "binance._request is gone" in second


def test_run_hooks_what_is_described() -> None:
    """The table of `ratekeeper run`, which can import nothing, names every module that a description hooks."""
    table = (Path(adapters.__file__).parent / "startup" / "sitecustomize.py").read_text(encoding="utf-8")
    assigned = [node for node in ast.parse(table).body if isinstance(node, ast.Assign)]
    hooks = next(ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "HOOKS")
    for kind in kinds().values():
        ours = inspect.getmodule(kind.sdk.outbound)
        assert ours is not None
        assert {hooks[module] for module in kind.sdk.owners} == {ours.__name__}


def test_planned_request() -> None:
    """Parameters join the query that is there; None is left out; a body is JSON."""
    made = planned("get", "https://a.invalid/b?c=1", {"X-Key": "k", "Y": None}, {"d": [1, 2], "e": None})
    assert made is not None
    assert (made.method, made.netloc, made.path, made.query) == ("GET", "a.invalid", "/b", "c=1&d=1&d=2")
    assert made.headers == {"x-key": "k"}
    made = planned("POST", "https://a.invalid/b", {}, body='{"f": 3}')
    assert made is not None and made.json_body() == {"f": 3}


def test_a_session_keeps_its_adapters(origin: Any, gate: Any, spent: Any) -> None:
    """Governing a session in place keeps the class and options of its adapters, and covers those mounted later."""
    import requests

    class Own(requests.adapters.HTTPAdapter):
        pass

    with requests.Session() as session:
        first = Own(pool_maxsize=3)
        session.mount("http://", first)
        assert govern_session(session, gate=gate) is session
        session.get(origin.url + "/priced?limit=50")
        assert session.get_adapter(origin.url) is first
        assert isinstance(first, Own) and first._pool_maxsize == 3
        session.mount("http://", Own())
        session.get(origin.url + "/priced?limit=50")
    assert spent() == (14, 0)
