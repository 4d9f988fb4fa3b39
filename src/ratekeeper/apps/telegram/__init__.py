"""``ratekeeper telegram``: status, pause, resume, positions and close from a chat.

The bot fetches messages, answers the chats that are on its list, and survives a broken network. It uses two methods of
Telegram's Bot API (https://core.telegram.org/bots/api), over httpx. The token is part of every URL, so no error and no log
line of httpx shows a URL.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any, Final

import click

from ratekeeper.config.schema import TelegramSettings
from ratekeeper.errors import RatekeeperError, RuleError
from ratekeeper.rules.reading import number, whole

if TYPE_CHECKING:
    from ratekeeper.apps.telegram.replies import Replies

__all__ = ["Api", "Bot", "TelegramDown", "TelegramRefused", "chats_of", "command"]

_BASE: Final = "https://api.telegram.org"
_PATIENCE: Final = 10.0
"""Seconds to wait for an answer, beyond those that a long poll is meant to last."""
_MOST: Final = 4_096
"""Characters of a message at most."""
_POLL: Final = 25.0
"""Seconds that Telegram keeps a question open."""
_FIRST: Final = 1.0
_LONGEST: Final = 60.0
"""Seconds between two tries to reach Telegram: doubled from the first up to the longest."""
_STALE: Final = 120.0
"""Seconds after which a command is not carried out: it was meant for the moment when it was written."""
_LONGEST_WAIT: Final = 3600
"""Seconds that Telegram may ask for before the next try."""
_SENDS: Final = 4
_FATAL: Final = frozenset({401, 404})
"""The token is wrong: nothing will change that."""
_QUICK: Final = frozenset({"/status", "/pause", "/resume", "/help", "/start"})
"""Commands that ask no exchange: they never wait behind one that does."""

log = logging.getLogger("ratekeeper")


@click.command("telegram")
def command() -> None:
    """A Telegram bot for the chats you name: /status, /pause, /resume, /positions, /close.

    The token is read from RATEKEEPER_TELEGRAM_TOKEN, the chats from RATEKEEPER_TELEGRAM_CHATS or the configuration.
    """
    from ratekeeper.apps.exchange.accounts import chosen
    from ratekeeper.apps.exchange.desk import Desk
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

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
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
    """The chats whose commands the bot obeys.

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


class TelegramDown(RatekeeperError):
    """No answer, or none of the Bot API's: worth another try."""


class TelegramRefused(RatekeeperError):
    """The Bot API says no.

    Attributes:
        code: its error code, as HTTP's.
    """

    def __init__(self, method: str, code: int, description: str) -> None:
        super().__init__(f"Telegram refuses {method}: {code} {description}")
        self.code = code


