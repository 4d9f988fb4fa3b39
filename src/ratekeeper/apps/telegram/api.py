"""The few calls of Telegram's Bot API that the bot makes (https://core.telegram.org/bots/api), over httpx.

The token is part of every URL, so neither an error nor a log line of httpx gets to show one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from ratekeeper.errors import RatekeeperError

__all__ = ["Api", "TelegramDown", "TelegramRefused"]

_PATIENCE: Final = 10.0
"""Seconds to wait for an answer, beyond those that a long poll is meant to last."""
_LONGEST: Final = 4_096
"""Characters of a message at most."""


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
        wait: waits so many seconds, as a refusal with ``retry_after`` wants it; True ends the attempt.
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
        if len(text) > _LONGEST:
            text = text[: _LONGEST - 2] + " …"
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
            code, hints = int(body.get("error_code") or answer.status_code), body.get("parameters") or {}
            if code == 429 and "retry_after" in hints:
                if self._wait(float(hints["retry_after"])):
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
