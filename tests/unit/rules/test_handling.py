"""Which calls may be repeated, kept, merged and asked after."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from tests.support.bundled import WHO, ask, call_of, key, safe, single

from ratekeeper.rules.call import Request
from ratekeeper.rules.handling import fingerprint
from ratekeeper.rules.provider import Provider

KEY = {"x-key": "k1"}
FILE = """
apart = ["x-demo"]
good = { code = [0] }

[owners]
account.header = "x-key"

[signing]
timestamp = "timestamp"
signature = "signature"
window = "window"

[keep]
"GET /time" = "0s"
"GET /m/*" = "1h"
"GET /m/{x}/tickers" = "5s"
"POST /balance" = "30s"
"POST /order/test" = "0s"

[[routes]]
match = ["GET /time", "GET /book", "GET /m/{x}/rules", "GET /m/{x}/tickers", "GET /m/{x}/ticker"]
class = "market"

[[routes]]
match = ["GET /account", "POST /balance", "POST /transfer", "DELETE /alarm"]
class = "account"

[[routes]]
match = ["POST /order", "POST /m/{x}/orders", "POST /batch", "POST /order/test"]
class = "order"

[[routes]]
match = "DELETE /order"
class = "cancel"

[[routes]]
match = ["GET /order", "GET /m/{x}/orders/{id}"]
class = "account"

[[merges]]
match = "GET /m/{x}/ticker"
by = "symbol"
to = "/m/{x}/tickers"
list_param = "symbols"

[[merges]]
match = "GET /m/{x}/tickers"
by = "symbol"
rows = "data.rows"
field = "s"
single = "list"

[[lookups]]
match = "POST /order"
route = "GET /order"
params = { symbol = "symbol", clientId = "newId", kind = "'own'" }
needed = ["clientId"]
once = "header.x-once"

[[lookups]]
match = "POST /m/{x}/orders"
route = "GET /m/{x}/orders/{id}"
params = { id = "body.text" }

[[lookups]]
match = "POST /batch"
route = "GET /order"
params = { clientId = "body.*.id" }
"""


@pytest.fixture
def known(provider_of: Callable[[str], Provider]) -> Provider:
    """A provider that uses every shape."""
    return provider_of(FILE)


@pytest.mark.parametrize(
    ("line", "twice"),
    [
        ("GET /time", True),
        ("GET /account", True),
        ("POST /balance", True),
        ("POST /transfer", False),
        ("DELETE /alarm", True),
        ("DELETE /order", True),
        ("POST /order", False),
        ("POST /order/test", True),
        ("GET /unknown", True),
        ("POST /unknown", False),
    ],
)
def test_safe(known: Provider, line: str, twice: bool) -> None:
    """Reads, cancels and what the file names may be made twice; orders and what nobody knows may not."""
    assert safe(known, line) is twice


def test_once(known: Provider) -> None:
    """An order may be made twice where it carries the key that the provider carries out once."""
    assert safe(known, "POST /order", headers={"x-once": "a"})
    assert not safe(known, "POST /m/spot/orders", headers={"x-once": "a"})


def test_orders_by_get(provider_of: Callable[[str], Provider]) -> None:
    """Where orders are placed by GET, a GET is only safe if the file says that it reads."""
    known = provider_of(
        '[keep]\n"GET /get" = "0s"\n[[routes]]\nmatch = "GET /buy"\nclass = "order"\n'
        '[[routes]]\nmatch = ["GET /get", "GET /withdraw"]\nclass = "account"\n'
        '[[routes]]\nmatch = "GET /book"\nclass = "market"\n'
    )
    lines = ("GET /buy", "GET /get", "GET /withdraw", "GET /book", "GET /unknown")
    assert [safe(known, line) for line in lines] == [False, True, False, True, False]


def test_ttl(known: Provider) -> None:
    """The longest pattern holds; a route that none names has no time of its own."""
    lines = ("GET /time", "GET /m/spot/rules", "GET /m/spot/tickers", "POST /balance", "GET /book", "GET /unknown")
    ttls = [known.handling.ttl(known.plan(call_of(line), WHO)) for line in lines]
    assert ttls == [0, 3600, 5, 30, None, None]


def test_ask(known: Provider) -> None:
    """Parameters come from the first call, constants from the file, and without the needed ones nothing can be asked."""
    assert ask(known, "POST /order?newId=a1&symbol=X") == "GET /order?clientId=a1&kind=own&symbol=X"
    assert ask(known, "POST /order?newId=a1") == "GET /order?clientId=a1&kind=own"
    assert ask(known, "POST /order?symbol=X") == ""
    assert ask(known, "GET /account") == ""


def test_ask_by_path(known: Provider) -> None:
    """Places in the path are filled from the parameters, quoted, or from the same place in the first call's path."""
    assert ask(known, "POST /m/usdt/orders", body={"text": "t-1/2"}) == "GET /m/usdt/orders/t-1%2F2"
    assert ask(known, "POST /m/usdt/orders", body={}) == ""


