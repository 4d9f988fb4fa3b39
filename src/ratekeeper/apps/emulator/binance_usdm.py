"""USD-M futures of Binance."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from .binance import Binance
from .incoming import Fault, Incoming
from .market import FUNDING, Quote, chosen
from .templates import Word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .market import Symbol
    from .orders import Order

__all__ = ["Usdm"]

_ALGO = {"algoId": "orderId", "triggerPrice": "stopPrice"}
"""Names of conditional ("algo") orders in the words of ordinary ones."""


class Usdm(Binance):
    """USD-M futures."""

    venue = "binance-usdm"
    depths = (5, 10, 20, 50, 100, 500, 1_000)
    most_levels = 1_000
    usual_levels = 500
    most_klines = 1_500
    shortest = "1m"

    def funding_rate(self, asked: Incoming) -> Any:
        """Past funding rates, one every eight hours."""
        symbols = chosen(self.book.symbols, asked)
        count = asked.number("limit", 100, high=1_000)
        last = min(asked.number("endTime", asked.now), asked.now) // FUNDING
        first = max(last - count + 1, -(-asked.number("startTime", 0, low=0) // FUNDING))
        quotes = [Quote(symbol, number * FUNDING) for number in range(first, last + 1) for symbol in symbols]
        return [self.sheet.fill("funding", symbol=quote.symbol, quote=quote) for quote in quotes[-count:]]

    # -- orders

    def place(self, asked: Incoming) -> Any:
        """Place one order."""
        return self.order(self.book.place(asked))

    def place_test(self, asked: Incoming) -> Any:
        """Check an order without placing it."""
        return self.order(self.book.place(asked, test=True))

    def amend(self, asked: Incoming) -> Any:
        """Change price and quantity of an open order."""
        return self.order(self.book.amend(asked))

    def cancel(self, asked: Incoming) -> Any:
        """Cancel one order."""
        return self.order(self.book.cancel(asked))

    def place_batch(self, asked: Incoming) -> Any:
        """Place up to five orders; each has its own answer or error."""
        orders = _list(asked.need("batchOrders"), "batchOrders")
        if not 1 <= len(orders) <= 5 or not all(isinstance(order, dict) for order in orders):
            raise Fault("batch")
        several = ({name: str(value) for name, value in order.items()} for order in orders)
        return self._each(self.book.place, asked, several)

    def cancel_batch(self, asked: Incoming) -> Any:
        """Cancel up to ten orders by number or client id; each has its own answer or error."""
        several: list[dict[str, str]] = []
        for name, key in (("orderIdList", "orderId"), ("origClientOrderIdList", "origClientOrderId")):
            text = asked.params.get(name) or asked.params.get(name.lower()) or "[]"
            several += [{"symbol": asked.need("symbol"), key: str(value)} for value in _list(text, name)]
        return self._each(self.book.cancel, asked, several)

    def _each(self, act: Callable[[Incoming], Order], asked: Incoming, several: Iterable[dict[str, str]]) -> Any:
        answers = (answer for _, answer in self.batch(act, asked, several))
        return [self.failed(one, asked.dated) if isinstance(one, Word) else self.order(one) for one in answers]

    def cancel_all(self, asked: Incoming) -> Any:
        """Cancel every open order of a symbol."""
        self.book.cancel_all(asked)
        return {"code": 200, "msg": "The operation of cancel all open order is done."}

    def place_algo(self, asked: Incoming) -> Any:
        """Place a conditional order. It rests until it is cancelled: nothing triggers it here."""
        return self.order(self.book.place(_as_order(asked), conditional=True), "algo")

    def cancel_algo(self, asked: Incoming) -> Any:
        """Cancel a conditional order."""
        return self.order(self.book.cancel(_as_order(asked)), "cancelled_algo")

    def cancel_all_algo(self, asked: Incoming) -> Any:
        """Cancel every conditional order of a symbol."""
        self.book.cancel_all(asked, conditional=True)
        return {"code": 200, "msg": "success"}

    def found_algo(self, asked: Incoming) -> Any:
        """One conditional order."""
        return self.found(_as_order(asked), "algo")

    # -- account

    def account(self, asked: Incoming) -> Any:
        """Balances and positions together."""
        positions = [self._position(asked, symbol) for symbol in self.book.symbols.values()]
        return self.sheet.fill("account", asked=asked, total=self._money(asked), positions=positions)

    def balance(self, asked: Incoming) -> Any:
        """Balances."""
        return self.sheet.fill("balance", asked=asked, total=self._money(asked))

    def _money(self, asked: Incoming) -> Decimal:
        return self.book.account(asked.account).balances["USDT"]

    def position_risk(self, asked: Incoming) -> Any:
        """Positions, also those of size zero."""
        return [self._position(asked, symbol) for symbol in chosen(self.book.symbols, asked)]

    def _position(self, asked: Incoming, symbol: Symbol) -> Any:
        account = self.book.account(asked.account)
        amount, mark = account.positions.get(symbol.name, Decimal(0)), Decimal(symbol.show(symbol.price(asked.now)))
        entry, updated = (str(mark), asked.now) if amount else ("0.0", 0)
        leverage, notional = account.leverage.get(symbol.name, 20), amount * mark
        values = {"amount": amount, "mark": mark, "entry": entry, "leverage": leverage, "notional": notional}
        return self.sheet.fill("position", symbol=symbol, updated=updated, **values)

    def income(self, asked: Incoming) -> Any:
        """Funding fees of the last days."""
        last = asked.now // FUNDING
        count = asked.number("limit", 100, high=1_000)
        numbers = range(last - min(count, 21) + 1, last + 1)
        return [self.sheet.fill("income", number=number, time=number * FUNDING) for number in numbers]

    def set_leverage(self, asked: Incoming) -> Any:
        """Set the leverage of a symbol."""
        symbol, leverage = self.book.symbol(asked), asked.number("leverage", 20, high=125)
        self.book.account(asked.account).leverage[symbol.name] = leverage
        return self.of_symbol(asked, "leverage", leverage=leverage)

    def countdown(self, asked: Incoming) -> Any:
        """Acknowledge a countdown; the emulator does not run it."""
        self.book.symbol(asked)
        return self.of_symbol(asked, "countdown", time=asked.number("countdownTime", 0, low=0))


def _as_order(asked: Incoming) -> Incoming:
    """A request about a conditional order in the words of ordinary ones."""
    params = {_ALGO.get(name, name): value for name, value in asked.params.items()}
    if client_id := params.get("clientAlgoId"):
        params |= {"newClientOrderId": client_id, "origClientOrderId": client_id}
    return asked._replace(params=params)


def _list(text: str, name: str) -> list[Any]:
    try:
        return msgspec.json.decode(text, type=list[Any])
    except msgspec.DecodeError:
        raise Fault("range", name=name) from None
