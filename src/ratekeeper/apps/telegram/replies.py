"""What the bot answers: one command in, a few lines out. It knows nothing of Telegram."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from ratekeeper.apps.exchange import told
from ratekeeper.apps.exchange.desk import Desk
from ratekeeper.apps.pause import paused
from ratekeeper.errors import RatekeeperError
from ratekeeper.gate.gate import Gate
from ratekeeper.gate.override import spoken
from ratekeeper.gate.pausing import Reached, holding, order, owner_seen
from ratekeeper.ledger.limit import SECOND

__all__ = ["Replies"]

_HELP: Final = """\
/stop - stop orders in all programs at once; shows the open positions
/status - pauses, bans, and how full the limits are
/pause [SCOPE] - stop orders (or: everything, binance-usdm, …) in all programs; cancels pass
/resume [SCOPE]
/positions
/close SYMBOL - close a position; asks back"""
_SECONDS: Final = 60.0
"""How long a code holds."""
_TRIES: Final = 3
_FULLEST: Final = 5


class _Asked(NamedTuple):
    code: str
    until: float
    symbol: str


class _Sleeper(Protocol):
    def __call__(self) -> float: ...


class Replies:
    """Answers to commands.

    Args:
        gate: through which pauses go.
        desk: gives the account that positions are asked for; called when the first is wanted.
        clock: steady seconds, for the end of codes.
        code: makes a code.
    """

    def __init__(
        self,
        gate: Gate,
        desk: Callable[[], Desk],
        *,
        clock: _Sleeper = time.monotonic,
        code: Callable[[], str] = lambda: f"{secrets.randbelow(10**6):06d}",
    ) -> None:
        self._gate = gate
        self._make_desk = desk
        self._made: Desk | None = None
        self._clock = clock
        self._code = code
        self._asked: dict[int, _Asked] = {}
        self._wrong: dict[int, int] = {}

    def answer(self, chat: int, text: str) -> str:
        """What to say to a command; errors in one line."""
        word, *rest = text.split()
        word = word.partition("@")[0].lower()  # in groups a command may name the bot
        known: dict[str, Callable[[int, list[str]], str]] = {
            "/stop": self._stop,
            "/status": self._status,
            "/pause": self._pause,
            "/resume": self._resume,
            "/positions": self._positions,
            "/close": self._close,
            "/confirm": self._confirm,
        }
        if word not in known:
            return _HELP
        try:
            return known[word](chat, rest)
        except RatekeeperError as error:
            return f"Not done: {error}"
        except ModuleNotFoundError as error:
            return f"Not done: the package {error.name} is not installed"

    def stopped(self) -> str:
        """What a person wants to see after a stop: the open positions; ``""`` if no exchange is configured."""
        try:
            desk = self._desk
        except (RatekeeperError, ModuleNotFoundError):
            return ""
        try:
            found = desk.positions()
        except RatekeeperError as error:
            return f"Your positions could not be read: {error}. Ask again: /positions"
        return "\n".join([*map(_told_of, found), "/close SYMBOL closes one"]) if found else "No open positions."

    def close(self) -> None:
        """Let go of the exchange."""
        if self._made is not None:
            self._made.close()

    @property
    def _desk(self) -> Desk:
        if self._made is None:
            self._made = self._make_desk()
        return self._made

    # -- commands --------------------------------------------------------------------------------------------------

    def _status(self, chat: int, rest: list[str]) -> str:
        found, mono = self._gate.read(), time.monotonic_ns()
        lines = [f"STORE LOST: {found.degraded}"] if found.degraded else []
        for block in found.blocks:
            if block.ends() > mono:
                end = "until resumed" if block.length is None else f"for {(block.ends() - mono) / SECOND:.0f} s"
                lines.append(f"{block.kind.upper()} {spoken(block.scope)} {end} {block.reason}".rstrip())
        lines = lines or ["Nothing is paused or banned."]
        fullest = sorted(found.ledgers, key=lambda v: (v.used + v.inflight) / v.limit.usable, reverse=True)
        for view in fullest[:_FULLEST]:
            used = view.used - view.carried
            more = f" ({view.inflight:,} reserved)" if view.inflight else ""
            lines.append(f"{used / view.limit.usable:.0%} {view.key}: {used:,} of {view.limit.usable:,}{more}")
        names = sorted(name for name in found.members.values() if name != "ratekeeper telegram")
        return "\n".join([*lines, f"Programs: {', '.join(names) or 'none'}"])

    def _stop(self, chat: int, rest: list[str]) -> str:
        return self._pause(chat, rest, "STOPPED")

    def _pause(self, chat: int, rest: list[str], word: str = "Paused") -> str:
        scope = rest[0] if rest else "orders"
        place = self._gate.scope(scope)
        if not owner_seen(self._gate, place):
            word = f"Nothing like {scope} has made a call yet. {word}"
        done = order(self._gate.store, place, None, "paused from Telegram")
        if done.here and done.store:
            return f"NOTHING IS PAUSED: {done.here}; {done.store}"
        names, only = ", ".join(paused(self._gate)), self._only_here(done)
        return f"{word}{' on this machine only' if only else ''}: {names}. Cancels pass. /resume {scope}{only}"

    def _resume(self, chat: int, rest: list[str]) -> str:
        scope = rest[0] if rest else "orders"
        place = self._gate.scope(scope)
        done = order(self._gate.store, place, None, resumed=True)
        if done.here and done.store:
            return f"Nothing is resumed: {done.here}; {done.store}"
        self._gate.context.rouse()
        left, blocks = paused(self._gate), self._gate.store.blocks.states()
        still = f" Still paused: {', '.join(left)}." if left else ""
        bans = [f" {spoken(ban.scope)} is banned." for ban in holding(blocks, place, time.monotonic_ns())]
        only = self._only_here(done)
        said = f"{spoken(scope)} {'is open again' if done.changed else 'was not paused'}"
        return f"{said}{' on this machine only' if only else ''}.{still}{''.join(bans)}{only}"

    def _only_here(self, done: Reached) -> str:
        """What a command did not reach, as a line of its own; ``""``: nothing."""
        if not (done.store and self._gate.store.together):
            return ""
        return f"\nNOT REACHED: {done.store}. Other machines are told when the server answers."

    def _positions(self, chat: int, rest: list[str]) -> str:
        found = self._desk.positions()
        return "\n".join(map(_told_of, found)) or "No open positions."

    def _close(self, chat: int, rest: list[str]) -> str:
        if not rest:
            return "Which one? /close SYMBOL, for example /close BTC/USDT:USDT"
        symbol = self._desk.symbol(rest[0])
        found = self._desk.positions(symbol)
        if not found:
            return f"No open position in {symbol}."
        asked = self._asked[chat] = _Asked(self._code(), self._clock() + _SECONDS, symbol)
        self._wrong[chat] = 0
        lines = "\n".join(map(_told_of, found))
        return f"{lines}\nClose at market? /confirm {asked.code} within {_SECONDS:.0f} s"

    def _confirm(self, chat: int, rest: list[str]) -> str:
        asked = self._asked.get(chat)
        if asked is None:
            return "There is nothing to confirm."
        if self._clock() >= asked.until:
            del self._asked[chat]
            return f"That code has expired. Nothing was done. /close {asked.symbol} asks anew"
        if rest != [asked.code]:
            self._wrong[chat] += 1
            if self._wrong[chat] >= _TRIES:
                del self._asked[chat]
                return f"Wrong code, {_TRIES} times. Nothing was done."
            return "Wrong code. Nothing was done."
        del self._asked[chat]  # a code works once
        found = self._desk.positions(asked.symbol)
        return "\n".join(told(self._desk.close_position(each)) for each in found) or "It is closed already."


def _told_of(position: Any) -> str:
    profit = f", profit {position.profit:+.10g}" if position.profit else ""
    return f"{position}: entry {position.entry:.10g}, now {position.mark:.10g}{profit}"