def test_ask_for_a_batch(known: Provider) -> None:
    """One order of a batch can be asked after; of several, none alone."""
    assert ask(known, "POST /batch", body=[{"id": "a"}]) == "GET /order?clientId=a"
    assert ask(known, "POST /batch", body=[{"id": "a"}, {"id": "b"}]) == ""


def test_key_leaves_out_what_a_signature_adds(known: Provider) -> None:
    """The same question has the same key, whenever it is signed; another question has another."""
    first = key(known, "GET /account?a=1&timestamp=1&signature=x&window=5&nonce=1", headers=KEY)
    assert first == key(known, "GET /account?timestamp=2&signature=y&nonce=2&a=1", headers=KEY)
    assert first != key(known, "GET /account?a=2", headers=KEY)
    assert first is not None


def test_key_belongs_to_the_account(known: Provider) -> None:
    """What is an account's own is never another's, nor kept without one; market data is everybody's."""
    assert key(known, "GET /account", headers=KEY) != key(known, "GET /account", headers={"x-key": "k2"})
    assert key(known, "GET /account") is None
    assert key(known, "GET /book", headers=KEY) == key(known, "GET /book") is not None


def test_worlds_are_apart(known: Provider) -> None:
    """Answers of demo trading are not those of the market, kept or merged."""
    demo = {"x-demo": "1"}
    assert key(known, "GET /book") != key(known, "GET /book", headers=demo)
    here, there = (single(known, "GET /m/spot/ticker?symbol=A", headers=each) for each in (None, demo))
    assert here is not None
    assert there is not None
    assert here.group != there.group


def test_a_post_without_body_is_not_kept(known: Provider) -> None:
    """What a POST asks for stands in its body: if that cannot be seen, nobody knows what the answer is to."""
    assert key(known, "POST /balance", headers=KEY) is None
    assert key(known, "POST /balance", headers=KEY, body={"asset": "A"}) is not None


def test_good(known: Provider) -> None:
    """An error under a good status is told by the field that the file names; without it nothing is wrong."""
    answers = (b'{"code":"0"}', b'{"code":0,"data":[]}', b'{"code":"50001"}', b'{"data":1}', b"[1]", b"no json")
    assert [known.handling.good(body) for body in answers] == [True, True, False, True, True, True]


def test_single_by_names(known: Provider) -> None:
    """Calls that differ by the name only are one group, and become one call that names all."""
    one, two = single(known, "GET /m/spot/ticker?symbol=B&kind=1"), single(known, "GET /m/spot/ticker?symbol=A&kind=1")
    assert one is not None
    assert two is not None
    assert one.group == two.group
    assert one.together(["B", "A"]) == Request("GET", "/m/spot/tickers", {"kind": "1", "symbols": '["A","B"]'})
    others = ("GET /m/spot/ticker?symbol=A&kind=2", "GET /m/swap/ticker?symbol=A&kind=1")
    assert all(each is not None and each.group != one.group for each in (single(known, line) for line in others))


@pytest.mark.parametrize(
    "line",
    ["GET /m/spot/ticker", "GET /m/spot/ticker?symbol=A,B", "GET /m/spot/ticker?symbol=A&symbols=[]", "GET /book"],
)
def test_not_single(known: Provider, line: str) -> None:
    """What names nobody, several, or has no form for many is left alone."""
    assert single(known, line) is None


def test_split(known: Provider) -> None:
    """Each gets the answer that it would have had: the same around, its own row in the list."""
    found = single(known, "GET /m/spot/tickers?symbol=A")
    assert found is not None
    assert found.together(["A"]) == Request("GET", "/m/spot/tickers", {})
    whole = {"code": 0, "data": {"at": 7, "rows": [{"s": "A", "p": "1.0"}, {"s": "B", "p": "2.0"}, {"p": "3"}]}}
    parts = found.split(msgspec.json.encode(whole))
    assert {name: msgspec.json.decode(part) for name, part in parts.items()} == {
        "A": {"code": 0, "data": {"at": 7, "rows": [{"s": "A", "p": "1.0"}]}},
        "B": {"code": 0, "data": {"at": 7, "rows": [{"s": "B", "p": "2.0"}]}},
    }
    assert found.split(b'{"code":1,"data":null}') == found.split(b"<html>") == {}


def test_fingerprint() -> None:
    """The order of parameters does not matter, their values do."""
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
