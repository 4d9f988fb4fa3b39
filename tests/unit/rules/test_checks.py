"""What a rule file may not mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ratekeeper.errors import RuleError
from ratekeeper.rules.checks import refuse_unready, unready
from ratekeeper.rules.schema import File

LIMIT = 'unit = "calls"\ncapacity = 10\nperiod = "1m"\n'
TWO = '[[routes]]\nmatch = "GET /a/{x}"\n%s\n[[routes]]\nmatch = "GET /a/{y}"\n%s\n'


@pytest.mark.parametrize(
    ("fragment", "key", "words"),
    [
        ('hosts = ["https://a.example"]', "$.hosts[0]", "plain host"),
        ('hosts = ["A.example"]', "$.hosts[0]", "lower case"),
        ('source = "NONE"', "$.limits.calls-1m.source", "unknown source"),
        ('source = ""', "$.limits.calls-1m.source", "no source"),
        ("[limits]", "$.limits", "no limit"),
        ('[limits.a]\nunit = "calls"\ncapacity = 1', "$.limits.a.period", "needs a period"),
        (f'[limits.a]\n{LIMIT}window = "slots"', "$.limits.a.period", "has no period"),
        ('[limits.a]\nunit = "calls"\ncapacity = 1\nperiod = "soon"', "$.limits.a.period", "not a duration"),
        (f"[limits.a]\n{LIMIT}refill = 1", "$.limits.a.refill", "bucket"),
        (f'[limits.a]\n{LIMIT}origin = "8h"', "$.limits.a.origin", "fixed"),
        (f"[limits.a]\n{LIMIT}headroom = 10", "$.limits.a", "leaves nothing"),
        (f'[limits.a]\n{LIMIT}scope = "planet"', "$.limits.a.scope", "[owners.planet]"),
        (f'[limits.a]\n{LIMIT}scope = "account"', "$.limits.a.scope", "header"),
        (f'[limits.a]\n{LIMIT}scope = ["ip", "ip"]', "$.limits.a.scope", "once"),
        (f"[limits.a]\n{LIMIT}scope = []", "$.limits.a.scope", "once"),
        (f'[limits.a]\n{LIMIT}headers.used = "X-Used"', "$.limits.a.headers.used", "lower case"),
        (f"[limits.a]\n{LIMIT}headroom = 7\ntiers = {{ lead = 5 }}", "$.limits.a", "leaves nothing"),
        (f"[limits.calls]\n{LIMIT}[limits.b]\n{LIMIT}", "$.limits.b.unit", "also the name of a limit"),
        ("[owners.ip]\nvalue = 'x'", "$.owners.ip", "built in"),
        ("[owners.account]\nvalue = 'x'", "$.owners.account", "secret"),
        ("[owners.a]\nvalue = 'x'\nheader = 'y'", "$.owners.a", "exactly one"),
        ("[owners.a]\nvalue = 'x'\npattern = '('", "$.owners.a.pattern", "regular expression"),
        ("[owners.a]\nvalue = 'x.y'", "$.owners.a.value", "unknown root"),
        ("[owners.a]\nvalue = 'body.'", "$.owners.a.value", "Write body.NAME"),
        ("[every]\nweight = 1", "$.every.weight", "calls, calls-1m"),
        ("[default]\ncost = { weight = 1 }", "$.default.cost.weight", "no limit has the name or the unit"),
        ('[[routes]]\nmatch = "/a"', "$.routes[0].match", "METHOD /path"),
        ('[[routes]]\nmatch = "FETCH /a"', "$.routes[0].match", "METHOD /path"),
        ('[[routes]]\nmatch = "GET /a*"', "$.routes[0].match", "whole segment"),
        ('[[routes]]\nmatch = "GET /*/a"', "$.routes[0].match", "METHOD /path"),
        ("[[routes]]\nmatch = []", "$.routes[0].match", "matches nothing"),
        (TWO % ("", ""), "$.routes[1].match", "taken by $.routes[0]"),
        (TWO % ("", "where = { a = 1 }"), "$.routes[1].match", "taken"),
        (TWO % ("where = { a = 1 }", "where = { a = 1 }"), "$.routes[1].match", "taken"),
        ('[[routes]]\nmatch = "GET /a"\nwhere = { a = {} }', "$.routes[0].where.a", "empty"),
        ('[[routes]]\nmatch = "GET /a"\nsource = "X"', "$.routes[0].source", "unknown source"),
        ("[default]\ncost = { calls = { by = 'n' } }", "$.default.cost.calls", "one of bands, cases, each"),
        (
            "[default]\ncost = { calls = { bands = [[1, 2]], missing = 1 } }",
            "$.default.cost.calls",
            "exactly one of by",
        ),
        (
            "[default]\ncost = { calls = { by = 'n', has = 'm', cost = 1 } }",
            "$.default.cost.calls",
            "exactly one of by",
        ),
        (
            "[default]\ncost = { calls = { by = 'n', bands = [[5, 1], [5, 2]], missing = 1 } }",
            "$.default.cost.calls",
            "rise",
        ),
        ("[default]\ncost = { calls = { by = 'n', bands = [[5, 1]] } }", "$.default.cost.calls", "Add `missing`"),
        ("[default]\ncost = { calls = [{ has = 'n', cost = 1 }] }", "$.default.cost.calls", "Add `missing`"),
        ("[default]\ncost = { calls = { has = 'n', missing = 1 } }", "$.default.cost.calls", "belong together"),
        (
            "[default]\ncost = { calls = { by = 'answer.n', each = 1, missing = 1 } }",
            "$.default.cost.calls",
            "cannot be known",
        ),
        ("[default]\nok = { calls = { by = 'n', each = 1 } }", "$.default.ok.calls", "cannot be known"),
        ('[[refusals]]\noutcome = "throttled"', "$.refusals[0]", "matches every answer"),
        ('[[refusals]]\nstatus = [200]\noutcome = "throttled"', "$.refusals[0]", "only by its body"),
        ('[[refusals]]\nstatus = [429]\noutcome = "throttled"\nlimits = ["x"]', "$.refusals[0].limits", "no limit"),
        ('[[refusals]]\nstatus = [429]\noutcome = "throttled"\nblock = "ip"', "$.refusals[0].hold", "how long"),
        ('[[refusals]]\nstatus = [418]\noutcome = "banned"\nblock = "moon"', "$.refusals[0].block", "unknown owner"),
        ('[[refusals]]\nstatus = [429]\noutcome = "throttled"\ninterval = "x"', "$.refusals[0].interval", "two groups"),
        ('[[refusals]]\ntext = "("\noutcome = "throttled"', "$.refusals[0].text", "regular expression"),
        ('[hints]\nretry = [{ format = "seconds" }]', "$.hints.retry[0]", "exactly one"),
        ('[hints]\nretry = [{ text = "x", format = "seconds" }]', "$.hints.retry[0].text", "group"),
        ('[hints]\nlongest = "ever"', "$.hints.longest", "not a duration"),
        ('[ban]\nfirst = "0s"', "$.ban.first", "not a duration"),
        ('[[learn]]\nroute = "GET /a"', "$.learn[0]", "nothing to learn"),
        ('[[learn]]\nroute = "GET /a"\nrows = "r"', "$.learn[0]", "exactly one of type, limit_name"),
        ('[[learn]]\nroute = "GET /a"\nrows = "r"\nlimit_name = "x"', "$.learn[0].limit_name", "unknown limit"),
        (
            '[[learn]]\nroute = "GET /a"\nrows = "r"\ntype = "t"\nunits = { A = "x" }',
            "$.learn[0].units",
            "no limit counts",
        ),
    ],
)
def test_wrong(file_of: Callable[[str], File], fragment: str, key: str, words: str) -> None:
    """Each mistake of meaning is refused at its key with a remedy."""
    with pytest.raises(RuleError) as caught:
        file_of(fragment)
    assert (caught.value.file, caught.value.key) == ("test.toml", key)
    assert words in str(caught.value)
    assert str(caught.value).count(". ") >= 1


def test_conditional_routes_may_share(file_of: Callable[[str], File]) -> None:
    """Routes with one match but different conditions are good when the unconditional one is last."""
    assert len(file_of(TWO % ("where = { a = 1 }", "")).routes) == 2


@pytest.mark.parametrize(
    ("fragment", "key"),
    [
        (f'[limits.a]\n{LIMIT}zone = "UTC"', "$.limits.a.zone"),
        (f'[limits.a]\n{LIMIT}calendar = "month"', "$.limits.a.calendar"),
        ('[owners.org]\nsetting = "org"', "$.owners.org.setting"),
        ("[default]\ncost = { calls = [1, { estimate = 'input' }] }", "$.default.cost.calls"),
        ('[ramp]\nfactor = 2\nevery = "1m"', "$.ramp"),
    ],
)
def test_later(file_of: Callable[[str], File], fragment: str, key: str) -> None:
    """What this version cannot evaluate is refused when it is used, because ignoring it could break a limit."""
    file = file_of(fragment)
    assert [at for at, _ in unready(file)] == [key]
    with pytest.raises(RuleError, match="not evaluated yet") as caught:
        refuse_unready(file, "test.toml")
    assert caught.value.key == key


def test_wrong_shape_of_a_value(file_of: Callable[[str], File]) -> None:
    """A pattern that is none is found, and named."""
    with pytest.raises(RuleError) as caught:
        file_of('[[routes]]\nmatch = "GET /x"\nwhere = { id = { matches = "(" } }')
    assert caught.value.key == "$.routes[0].where.id.matches"


# --- What a rule file may not mean by what it says of keeping, merging and looking up. -------------------------------


ROUTES = '[[routes]]\nmatch = ["GET /a", "GET /all", "POST /b/{id}", "GET /b/{id}"]\n'
MERGE = ROUTES + '[[merges]]\nby = "x"\n'
LOOKUP = ROUTES + "[[lookups]]\n"


@pytest.mark.parametrize(
    ("fragment", "key", "words"),
    [
        (ROUTES + '[keep]\n"GET /c" = "1s"', "$.keep.GET /c", "fits no route"),
        (ROUTES + '[keep]\n"GET /*" = "soon"', "$.keep.GET /*", "not a duration"),
        ('apart = ["X-Demo"]\n' + ROUTES, "$.apart[0]", "lower case"),
        (ROUTES + '[signing]\ntimestamp = "t"', "$.signing", "`timestamp` and `signature`"),
        (ROUTES + '[signing]\nnonce = "n"', "$.signing", "`nonce` and `key`"),
        (ROUTES + '[signing]\nnonce = "n"\nkey = "header.K"', "$.signing.key", "names nothing"),
        (ROUTES + '[signing]\ndefault = "5s"', "$.signing", "says nothing"),
        (MERGE + 'match = "GET /c"', "$.merges[0].match", "no route of this file"),
        (MERGE + 'match = "POST /b/{id}"', "$.merges[0].match", "only reads"),
        (MERGE + 'match = "GET /a"\nto = "/c"', "$.merges[0].to", "no route of this file"),
        (MERGE + 'match = "GET /a"\nsource = "NONE"', "$.merges[0].source", "unknown source"),
        (LOOKUP + 'match = "POST /c"\nroute = "GET /a"\nparams = {}', "$.lookups[0].match", "no route of this file"),
        (LOOKUP + 'match = "POST /b/{id}"\nroute = "GET /c"\nparams = {}', "$.lookups[0].route", "no route"),
        (
            LOOKUP + 'match = "POST /b/{id}"\nroute = "GET /a"\nparams = { x = "reply.x" }',
            "$.lookups[0].params.x",
            "unknown root",
        ),
        (
            LOOKUP + 'match = "POST /b/{id}"\nroute = "GET /a"\nparams = { x = "y" }\nneeded = ["z"]',
            "$.lookups[0].needed",
            "not among",
        ),
        (
            LOOKUP + 'match = "POST /b/{id}"\nroute = "GET /a"\nparams = {}\nonce = "header.X"',
            "$.lookups[0].once",
            "names nothing",
        ),
        (
            LOOKUP + 'match = "POST /b/{id}"\nroute = "GET /a"\nparams = {}\nsource = "NONE"',
            "$.lookups[0].source",
            "unknown source",
        ),
    ],
)
def test_wrong_handling(file_of: Callable[[str], File], fragment: str, key: str, words: str) -> None:
    """Each mistake is refused at its key, with a remedy."""
    with pytest.raises(RuleError, match=r"\. [A-Z]") as caught:
        file_of(fragment)
    assert caught.value.key == key
    assert words in str(caught.value)


def test_right(file_of: Callable[[str], File]) -> None:
    """Patterns over routes, no time at all, constants and places in paths are good."""
    file = file_of(
        'apart = ["x-demo"]\ngood = { code = [0] }\n'
        + ROUTES
        + '[keep]\n"* /b/*" = "0s"\n'
        + '[[merges]]\nmatch = "GET /a"\nby = "x"\nto = "/all"\n'
        + "[[lookups]]\nmatch = 'POST /b/{id}'\nroute = 'GET /b/{id}'\nparams = { kind = \"'a.b'\" }\n"
    )
    assert (file.keep, file.merges[0].to, file.lookups[0].params) == ({"* /b/*": "0s"}, "/all", {"kind": "'a.b'"})
