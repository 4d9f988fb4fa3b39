"""What a rule file may not mean by what it says of keeping, merging and looking up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ratekeeper.errors import RuleError
from ratekeeper.rules.schema import File

ROUTES = '[[routes]]\nmatch = ["GET /a", "GET /all", "POST /b/{id}", "GET /b/{id}"]\n'
MERGE = ROUTES + '[[merges]]\nby = "x"\n'
LOOKUP = ROUTES + "[[lookups]]\n"


@pytest.mark.parametrize(
    ("fragment", "key", "words"),
    [
        (ROUTES + '[keep]\n"GET /c" = "1s"', "$.keep.GET /c", "fits no route"),
        (ROUTES + '[keep]\n"GET /*" = "soon"', "$.keep.GET /*", "not a duration"),
        ('apart = ["X-Demo"]\n' + ROUTES, "$.apart[0]", "lower case"),
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
def test_wrong(file_of: Callable[[str], File], fragment: str, key: str, words: str) -> None:
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
