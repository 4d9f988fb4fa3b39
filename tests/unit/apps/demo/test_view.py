"""The demo's picture."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ratekeeper.apps.demo.stage import Half, Plan, Program
from ratekeeper.apps.demo.view import closing, live, plain_line

PLAN = Plan(window=10, windows=2, workers=4)


def bare() -> Half:
    """A half without Ratekeeper that is over: one window full, then a ban."""
    programs = [Program("ccxt_bot", 10, 100, 3, 7), Program("requests_bot", 20, 300), Program("httpx_bot", 40, 600)]
    trace = [(0.5 * n, min(1.0, n / 8), "" if n < 8 else "429" if n < 9 else "418") for n in range(40)]
    return Half(
        False, 20, 1000, 0, [1.0, 0.0], programs, throttled=3, banned=7, bans=1, banned_seconds=15.5, trace=trace
    )


def governed(seconds: float) -> Half:
    """A half with Ratekeeper, so far."""
    programs = [Program(name, 30, 333, waiting=50) for name in ("ccxt_bot", "requests_bot", "httpx_bot")]
    waits = {"low": {"calls": 9, "mean_seconds": 1.25, "longest_seconds": 7.5}}
    trace = [(0.5 * n, 1.0, "") for n in range(int(seconds * 2))]
    return Half(True, seconds, 1000, 1000, [1.0] * int(seconds // 10), programs, waits=waits, trace=trace)


def drawn(picture: object) -> str:
    """As a terminal of 80 columns shows it."""
    console = Console(file=io.StringIO(), width=80, color_system=None, legacy_windows=False)
    console.print(picture)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 for line in text.splitlines())
    return str(text)


@pytest.mark.parametrize("seconds", [0.0, 5.0, 20.0])
def test_live_fits_a_small_terminal(seconds: float) -> None:
    """Never more than 23 lines of 80 columns, and always both halves."""
    text = drawn(live(PLAN, bare(), governed(seconds), 0.0))
    assert len(text.splitlines()) <= 23
    assert "Without Ratekeeper" in text
    assert "ratekeeper run -- python bot.py" in text


def test_live_says_when_it_begins() -> None:
    """Before the first window there is something to read, and a countdown."""
    assert "in 4 s" in drawn(live(PLAN, Half(False), Half(True), 4.2))


def test_closing_compares_both_halves() -> None:
    """Share of the budget, refusals, bans and waits side by side, and what to type."""
    text = drawn(closing(PLAN, bare(), governed(20.0)))
    lines = {line.strip()[:28].strip(): line.split()[-2:] for line in text.splitlines() if line.strip()}
    assert lines["Share of the budget used"] == ["50.0%", "100.0%"]
    assert lines["Calls refused (429)"] == ["3", "0"]
    assert lines["Bans"] == ["1", "0"]
    assert "1.2 s · 7.5 s" in text
    assert "ratekeeper run -- python your_bot.py" in text
    assert "please report" not in text


def test_a_promise_that_was_broken_is_not_hidden() -> None:
    """If anything was refused with Ratekeeper, the closing words say so."""
    half = governed(20.0)
    half.throttled = 2
    assert "please report it" in drawn(closing(PLAN, bare(), half))


def test_one_line_without_a_terminal() -> None:
    """All that matters in one line, no longer than 140 characters."""
    half = bare()
    half.banned_for = 4.6
    line = plain_line(PLAN, half)
    assert "locked out for 5 s more" in line
    assert len(line) <= 140
