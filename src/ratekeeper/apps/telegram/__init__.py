"""``ratekeeper telegram``: status, pause, resume, positions and close from a chat."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from threading import Event
from typing import Final

import click

from ratekeeper.config.schema import TelegramSettings
from ratekeeper.errors import RuleError

__all__ = ["chats_of", "command"]

_BASE: Final = "https://api.telegram.org"


@click.command("telegram")
def command() -> None:
    """A Telegram bot for the chats you name: /status, /pause, /resume, /positions, /close.

    The token is read from RATEKEEPER_TELEGRAM_TOKEN, the chats from RATEKEEPER_TELEGRAM_CHATS or the configuration.
    """
    from ratekeeper.apps.exchange.accounts import chosen
    from ratekeeper.apps.exchange.desk import Desk
    from ratekeeper.apps.telegram.bot import Api, Bot
    from ratekeeper.apps.telegram.replies import Replies
    from ratekeeper.config.file import read_settings
    from ratekeeper.gate.gate import Gate
    from ratekeeper.policy.policies import Policies

    said = read_settings().settings.telegram
    token = os.environ.get("RATEKEEPER_TELEGRAM_TOKEN", "")
    if not token:
        raise RuleError(
            "is not set: put the bot's token there (@BotFather gives one)", file="RATEKEEPER_TELEGRAM_TOKEN"
        )
    chats = chats_of(said, os.environ)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    stop = Event()

    def end(*_: object) -> None:
        stop.set()
        sys.exit(0)  # also out of a long poll

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with Gate(name="ratekeeper telegram", policies=Policies()) as gate:
        replies = Replies(gate, lambda: Desk(chosen("", said.account)))
        api = Api(token, os.environ.get("RATEKEEPER_TELEGRAM_URL") or _BASE, stop.wait)
        click.echo(f"listening for {len(chats)} {'chat' if len(chats) == 1 else 'chats'}")
        try:
            Bot(api, replies, chats, stop).run()
        finally:
            api.close()
            replies.close()


def chats_of(said: TelegramSettings, environment: Mapping[str, str]) -> frozenset[int]:
    """The chats that are obeyed.

    Raises:
        RuleError: none are named, or one is no number.
    """
    text = environment.get("RATEKEEPER_TELEGRAM_CHATS", "")
    try:
        chats = frozenset(int(each) for each in text.split(",")) if text else frozenset(said.chats)
    except ValueError:
        raise RuleError("expected numbers of chats, such as 1001,1002", file="RATEKEEPER_TELEGRAM_CHATS") from None
    if not chats:
        raise RuleError(
            "no chat is allowed. Set RATEKEEPER_TELEGRAM_CHATS, or write [telegram] chats = [NUMBER] "
            "into the configuration. The log of a bot that runs tells the number of whoever writes to it"
        )
    return chats