class Api:
    """One bot.

    Args:
        token: the bot's.
        base: where the API is.
        wait: waits for the seconds that a refusal names in ``retry_after``; True ends the attempt.
    """

    def __init__(self, token: str, base: str, wait: Callable[[float], object]) -> None:
        import httpx

        self._httpx = httpx
        self._token = token
        self._wait = wait
        self._client = httpx.Client(base_url=f"{base.rstrip('/')}/bot{token}/")
        self._quiet = _Without(token)
        logging.getLogger("httpx").addFilter(self._quiet)

    def updates(self, offset: int, seconds: float) -> list[dict[str, Any]]:
        """What was written since `offset` (which confirms everything before it); waits up to `seconds` for something.

        Raises:
            TelegramDown, TelegramRefused: see there.
        """
        wanted = {"offset": offset, "timeout": int(seconds), "allowed_updates": ["message"]}
        found = self._call("getUpdates", wanted, _PATIENCE + seconds)
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []

    def send(self, chat: int, text: str) -> None:
        """Write to a chat, as plain text. Raises as `updates` does."""
        if len(text) > _MOST:
            text = text[: _MOST - 2] + " …"
        self._call("sendMessage", {"chat_id": chat, "text": text}, _PATIENCE)

    def _call(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        while True:
            try:
                answer = self._client.post(method, json=params, timeout=timeout)
                body = answer.json()
            except self._httpx.HTTPError as error:
                raise TelegramDown(f"Telegram cannot be reached ({type(error).__name__})") from None
            except ValueError:
                raise TelegramDown("Telegram gave an answer that is not its own") from None
            if not isinstance(body, dict):
                raise TelegramDown("Telegram gave an answer that is not its own")
            if body.get("ok"):
                return body.get("result")
            code, hints = whole(body.get("error_code")) or answer.status_code, body.get("parameters")
            wait = number(hints.get("retry_after")) if isinstance(hints, dict) else None
            if code == 429 and wait is not None:
                if self._wait(min(max(wait, 0), _LONGEST_WAIT)):
                    raise TelegramDown("stopped while Telegram wanted a pause")
                continue
            if code >= 500:
                raise TelegramDown(f"Telegram is in trouble ({code})")
            raise TelegramRefused(method, code, str(body.get("description", "")).replace(self._token, "…"))

    def close(self) -> None:
        """Close its connections."""
        self._client.close()
        logging.getLogger("httpx").removeFilter(self._quiet)


class _Without(logging.Filter):
    """Drops log records that would show the token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def filter(self, record: logging.LogRecord) -> bool:
        return self._token not in record.getMessage()


class Bot:
    """One bot.

    Args:
        api: Telegram's.
        replies: what to answer.
        chats: the chats whose commands the bot obeys; it ignores any other, and logs its number once.
        stop: ends the loop, also out of a wait.
        wall: Unix seconds.
    """

    def __init__(
        self, api: Api, replies: Replies, chats: frozenset[int], stop: Event, wall: Callable[[], float] = time.time
    ) -> None:
        self._api = api
        self._replies = replies
        self._chats = chats
        self._stop = stop
        self._wall = wall
        self._strangers: set[int] = set()
        # What asks an exchange may take a while; a pause must not wait for it.
        self._slow = ThreadPoolExecutor(1, "ratekeeper-telegram")

    def run(self) -> None:
        """Until `stop` is set.

        Raises:
            TelegramRefused: the token is wrong.
        """
        offset, failures = 0, 0
        try:
            while not self._stop.is_set():
                try:
                    updates = self._api.updates(offset, _POLL)
                except (TelegramDown, TelegramRefused) as error:
                    if isinstance(error, TelegramRefused) and error.code in _FATAL:
                        raise
                    self._back_off(failures, error)
                    failures += 1
                    continue
                if failures:
                    log.warning("ratekeeper telegram: connected again")
                failures = 0
                for update in updates:
                    at, message = whole(update.get("update_id")), update.get("message")
                    offset = max(offset, (-1 if at is None else at) + 1)
                    if isinstance(message, dict):
                        self._take(message)
        finally:
            self._slow.shutdown(cancel_futures=True)

    def _back_off(self, failures: int, error: Exception) -> None:
        if not failures:
            log.warning("ratekeeper telegram: %s; trying on", error)
        self._stop.wait(min(_LONGEST, _FIRST * 2**failures))

    def _take(self, message: dict[str, Any]) -> None:
        """One message."""
        place, text = message.get("chat"), message.get("text")
        chat = whole(place.get("id")) if isinstance(place, dict) else None
        if chat is None or not isinstance(text, str) or not text.startswith("/"):
            return
        if chat not in self._chats:
            if chat not in self._strangers and len(self._strangers) < 1_000:
                self._strangers.add(chat)
                log.warning("ratekeeper telegram: chat %d is not on the list and is ignored", chat)
            return
        if self._wall() - (number(message.get("date")) or 0) > _STALE:
            self._send(
                chat, f"{text.split()[0]} came late and was not carried out. Send it again if you still want it."
            )
            return
        if text.split()[0].partition("@")[0].lower() in _QUICK:
            self._reply(chat, text)
        else:
            self._slow.submit(self._reply, chat, text)

    def _reply(self, chat: int, text: str) -> None:
        try:
            said = self._replies.answer(chat, text)
        except Exception as error:  # a mistake in one answer must not end the bot
            log.exception("ratekeeper telegram: %s failed", text.split()[0])
            said = f"Not done, or not known whether it was: {type(error).__name__}; the log says more"
        self._send(chat, said)

    def _send(self, chat: int, text: str) -> None:
        for failures in range(_SENDS):
            try:
                self._api.send(chat, text)
                return
            except TelegramDown as error:
                if failures + 1 == _SENDS or self._stop.wait(min(_LONGEST, _FIRST * 2**failures)):
                    log.warning("ratekeeper telegram: an answer was lost: %s", error)
                    return
            except TelegramRefused as error:
                log.warning("ratekeeper telegram: an answer was lost: %s", error)
                return
