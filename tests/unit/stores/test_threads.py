"""Helper threads that fail, are killed, or are greenlets."""

from __future__ import annotations

import sys
import time
import types

import pytest

from ratekeeper.errors import RatekeeperError
from ratekeeper.stores import threads as module
from ratekeeper.stores.threads import Helper, death, green


class GreenletExit(BaseException):
    """What gevent and eventlet raise in a greenlet that they end."""


def test_a_helper_thread_goes_on_after_any_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failures are reported once while they follow each other; it ends when its function returns."""
    pauses, told, errors = list[float](), list[tuple[str, str]](), [ValueError, OverflowError, SystemExit, OSError]
    monkeypatch.setattr(module.time, "sleep", pauses.append)

    def work() -> None:
        if errors:
            raise errors.pop(0)("password=SECRET")

    helper = Helper(work, name="one", died=lambda name, error: told.append((name, death(name, error))))
    helper.join(10)
    assert not helper.is_alive() and not errors
    assert pauses == [0.05, 0.1, 0.2, 0.4]
    assert [name for name, _ in told] == ["one"]
    assert told[0][1].startswith("the helper thread 'one' failed (ValueError at ") and "SECRET" not in told[0][1]


def test_a_killed_greenlet_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needs the helper thread sees that it is dead, and starts another."""
    monkeypatch.setattr(sys, "unraisablehook", lambda error: None)

    def work() -> None:
        raise GreenletExit

    helper = Helper(work, name="one")
    helper.join(10)
    assert not helper.is_alive()


def replaced(monkeypatch: pytest.MonkeyPatch, library: str, *what: str) -> None:
    """Replace functions of the standard library, as a library of greenlets does."""
    places = {"threads": (module._thread, "start_new_thread"), "time.sleep": (time, "sleep")}
    places |= {"sockets": (module.socket, "socket"), "select": (module.select, "select")}
    for each in what:
        stand_in = types.FunctionType((lambda: None).__code__, {})
        stand_in.__module__ = f"{library}.green"
        monkeypatch.setattr(*places[each], stand_in)


def test_greenlets_replace_all_or_are_refused() -> None:
    """A gate under gevent or eventlet that replaced only a part says in one sentence what to do."""
    everything = ("threads", "time.sleep", "sockets", "select")
    assert green() == ""
    with pytest.MonkeyPatch.context() as patch:
        replaced(patch, "eventlet", *everything)
        assert green() == "eventlet"
    for missing in everything:
        with pytest.MonkeyPatch.context() as patch:
            replaced(patch, "gevent", *[each for each in everything if each != missing])
            with pytest.raises(RatekeeperError) as caught:
                green()
        assert f"not {missing}," in str(caught.value) and "gevent.monkey.patch_all()" in str(caught.value)
