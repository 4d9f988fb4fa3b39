"""The documentation's page of providers."""

from __future__ import annotations

from pathlib import Path

from ratekeeper.apps.rules.page import page
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.files import parse
from ratekeeper.rules.provider import Provider

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "providers.md"
SMALL = """
format = 1
name = "small"
title = "Small exchange (v1)"
hosts = ["api.small.example"]
paths = ["/v1/"]
source = "S"
[sources]
S = { title = "Its documentation", url = "https://small.example/docs", read = 2026-11-20, confidence = "D" }
T = { title = "Used by nothing", read = 2026-11-20, confidence = "?" }
[limits.calls-1s]
unit = "calls"
capacity = 7
period = "1s"
note = "a | b"
headers.limit = "x-limit"
[default]
cost = { calls = 1 }
[[routes]]
match = ["GET /v1/a", "GET /v1/b"]
cost = { calls = 2 }
[[refusals]]
status = [429]
body = { code = [1015] }
outcome = "throttled"
block = "ip"
hold = "5m"
charged = false
"""


def test_page_is_fresh() -> None:
    """The page is what the rule files say; else: `ratekeeper rules page > docs/reference/providers.md`."""
    book = Rulebook.load()
    assert PAGE.read_text("utf-8") == page([book.provider(name) for name in book.names()])


def test_everything_is_told() -> None:
    """Hosts, paths, limits with source, date and grade, refusals, and the sources that are used."""
    text = page([Provider(parse(SMALL))])
    assert "* [Small exchange (v1)](#small-exchange-v1): `small`" in text
    assert "`small` · hosts `api.small.example` · paths `/v1/` · 2 routes, 1 costs" in text
    limit = "| `calls-1s` | 7 calls per 1s, sliding, per ip, *learned*<br>a \\| b | S | 2026-11-20 | D |"
    assert limit in text
    assert "Refusals: 429 with code 1015: throttled, holds ip for 5m, not counted." in text
    assert "* S: [Its documentation](https://small.example/docs), read 2026-11-20, D" in text
    assert "Used by nothing" not in text
