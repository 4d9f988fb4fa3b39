"""``ratekeeper emulate PROVIDER``: a loopback server that enforces a provider's rule file strictly.

It is a test tool for bots, and the judge of our own ledger: it counts each request at the instant it arrives, per source
address and per account, and answers with the provider's own headers and bodies, refusals and bans. Its accounting shares
no code with `ratekeeper.ledger`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from ratekeeper.apps.emulator.options import Options, parse_latency, parse_limit
from ratekeeper.errors import RuleError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["command"]


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A click callback that turns text into a value and a `ValueError` into a usage error."""

    def convert(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        try:
            return tuple(parse(one) for one in value) if isinstance(value, tuple) else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return convert


SHARE = click.FloatRange(0, 1)


@click.command(name="emulate")
@click.argument("provider")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=9300, show_default=True, type=click.IntRange(0, 65_535), help="Port; 0 takes a free one."
)
@click.option(
    "--window",
    type=click.FloatRange(0, 86_400, min_open=True),
    help="Seconds of the main limit's window, all others as published.",
)
@click.option(
    "--scale",
    default=1.0,
    type=click.FloatRange(0, 1000, min_open=True),
    help="Factor on the periods of all limits, such as 0.1.",
)
@click.option("--capacity", type=click.IntRange(1), help="Units of the main limit instead of the published number.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=CAPACITY[/SECONDS]",
    callback=_parsed(parse_limit),
    help="Change another limit, such as orders-10s=50/5. May be given several times.",
)
@click.option(
    "--latency",
    default="0",
    metavar="MS[-MS]",
    callback=_parsed(parse_latency),
    help="Delay before a request is counted, and again before its answer leaves.",
)
@click.option("--loss", default=0.0, type=SHARE, help="Share of requests that get no answer; half of them are counted.")
@click.option("--hangup", default=0.0, type=SHARE, help="Share of connections reset; half of them after counting.")
@click.option("--errors", default=0.0, type=SHARE, help="Share of requests answered with 503.")
@click.option("--hang", default=0.0, type=SHARE, help="Share of requests carried out but never answered.")
@click.option(
    "--ws-interval",
    default=0.25,
    show_default=True,
    type=click.FloatRange(0.001, 3_600),
    help="Seconds between two data messages of a websocket's topic.",
)
@click.option(
    "--ws-lifetime",
    type=click.FloatRange(0),
    help="Seconds after which websockets are closed; 0: never. [default: the provider's habit, times the scale]",
)
@click.option("--ws-silent", is_flag=True, help="Websockets stay open but bring no data.")
@click.option("--ws-refuse", default=0.0, type=SHARE, help="Share of websockets accepted and closed at once.")
@click.option("--ws-lag", default=0.0, type=click.FloatRange(0), help="Milliseconds by which websockets are late.")
@click.option("--skew", default=0.0, type=float, help="Seconds by which all the emulator's clocks are ahead.")
@click.option(
    "--date-offset",
    default=0.0,
    type=click.FloatRange(-3_600, 3_600),
    metavar="SECONDS",
    help="Date and server time less the clock that counts. +0.4: Date is 0.4 s ahead of the counting clock, so windows "
    "roll 0.4 s later than Date says.",
)
@click.option(
    "--date-drift",
    default=0.0,
    type=click.FloatRange(-100_000, 100_000),
    metavar="PPM",
    help="Parts per million by which --date-offset grows; 60 are 3.6 ms a minute.",
)
@click.option(
    "--date-spread",
    default=0.0,
    type=click.FloatRange(0, 3_600),
    metavar="SECONDS",
    help="Five machines date the answers; seconds from the first one's clock to the last one's, around --date-offset.",
)
@click.option(
    "--date-per",
    default="connection",
    show_default=True,
    type=click.Choice(["connection", "answer"]),
    help="Whether a connection stays with one such machine, or any of them dates any answer.",
)
@click.option(
    "--count-refused/--no-count-refused", default=True, help="Whether an address pays for calls that are refused."
)
@click.option("--usage-headers/--no-usage-headers", default=True, help="Whether answers tell what is used.")
@click.option("--retry-after/--no-retry-after", default=True, help="Whether refusals say when to come back.")
@click.option("--date/--no-date", default=True, help="Whether answers carry Date.")
@click.option(
    "--ban-after", default=10, show_default=True, type=click.IntRange(0), help="Refusals before a ban; 0: never."
)
@click.option(
    "--ban",
    type=click.FloatRange(0),
    help="Seconds of a first ban. [default: as the rules say, shortened like the main window]",
)
@click.option("--seed", type=int, help="Makes the random faults repeatable.")
@click.option("--log", type=click.Path(dir_okay=False), help="File that gets a JSON line for every arrival.")
@click.option("--tied", is_flag=True, hidden=True, help="Stop when standard input is closed.")
def command(tied: bool, **values: Any) -> None:
    """Enforce PROVIDER's limits on a loopback server, with its own headers, bodies, refusals and bans.

    PROVIDER is a name from `ratekeeper rules list`, or the path of a rule file (.toml). A tool to test bots against.
    Signatures are not verified; orders are kept in memory. Stop it with Ctrl-C.
    """
    try:
        from ratekeeper.apps.emulator.server import serve
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise click.ClickException(
            "the emulator needs aiohttp: pip install '.[emulator]' in a clone of Ratekeeper"
        ) from None
    try:
        asyncio.run(serve(Options(**values), lambda line: click.echo(line), tied=tied))
    except (OSError, ValueError, RuleError) as error:
        raise click.ClickException(str(error)) from None
