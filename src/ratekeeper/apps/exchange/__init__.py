"""``ratekeeper exchange``: look, cancel and close by hand, at the highest priority, also while trading is paused."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from ratekeeper.apps.cli import aligned, print_json
from ratekeeper.errors import RuleError

__all__ = ["agreed", "command", "table", "told"]


@click.group("exchange")
def command() -> None:
    """Look and act at an exchange by hand, through ccxt: with the highest priority, and also while trading is paused.

    Keys come from RATEKEEPER_EXCHANGE_KEY, _SECRET and _PASSWORD, or from where the configuration's [exchanges.NAME] says.
    The list of markets is read once an hour, and kept. What a command costs is said for Binance USD-M futures, in weight, of
    which there is 2,400 a minute.
    """


def _common(function: Callable[..., None]) -> Callable[..., None]:
    """The options of every sub-command; the function gets a `Desk` in their place."""

    @click.option("--exchange", default="", metavar="ID", help="ccxt's name of the exchange, such as binanceusdm.")
    @click.option("--account", default="", metavar="NAME", help="An [exchanges.NAME] table of the configuration.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(function)
    def wrapped(exchange: str, account: str, as_json: bool, **rest: Any) -> None:
        from ratekeeper.apps.exchange.accounts import chosen
        from ratekeeper.apps.exchange.desk import Desk

        with Desk(chosen(exchange, account)) as desk:
            function(desk, as_json=as_json, **rest)

    return wrapped


_YES = click.option("--yes", is_flag=True, help="Do not ask before acting.")


@command.command("positions")
@_common
def positions(desk: Any, as_json: bool) -> None:
    """The open positions. Costs 6."""
    _show(desk.positions(), as_json, "no open positions")


@command.command("orders")
@click.argument("symbol", default="")
@_common
def orders(desk: Any, symbol: str, as_json: bool) -> None:
    """The open orders, of SYMBOL or of all markets; conditional ones too. Costs 2 with SYMBOL, else 80."""
    _show(desk.orders(desk.symbol(symbol) if symbol else ""), as_json, "no open orders")


@command.command("cancel-all")
@click.argument("symbol", default="")
@_YES
@_common
def cancel_all(desk: Any, symbol: str, yes: bool, as_json: bool) -> None:
    """Cancel every open order, of SYMBOL or of all markets. Exit code 1 if any is left.

    Costs 6 with SYMBOL, else 80, and 4 for each market with open orders.
    """
    symbol = desk.symbol(symbol) if symbol else ""
    found = desk.orders(symbol)
    if not found:
        _show([], as_json, "no open orders")
        return
    agreed(f"Cancel {len(found)} open orders{f' of {symbol}' if symbol else ''} at {desk.account.exchange}?", yes)
    done = desk.cancel_all(symbol, found)
    if as_json:
        print_json(done._asdict())
    else:
        click.echo(f"cancelled {len(found) - done.left} of {len(found)} open orders")
        for market, problem in done.problems.items():
            click.echo(f"{market}: {problem}", err=True)
    sys.exit(1 if done.left else 0)


@command.command("close")
@click.argument("symbol")
@_YES
@_common
def close(desk: Any, symbol: str, yes: bool, as_json: bool) -> None:
    """Close the position in SYMBOL with a reduce-only market order, and tell what became of it.

    Passes a pause of orders. Exit code 1 if anything is left open, or if that could not be found out. Costs 11, and an order.
    """
    symbol = desk.symbol(symbol)
    found = desk.positions(symbol)
    if not found:
        _show([], as_json, f"no open position in {symbol}")
        return
    agreed(f"Close {', '.join(map(str, found))} at {desk.account.exchange}?", yes)
    closed = [desk.close_position(position) for position in found]
    if as_json:
        print_json([{**each._asdict(), "position": each.position._asdict(), "done": each.done} for each in closed])
    else:
        for each in closed:
            click.echo(told(each))
    sys.exit(0 if all(each.done for each in closed) else 1)


def told(closed: Any) -> str:
    """What became of closing a position, in one line."""
    name, price = str(closed.position), f" at {closed.average:g}" if closed.average else ""
    fates = {
        "filled": f"filled {closed.filled:g}{price}",
        "open": "taken, but not filled yet",
        "refused": "refused",
        "not found": "unknown to the exchange: it did not arrive, as far as can be seen",
        "unknown": "of unknown fate: look before you send another one",
    }
    left = "cannot be read" if closed.left is None else "closed" if closed.done else f"{closed.left:g} left open"
    problem = f" ({closed.problem})" if closed.problem else ""
    return f"{name}: {left}; order {closed.client_id} {fates[closed.fate]}{problem}"


def agreed(question: str, yes: bool) -> None:
    """Ask before acting.

    Raises:
        RuleError: there is no terminal to ask at, and no --yes.
        click.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise RuleError(f"{question} There is no terminal to ask at: say --yes")
    click.confirm(question, abort=True, err=True)


def _show(rows: Sequence[Any], as_json: bool, nothing: str) -> None:
    if as_json:
        print_json([row._asdict() for row in rows])
    else:
        click.echo("\n".join(table(rows)) if rows else nothing)


def table(rows: Iterable[Any]) -> list[str]:
    """Rows (named tuples of one kind) as aligned lines under a head; columns that say nothing are left out."""
    rows = list(rows)
    names = [name for name in rows[0]._fields if any(getattr(row, name) for row in rows)]
    return aligned([names, *([_cell(getattr(row, name)) for name in names] for row in rows)])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
