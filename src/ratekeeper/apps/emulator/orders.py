"""Orders, kept in memory per account, so that a test can see what a bot really placed, and how often.

This is no matching engine: market orders and marketable limit orders fill at once at the price of the moment, resting
limit orders whole when the price crosses them; conditional orders rest until they are cancelled. Times are milliseconds;
prices and quantities are exact decimals.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import count
from typing import TYPE_CHECKING, Any

from .incoming import Fault
from .market import symbol_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .incoming import Incoming
    from .market import Symbol

__all__ = ["Account", "Order", "OrderBook", "statistics"]

KEPT_CLOSED = 10_000
"""Closed orders that an account remembers."""
LOOK = 250
"""Milliseconds between two looks at the price for resting orders."""
LOOK_BACK = 600_000
"""Milliseconds of past prices that a look at resting orders goes back at most."""


@dataclass(slots=True)
class Order:
    """One order."""

    number: int
    client_id: str
    symbol: str
    side: str
    kind: str
    time_in_force: str
    price: Decimal
    quantity: Decimal
    stop_price: Decimal
    time: int
    position_side: str = "BOTH"
    reduce_only: bool = False
    conditional: bool = False
    """Whether it was placed by the route for conditional ("algo") orders, which are listed apart."""
    status: str = "NEW"
    filled: Decimal = Decimal(0)
    average: Decimal = Decimal(0)
    updated: int = 0

    @property
    def cost(self) -> Decimal:
        """What the filled quantity cost."""
        return self.filled * self.average

    @property
    def trade(self) -> int:
        """Number of its fill; -1 if there is none."""
        return self.number if self.filled else -1

    @property
    def maker(self) -> bool:
        """Whether it rested before it was filled."""
        return self.updated > self.time

    @property
    def signed_fill(self) -> Decimal:
        """Filled quantity; negative for a sale."""
        return self.filled if self.side == "BUY" else -self.filled


@dataclass(slots=True)
class Account:
    """What one API key owns."""

    label: str
    open: dict[int, Order] = field(default_factory=dict)
    open_ids: set[str] = field(default_factory=set)
    closed: deque[Order] = field(default_factory=lambda: deque(maxlen=KEPT_CLOSED))
    fills: deque[Order] = field(default_factory=lambda: deque(maxlen=1_000))
    positions: dict[str, Decimal] = field(default_factory=dict)
    entries: dict[str, Decimal] = field(default_factory=dict)
    """Average price at which each position was entered."""
    balances: dict[str, Decimal] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    """How often each client order id arrived in a request to place an order."""
    placed: Counter[str] = field(default_factory=Counter)
    """How often an order was really placed under each client order id."""
    leverage: dict[str, int] = field(default_factory=dict)

    def orders(self) -> list[Order]:
        """Every order still known, oldest first."""
        return sorted([*self.closed, *self.open.values()], key=lambda order: order.number)


class OrderBook:
    """Places and cancels orders of all accounts by the rules of one exchange.

    Args:
        symbols: the markets.
        futures: futures rather than spot: fills make positions, not balances.
        rejects_makers: whether a post-only order that would fill at once is an error; else it is taken, and cancelled.
        first: number of the first order.
    """

    def __init__(
        self, symbols: dict[str, Symbol], *, futures: bool, rejects_makers: bool = True, first: int = 1_000_001
    ) -> None:
        self.symbols = symbols
        self.futures = futures
        self.rejects_makers = rejects_makers
        self.accounts: dict[str, Account] = {}
        self.filled = 0
        """Orders that were filled so far."""
        self._numbers = count(first)
        self._matched = 0
        self.on_change: Callable[[str, Order, int], None] | None = None
        """Told of every change: the account's label, the order as it is now, milliseconds."""

    def account(self, label: str) -> Account:
        """The account under that label, with play money when first seen."""
        found = self.accounts.get(label)
        if found is None:
            found = self.accounts[label] = Account(label)
            quotes = {symbol.quote for symbol in self.symbols.values()} - {"BTC"}
            money = dict.fromkeys(sorted(quotes), Decimal(100_000))
            found.balances.update({**money, "BTC": Decimal(10), "ETH": Decimal(100)})
        return found

    def symbol(self, incoming: Incoming) -> Symbol:
        """The market that the request names."""
        return symbol_of(self.symbols, incoming)

    def place(self, incoming: Incoming, *, test: bool = False, conditional: bool = False) -> Order:
        """Place one order; `Fault` if the exchange would not take it."""
        self.match(incoming.now)
        account = self.account(incoming.account)
        client_id = incoming.params.get("newClientOrderId", "")
        if client_id and not test:
            account.sent[client_id] += 1
        order = self._read(incoming, client_id)
        order.conditional = conditional
        symbol = self.symbols[order.symbol]
        if order.client_id in account.open_ids:
            raise Fault("duplicate")
        price = self._fill_price(order, symbol, incoming.now)
        if test:
            return order
        account.placed[order.client_id] += 1
        self._tell(account, order, incoming.now)
        if price is not None:
            self._fill(account, order, symbol, price)
        elif order.status == "CANCELED":
            self._tell(account, order, incoming.now)
        elif order.time_in_force in ("IOC", "FOK"):
            order.status = "EXPIRED"
            self._tell(account, order, incoming.now)
        if order.status == "NEW":
            account.open[order.number] = order
            account.open_ids.add(order.client_id)
        else:
            account.closed.append(order)
        return order

    def match(self, now: int) -> None:
        """Fill the resting limit orders that the price has crossed since the last look. `now` is milliseconds."""
        tick = now // LOOK
        looks = range(max(self._matched, tick - LOOK_BACK // LOOK) + 1, tick + 1)
        if not looks:
            return
        self._matched = tick
        best: dict[tuple[str, str], Decimal] = {}
        for account in self.accounts.values():
            for order in [found for found in account.open.values() if found.kind in ("LIMIT", "LIMIT_MAKER")]:
                symbol, buys = self.symbols[order.symbol], order.side == "BUY"
                key = (symbol.name, order.side)
                if key not in best:
                    prices = (symbol.ask(at * LOOK) if buys else symbol.bid(at * LOOK) for at in looks)
                    best[key] = Decimal(symbol.show(min(prices) if buys else max(prices)))
                if not order.conditional and (order.price >= best[key] if buys else order.price <= best[key]):
                    order.updated = now
                    self._forget(account, order)
                    self._fill(account, order, symbol, order.price)

    def find(self, incoming: Incoming, *, among_open: bool) -> Order:
        """The order that the request names by number or client id."""
        account = self.account(incoming.account)
        number, client_id = incoming.number("orderId", 0), incoming.params.get("origClientOrderId", "")
        if not number and not client_id:
            raise Fault("no id")
        known = list(account.open.values()) if among_open else account.orders()
        symbol = incoming.params.get("symbol")
        for order in reversed(known):
            if symbol in (None, order.symbol) and (number == order.number or client_id == order.client_id):
                return order
        raise Fault("not open" if among_open else "not found")

    def cancel(self, incoming: Incoming) -> Order:
        """Cancel the open order that the request names."""
        order = self.find(incoming, among_open=True)
        self._close(self.account(incoming.account), order, incoming.now)
        return order

    def cancel_all(self, incoming: Incoming, *, conditional: bool = False) -> list[Order]:
        """Cancel every open order of the symbol that the request names."""
        symbol, account = self.symbol(incoming), self.account(incoming.account)
        mine = (order for order in account.open.values() if order.conditional == conditional)
        found = [order for order in mine if order.symbol == symbol.name]
        for order in found:
            self._close(account, order, incoming.now)
        return found

    def amend(self, incoming: Incoming) -> Order:
        """Change price and quantity of the open order that the request names."""
        order = self.find(incoming, among_open=True)
        symbol = self.symbols[order.symbol]
        order.price = _decimal(incoming, "price", order.price)
        order.quantity = _decimal(incoming, "quantity", order.quantity)
        self._check_steps(order, symbol)
        order.updated = incoming.now
        self._tell(self.account(incoming.account), order, incoming.now)
        return order

    def listed(self, incoming: Incoming, *, only_open: bool, conditional: bool = False) -> list[Order]:
        """The account's orders, of one symbol if the request names one."""
        account, wanted = self.account(incoming.account), incoming.params.get("symbol")
        if wanted:
            self.symbol(incoming)
        known = account.open.values() if only_open else account.orders()
        mine = (order for order in known if order.conditional == conditional)
        found = [order for order in mine if not wanted or order.symbol == wanted]
        return found if only_open else found[-incoming.number("limit", 500, high=1_000) :]

    def _read(self, incoming: Incoming, client_id: str) -> Order:
        symbol = self.symbol(incoming)
        side, kind = incoming.need("side"), incoming.need("type")
        if side not in ("BUY", "SELL"):
            raise Fault("side")
        params = incoming.params
        price = _decimal(incoming, "price", Decimal(0))
        if kind in ("LIMIT", "LIMIT_MAKER"):
            incoming.need("price")
        if kind == "LIMIT":
            incoming.need("timeInForce")
        quantity = _decimal(incoming, "quantity", Decimal(0))
        if not quantity and params.get("quoteOrderQty"):
            market = Decimal(symbol.show(symbol.price(incoming.now)))
            quantity = (_decimal(incoming, "quoteOrderQty", Decimal(0)) / market).quantize(Decimal(symbol.step))
        if not quantity and params.get("closePosition") != "true":
            incoming.need("quantity")
            raise Fault("zero")
        number = next(self._numbers)
        order = Order(
            number=number,
            client_id=client_id or f"emulated-{number}",
            symbol=symbol.name,
            side=side,
            kind=kind,
            time_in_force=params.get("timeInForce") or "GTC",
            price=price,
            quantity=quantity,
            stop_price=_decimal(incoming, "stopPrice", Decimal(0)),
            time=incoming.now,
            position_side=params.get("positionSide") or "BOTH",
            reduce_only=params.get("reduceOnly") == "true",
            updated=incoming.now,
        )
        self._check_steps(order, symbol)
        return order

    def _check_steps(self, order: Order, symbol: Symbol) -> None:
        if order.price % Decimal(symbol.tick):
            raise Fault("tick")
        if order.quantity % Decimal(symbol.step):
            raise Fault("step")
        if order.price and order.price * order.quantity < symbol.min_notional and not order.reduce_only:
            raise Fault("notional", least=symbol.min_notional)

    def _fill_price(self, order: Order, symbol: Symbol, now: int) -> Decimal | None:
        """The price at which the order fills at once, or ``None`` if it rests."""
        best = Decimal(symbol.show(symbol.ask(now) if order.side == "BUY" else symbol.bid(now)))
        if order.kind == "MARKET":
            return best
        if order.kind not in ("LIMIT", "LIMIT_MAKER"):
            return None
        crosses = order.price >= best if order.side == "BUY" else order.price <= best
        if crosses and (order.kind == "LIMIT_MAKER" or order.time_in_force == "GTX"):
            if not self.rejects_makers:
                order.status = "CANCELED"
                return None
            raise Fault("maker")
        return best if crosses else None

    def _fill(self, account: Account, order: Order, symbol: Symbol, price: Decimal) -> None:
        order.status, order.filled, order.average = "FILLED", order.quantity, price
        account.fills.append(order)
        self.filled += 1
        signed = order.signed_fill
        if self.futures:
            held = account.positions.get(symbol.name, Decimal(0))
            account.positions[symbol.name] = held + signed
            entry = account.entries.get(symbol.name, price)
            if held * signed >= 0:
                account.entries[symbol.name] = (entry * abs(held) + price * abs(signed)) / abs(held + signed)
            elif abs(signed) > abs(held):  # turned round: what is left was entered now
                account.entries[symbol.name] = price
        else:
            for asset, amount in ((symbol.base, signed), (symbol.quote, -signed * price)):
                account.balances[asset] = account.balances.get(asset, Decimal(0)) + amount
        self._tell(account, order, order.updated)

    def _close(self, account: Account, order: Order, now: int) -> None:
        order.status, order.updated = "CANCELED", now
        self._forget(account, order)
        self._tell(account, order, now)

    @staticmethod
    def _forget(account: Account, order: Order) -> None:
        account.open.pop(order.number, None)
        account.open_ids.discard(order.client_id)
        account.closed.append(order)

    def _tell(self, account: Account, order: Order, now: int) -> None:
        if self.on_change is not None:
            self.on_change(account.label, order, now)


def _decimal(incoming: Incoming, name: str, default: Decimal) -> Decimal:
    text = incoming.params.get(name)
    if not text:
        return default
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or value < 0:
        legal = r"^([0-9]{1,20})(\.[0-9]{1,20})?$"
        raise Fault("illegal", name=name, legal=legal)
    return value


def statistics(*books: OrderBook) -> dict[str, Any]:
    """What tests want to know: per account and client order id, how often it arrived and how often it was placed."""
    found: dict[str, Any] = {}
    for account in (account for book in books for account in book.accounts.values()):
        known = {order.client_id: order.status for order in account.orders()}
        mine = found.setdefault(account.label, {"open": 0, "by_client_id": {}})
        mine["open"] += len(account.open)
        for client_id in account.sent.keys() | account.placed.keys():
            row = mine["by_client_id"].setdefault(client_id, {"arrived": 0, "placed": 0, "status": ""})
            row["arrived"] += account.sent[client_id]
            row["placed"] += account.placed[client_id]
            row["status"] = known.get(client_id, "") or row["status"]
    return found
