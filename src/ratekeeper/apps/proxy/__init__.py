"""``ratekeeper proxy``: a reverse proxy by base URL, for programs that cannot be changed or are not Python."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import click

from ratekeeper.apps.proxy.upstreams import is_loopback, mapped, parse

__all__ = ["command"]


def _token_of(token: str | None, file: str | None) -> str:
    """The token from one of the two options, ``""`` if none is asked for.

    Raises:
        click.UsageError: both are given, the file cannot be read, or the token does not fit into a URL.
    """
    if token is not None and file is not None:
        raise click.UsageError("give --token or --token-file, not both")
    if file is not None:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise click.UsageError(f"--token-file {file}: {reason}") from None
    if token is None:
        return ""
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise click.UsageError("a token consists of letters, digits and . _ ~ - only, since it may stand in a URL")
    return token


@click.command("proxy")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; another needs a token.")
@click.option(
    "--port", default=9200, show_default=True, type=click.IntRange(0, 65_535), help="Port; 0 takes a free one."
)
@click.option("--token", help="Clients must show it: X-Ratekeeper-Token, or /t/TOKEN before the path.")
@click.option("--token-file", type=click.Path(), help="File that holds the token; other users cannot see it in `ps`.")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="NAME[=URL]",
    help="Serve only what is named so: a provider, or a name of your own and its URL. [default: every provider]",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Another name under which clients reach the proxy. [default: names of the loopback and the --host]",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Web pages of this origin (http://localhost:3000) may call the proxy. [default: none]",
)
@click.option(
    "--silence",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds without a byte from an upstream after which the client gets 504.",
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, resolve_path=True), help="Configuration file.")
def command(
    host: str,
    port: int,
    token: str | None,
    token_file: str | None,
    upstreams: tuple[str, ...],
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    silence: float,
    config: str | None,
) -> None:
    """Pass calls of any program on to their providers, through the gate that all programs share.

    http://127.0.0.1:9200/binance-usdm/fapi/v1/klines?symbol=BTCUSDT goes to Binance when the budget allows it. Stop
    it with Ctrl-C.
    """
    try:
        from ratekeeper.apps.proxy.server import Options, serve
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise click.ClickException("the proxy needs aiohttp: pip install '.[proxy]' in a clone of Ratekeeper") from None
    secret = _token_of(token, token_file)
    if not secret and not is_loopback(host):
        raise click.UsageError(
            f"--host {host} can be reached from other machines, which could spend your budget: set --token-file too"
        )
    from ratekeeper.gate.gate import Gate

    # These loggers quote request lines, and query strings hold signatures.
    for name in ("aiohttp.client", "aiohttp.server", "aiohttp.web", "aiohttp.websocket", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    wanted = parse(upstreams)
    gate = Gate(config=config, hosts=mapped(wanted, config), name="ratekeeper proxy")
    options = Options(
        host=host, port=port, token=secret, upstreams=wanted, hosts=hosts, origins=origins, silence=silence
    )
    try:
        asyncio.run(serve(gate, options, click.echo))
    except OSError as error:
        raise click.ClickException(f"{host}:{port}: {error.strerror or error}") from None
    finally:
        gate.close()
