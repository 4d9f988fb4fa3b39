"""What a person does at an exchange by hand: look at positions and orders, cancel, close. Through ccxt, governed.

Everything here passes pauses (`ratekeeper.gate.override`): it is for the moment when everything else is stopped. An order
is sent once; what became of it is found out by asking, never by sending it again.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from ratekeeper.apps.exchange.accounts import Account, connected, without_secrets
from ratekeeper.apps.exchange.markets import load_markets
from ratekeeper.errors import CallFailed, RatekeeperError, Rejected
from ratekeeper.gate.override import operator_override
from ratekeeper.rules.reading import FAULTS

__all__ = ["Cancelled", "Closed", "Desk", "DeskError", "Order", "Position"]

_LOOKS: Final = 6
_GAP: Final = 0.5
"""How often, and after how many seconds, the exchange is asked what became of an order."""
_SINGLY: Final = 20
"""Markets whose open orders are asked for one by one at most."""


class DeskError(RatekeeperError):
    """The exchange, or the way to it, said no: one line, without secrets."""


class Position(NamedTuple):
    """An open position. `size` counts contracts as ccxt does; prices are in the quote currency, 0 where unsaid."""

    symbol: str
    side: str
    size: float
    entry: float
    mark: float
    profit: float
    leverage: float
    hedged: bool

    def __str__(self) -> str:
        return f"{self.symbol} {self.side} {self.size:g}"


class Order(NamedTuple):
    """An open order. `price` is 0 where it has none; `trigger` is the price at which a conditional one becomes active."""

    symbol: str
    id: str
    client_id: str
    side: str
    kind: str
    price: float
    amount: float
    filled: float
    trigger: float


class Cancelled(NamedTuple):
    """What became of cancelling: symbols done, open orders that are left, what went wrong by symbol."""

    symbols: list[str]
    left: int
    problems: dict[str, str]


class Closed(NamedTuple):
    """What became of closing one position.

    Attributes:
        position: as it was.
        client_id: of the order.
        fate: ``filled``, ``open``, ``refused``, ``not found`` (the exchange knows of no such order) or ``unknown``.
        filled: contracts.
        average: price; 0 if unsaid.
        left: contracts still open afterwards; None if that could not be read.
        problem: what went wrong, in one line, or ``""``.
    """

    position: Position
    client_id: str
    fate: str
    filled: float
    average: float
    left: float | None
    problem: str

    @property
    def done(self) -> bool:
        """Whether the position is closed beyond doubt."""
        return self.left == 0


class Desk:
    """One account at one exchange, for a person. Use it in a ``with`` block.

    Args:
        account: which.
        sleep: waits seconds between two looks at an order's fate.
    """

    def __init__(self, account: Account, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self.account = account
        self._sleep = sleep
        self.exchange, self.gate = connected(account)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the gate and of connections."""
        session = getattr(self.exchange, "session", None)
        if session is not None:
            session.close()
        self.gate.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Calls that pass pauses and whose errors a person can read."""
        import ccxt

        try:
            with operator_override():
                yield
        except RatekeeperError:
            raise  # some are errors of ccxt too
        except (ccxt.BaseError, *FAULTS) as error:
            raise DeskError(self._told(error)) from None

    def _told(self, error: Exception) -> str:
        if isinstance(error, FAULTS):  # of ccxt, where an answer has another shape than it has ever had
            return f"{self.account.exchange}: an answer that cannot be read ({type(error).__name__})"
        return f"{self.account.exchange}: {type(error).__name__}: {without_secrets(str(error), self.exchange)}"

    def symbol(self, name: str) -> str:
        """ccxt's symbol of a market: ``BTC/USDT:USDT``; also from the exchange's id (``BTCUSDT``) or ``BTC/USDT``.

        Raises:
            DeskError: there is no such market.
        """
        name = name.upper()
        with self._asking():
            asked = load_markets(self.exchange, self.gate.home)
            found = self._symbols(name)
            if not found and not asked:  # perhaps listed since the markets were kept
                load_markets(self.exchange, self.gate.home, anew=True)
                found = self._symbols(name)
        if not found:
            raise DeskError(f"{self.account.exchange} has no market {name!r}; write for example BTC/USDT:USDT")
        return found[0]

    def _symbols(self, name: str) -> list[str]:
        """The markets that a name may mean, the likeliest first."""
        markets, derivatives = self.exchange.markets, self.exchange.has.get("fetchPositions")
        tries = [name, f"{name}:{name.partition('/')[2]}"] if "/" in name else []
        tries += [market["symbol"] for market in self.exchange.markets_by_id.get(name, [])]
        found = [each for each in tries if each in markets]
        return sorted(found, key=lambda each: bool(markets[each].get("contract")) != bool(derivatives))

    # -- looking ---------------------------------------------------------------------------------------------------

    def positions(self, symbol: str = "") -> list[Position]:
        """The open positions, of one market (ccxt's symbol) or of all."""
        if not self.exchange.has.get("fetchPositions"):
            raise DeskError(f"{self.account.exchange} has no positions; `ratekeeper exchange orders` shows open orders")
        with self._asking():
            load_markets(self.exchange, self.gate.home)
            rows = self.exchange.fetch_positions([symbol] if symbol else None)
            found = [_position(row) for row in rows if abs(_number(row.get("contracts"))) > 0]
            return sorted(each for each in found if symbol in ("", each.symbol))

    def orders(self, symbol: str = "") -> list[Order]:
        """The open orders, conditional ones too, of one market or of all."""
        with self._asking():
            load_markets(self.exchange, self.gate.home)
            rows = self.exchange.fetch_open_orders(symbol or None)
            if self._has_triggers(symbol):
                rows += self.exchange.fetch_open_orders(symbol or None, params={"trigger": True})
            return list({row["id"]: _order(row) for row in rows}.values())

    def _has_triggers(self, symbol: str = "") -> bool:
        """Whether conditional orders are listed apart from others."""
        symbol = symbol or next((each["symbol"] for each in self.exchange.markets.values() if each["contract"]), "")
        if not symbol:
            return False
        return bool(self.exchange.feature_value(symbol, "fetchOpenOrders", "trigger", False))

    # -- acting ----------------------------------------------------------------------------------------------------

    def cancel_all(self, symbol: str = "", known: Sequence[Order] | None = None) -> Cancelled:
        """Cancel every open order of one market or of all; one market that fails does not stop the others.

        Args:
            symbol: the market, or ``""``.
            known: the open orders, if they were just read: a list of all markets costs much at some exchanges.
        """
        import ccxt

        symbols = (
            [symbol] if symbol else sorted({order.symbol for order in (self.orders() if known is None else known)})
        )
        problems: dict[str, str] = {}
        for each in symbols:
            conditional = [{}, {"trigger": True}] if self._has_triggers(each) else [{}]
            for params in conditional:
                try:
                    with operator_override():
                        self._cancel(each, params)
                except (ccxt.BaseError, RatekeeperError, *FAULTS) as error:
                    problems[each] = self._told(error)
        # Lists of single markets cost little, one of all markets costs as much as forty of them at Binance.
        left = [self.orders(each) for each in symbols] if len(symbols) <= _SINGLY else [self.orders()]
        return Cancelled(symbols, sum(map(len, left)), problems)

    def _cancel(self, symbol: str, params: dict[str, Any]) -> None:
        if self.exchange.has.get("cancelAllOrders"):
            self.exchange.cancel_all_orders(symbol, dict(params))
            return
        for row in self.exchange.fetch_open_orders(symbol, params=dict(params)):
            self.exchange.cancel_order(row["id"], symbol, dict(params))

    def close_position(self, position: Position) -> Closed:
        """Close a position with one reduce-only market order, and find out what became of it.

        The order is sent once. Where no answer comes, the exchange is asked for the order by its client id and for the
        position: those tell, not a second order.
        """
        import ccxt

        client_id = f"ratekeeperclose{secrets.token_hex(8)}"  # letters and digits only: some exchanges take no others
        side = "sell" if position.side == "long" else "buy"
        params: dict[str, Any] = {"reduceOnly": True, "clientOrderId": client_id}
        if position.hedged:
            params["hedged"] = True
        number, problem, row = None, "", {}
        try:
            with operator_override():
                row = self.exchange.create_order(position.symbol, "market", side, position.size, None, params)
            number = row.get("id")
        except Rejected:
            raise  # by us: nothing was sent
        except (ccxt.NetworkError, CallFailed, *FAULTS) as error:
            problem = self._told(error)  # it may have arrived
        except ccxt.BaseError as error:
            return Closed(position, client_id, "refused", 0.0, 0.0, self._left(position), self._told(error))
        fate, row = self._fate(position.symbol, number, client_id, row)
        filled, average = _said(row, "filled"), _said(row, "average")
        return Closed(position, client_id, fate, filled, average, self._left(position), problem)

    def _fate(self, symbol: str, number: str | None, client_id: str, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """What became of an order: asked for a few times, because an exchange may list a new order a moment late."""
        import ccxt

        fate = "unknown"
        for look in range(_LOOKS):
            if row.get("status") in ("closed", "canceled", "expired", "rejected"):
                filled = _said(row, "filled") or (row["status"] == "closed")
                return ("filled" if filled else "refused"), row
            if look:
                self._sleep(_GAP)
            try:
                with operator_override():
                    # By our own name for it where the answer, which tells the exchange's, was lost.
                    row = self.exchange.fetch_order(number, symbol, {} if number else {"clientOrderId": client_id})
                fate = "open"
            except ccxt.OrderNotFound:
                fate = "not found"
            except (ccxt.BaseError, RatekeeperError, *FAULTS):
                fate = "unknown" if fate == "unknown" else fate
        return fate, row

    def _left(self, position: Position) -> float | None:
        try:
            now = self.positions(position.symbol)
        except RatekeeperError:
            return None
        return sum(each.size for each in now if each.side == position.side)


def _number(value: Any) -> float:
    """A number; 0 where it is unsaid. Raises ValueError: it is none, so what it counts is unknown."""
    number = float(value) if value is not None else 0.0
    if not math.isfinite(number):
        raise ValueError(number)
    return number


def _said(row: dict[str, Any], name: str) -> float:
    try:
        return _number(row.get(name))
    except (TypeError, ValueError):
        return 0.0


def _position(row: dict[str, Any]) -> Position:
    return Position(
        symbol=row["symbol"],
        side=row.get("side") or "long",
        size=abs(_number(row.get("contracts"))),
        entry=_number(row.get("entryPrice")),
        mark=_number(row.get("markPrice")),
        profit=_number(row.get("unrealizedPnl")),
        leverage=_number(row.get("leverage")),
        hedged=bool(row.get("hedged")),
    )


def _order(row: dict[str, Any]) -> Order:
    return Order(
        symbol=row["symbol"],
        id=str(row["id"]),
        client_id=row.get("clientOrderId") or "",
        side=row.get("side") or "",
        kind=row.get("type") or "",
        price=_number(row.get("price")),
        amount=_number(row.get("amount")),
        filled=_number(row.get("filled")),
        trigger=_number(row.get("triggerPrice")),
    )
