"""What the configuration says for people who step in by hand: exchanges and the chat. Keys are never in it."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

__all__ = ["CREDENTIALS", "VARIABLE", "ExchangeSettings", "TelegramSettings"]

CREDENTIALS: Final = ("key", "secret", "password", "uid", "account_id", "wallet", "private_key")
VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]*")
"""What the name of an environment variable looks like, and a key hardly ever."""

Chat = Annotated[int, Meta(title="a chat's number", description="The bot's log tells it when somebody else writes.")]


class ExchangeSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One account at an exchange, for ``ratekeeper exchange``.

    Attributes:
        exchange: ccxt's name of it; the table's own name if left out.
        key, secret, password, uid, account_id, wallet, private_key: names of environment variables, never the values;
            left out: ``RATEKEEPER_EXCHANGE_KEY`` and so on.
        keys: path of a TOML file with the values under these names instead, which only its owner may read.
        url: where to send its calls instead of the exchange's own hosts: an emulator, a mirror, the proxy.
        market: ccxt's ``defaultType``, such as ``swap``, where an exchange has several kinds of markets.
    """

    exchange: str = ""
    key: str = ""
    secret: str = ""
    password: str = ""
    uid: str = ""
    account_id: str = ""
    wallet: str = ""
    private_key: str = ""
    keys: str = ""
    url: str = ""
    market: str = ""


class TelegramSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The bot of ``ratekeeper telegram``.

    Attributes:
        chats: numbers of the chats that are obeyed; ``$RATEKEEPER_TELEGRAM_CHATS`` (``1,2``) goes before it.
        account: the ``[exchanges.NAME]`` that ``/positions`` and ``/close`` speak of; the only one if left out.
    """

    chats: list[Chat] = []
    account: str = ""
