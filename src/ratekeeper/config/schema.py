"""The schema of a configuration file: every table of it, as types that judge their values."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from ratekeeper.errors import StoreError
from ratekeeper.policy.interval import Congestion, Interval
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.address import EgressSettings
from ratekeeper.stores.redis.address import is_address, parse_address

__all__ = [
    "CREDENTIALS",
    "VARIABLE",
    "ExchangeSettings",
    "LimitSettings",
    "ProgramSettings",
    "ProviderSettings",
    "Settings",
    "TelegramSettings",
    "store_address",
]

CREDENTIALS: Final = ("key", "secret", "password", "uid", "account_id", "wallet", "private_key")
VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]*")
"""What the name of an environment variable looks like, and a key hardly ever."""

_PERCENT = r"^\d+(\.\d+)?%$"
Whole = Annotated[int, Meta(ge=1, title="a whole number from 1", description="Write a whole number of units.")]
Weight = Annotated[int, Meta(ge=1, title="a whole number from 1", description="Others have 1.")]
Seconds = Annotated[float, Meta(ge=0, title="a number of seconds from 0", description="Write for example 120.")]
_Part = Annotated[float, Meta(ge=0, lt=1)] | Annotated[str, Meta(pattern=_PERCENT)]
Percent = Annotated[_Part, Meta(title="per cent", description="Write for example '10%'.")]
Headroom = Annotated[
    Annotated[int, Meta(ge=0)] | _Part, Meta(title="units or per cent", description="Write for example 20 or '10%'.")
]
Use = Annotated[
    Annotated[float, Meta(gt=0, le=1)] | Annotated[str, Meta(pattern=_PERCENT)],
    Meta(title="a share above 0, at most 1, or per cent", description="Write for example 0.7 or '70%'."),
]
Span = Annotated[
    str,
    Meta(
        pattern=r"^(\d+(\.\d+)?(ms|[smhdw]))+$",
        title="a duration",
        description="Write for example '10s', '1m' or '1h30m'.",
    ),
]
Kind = Literal["fixed", "first", "sliding", "bucket", "slots"]
Class = Literal["critical", "high", "normal", "low", "background"]
Chat = Annotated[int, Meta(title="a chat's number", description="The bot's log tells it when somebody else writes.")]


class LimitSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One limit of a provider, as the user wants it. With any of `unit`, `scope`, `window` and `routes` it is a further limit
    beside those of the rules.

    Attributes:
        capacity: a number of the user's own, in units; what the provider states goes before it only if it is lower.
        period: the window of that number, such as ``1m``; the rule file's if left out.
        headroom: what to leave unused: units, a share such as 0.1, or per cent as in ``"10%"``.
        use: the same as the part that is used: 0.9 or ``"90%"``.
        unit: what a further limit counts: ``requests`` (each call is one) or a unit of the rules.
        scope: whose calls share it: ``ip``, ``account``, ``key``, or several kinds of owner; ``ip`` if left out.
        window: how its span moves; ``sliding`` if left out.
        routes: shell patterns of the calls that it counts, ``METHOD PATH``; all calls if left out.
    """

    capacity: Whole | None = None
    period: Span | None = None
    headroom: Headroom = 0
    use: Use | None = None
    unit: str = ""
    scope: str | list[str] = ""
    window: Kind | None = None
    routes: str | list[str] = []

    @property
    def further(self) -> bool:
        """Whether it is a limit beside those of the rules."""
        return bool(self.unit or self.scope or self.window or self.routes)


class ProviderSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One provider.

    Attributes:
        tier: the customer's tier; or by limit, where they differ.
        headroom: what to leave unused of every limit: a share such as 0.1, or per cent.
        use: the same as the part that is used.
        limits: by name.
        pace: ``"smooth"`` spreads the budget of each window evenly over it; ``"burst"`` spends it as calls come.
    """

    tier: str | dict[str, str] = {}
    headroom: Percent = ""
    use: Use | None = None
    limits: dict[str, LimitSettings] = {}
    pace: Literal["burst", "smooth"] = "burst"


class ProgramSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One program, by the name that ``ratekeeper status`` shows: `weight`, `priority` and `max_block_wait` for it alone.

    Attributes:
        limits: by ``PROVIDER/LIMIT``, how many units of it all processes of that name may spend together in each of its
            windows.
    """

    weight: Weight | None = None
    priority: Class | None = None
    max_block_wait: Seconds | None = None
    limits: dict[str, Whole] = {}


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
        chats: numbers of the chats that the bot obeys; ``$RATEKEEPER_TELEGRAM_CHATS`` (``1,2``) goes before it.
        account: the ``[exchanges.NAME]`` that ``/positions`` and ``/close`` use; the only one if left out.
    """

    chats: list[Chat] = []
    account: str = ""


class Settings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A configuration file. Whatever it leaves out has its default.

    `ratekeeper.config.resolution.SETTINGS` tells the meaning of those attributes that an argument or an environment variable
    may state, too; they go before the file.

    Attributes:
        home: a relative path is meant from the file.
        egress: name of the address that calls leave from, or all about several of them.
        rules: further rule files; relative paths are meant from the configuration file.
        hosts: hosts to treat as a provider.
        providers: by name.
        priorities: class of calls that name none, by what they are: ``PROVIDER``, ``PROVIDER/class:CLASS`` or
            ``PROVIDER METHOD PATH``.
        programs: by name.
        pollers: intervals of pollers that state none, by the name of the poller; ``*`` is every other.
        gathers: how many calls of a gather run side by side, by provider; ``*`` is every other.
        policies: what is done around calls: ``"all"``, some names (``"retry,cache"``), or a table with settings.
        exchanges: accounts for ``ratekeeper exchange``, by a name of the user's.
        telegram: the chats that ``ratekeeper telegram`` obeys.
        headroom: by provider and limit; the older way of ``providers.NAME.limits.LIMIT.headroom``.
    """

    home: str = ""
    store: str = ""
    egress: str | EgressSettings = ""
    priority: Class | None = None
    weight: Weight = 1
    max_wait: Seconds = 900.0
    max_block_wait: Seconds = 30.0
    learn: bool = True
    ungoverned_on_error: bool = False
    rules: list[str] = []
    hosts: dict[str, str] = {}
    providers: dict[str, ProviderSettings] = {}
    priorities: dict[str, Class] = {}
    programs: dict[str, ProgramSettings] = {}
    pollers: dict[str, Interval] = {}
    gathers: dict[str, Congestion] = {}
    policies: str | Policies = ""
    exchanges: dict[str, ExchangeSettings] = {}
    telegram: TelegramSettings = TelegramSettings()
    headroom: dict[str, dict[str, Headroom]] = {}


def store_address(store: str | None) -> str:
    """The address of a store; ``host://`` if none is named.

    Raises:
        StoreError: no such kind of store.
    """
    name = store or "host://"
    if is_address(name):
        parse_address(name)
    elif name.split("://")[0] not in ("host", "memory"):
        shown = name.partition("://")[0] if "@" in name else name
        raise StoreError(f"no store is called {shown!r}: use host://, memory:// or redis://HOST:PORT")
    return name
