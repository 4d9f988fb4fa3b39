"""Egress addresses, and the ``[egress]`` section of a configuration file that defines them and who may use which."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from ratekeeper.errors import RuleError

__all__ = ["Address", "AddressSettings", "EgressSettings", "PoolSettings", "addresses_of", "checked", "listed", "pins"]

_SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class Address:
    """An egress address.

    Attributes:
        name: its name in the configuration.
        bind: local source address, or ``""``.
        proxy: URL of a proxy, or ``""``. It may hold a password: show `leaves` instead.
        scope: the owner of the ledgers it spends on, if the configuration states it.
    """

    name: str
    bind: str = ""
    proxy: str = field(default="", repr=False)
    scope: str = ""

    @property
    def plain(self) -> bool:
        """Whether the address needs neither a source address nor a proxy."""
        return not (self.bind or self.proxy)

    @property
    def leaves(self) -> str:
        """Return its route for people, without secrets."""
        parts = urlsplit(self.proxy)
        proxy = f"proxy {parts.hostname}{f':{parts.port}' if parts.port else ''}" if self.proxy else ""
        return " by ".join(part for part in (self.bind, proxy) if part) or "default"


class AddressSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One egress address in the configuration.

    Attributes:
        bind: a local source address, as a number.
        proxy: URL of a proxy; may hold a password, which is never shown.
        scope: the owner of the ledgers it spends on. Addresses that the provider sees as one public address need one scope.
    """

    bind: str = ""
    proxy: str = ""
    scope: str = ""


class PoolSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The addresses of one provider.

    Attributes:
        primary: used first; several share the load by the room left on their limits.
        backups: used while no primary has room.
        pin: accounts that may use some addresses only: by name or by the digest that ``ratekeeper status`` shows; ``*`` is
            every account. A plain name pins every account to that address.
    """

    primary: str | list[str]
    backups: list[str] = []
    pin: str | dict[str, str | list[str]] = {}


class EgressSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """All settings of egress addresses.

    Attributes:
        name: scope of the default address, or the name of one of `addresses`. Calls without a choice use it.
        echo: a URL that answers with the caller's public address, which then names the scope.
        addresses: by name: a local source address, or `AddressSettings`.
        pools: by provider; ``*`` is every provider without a pool of its own.
    """

    name: str = ""
    echo: str = ""
    addresses: dict[str, str | AddressSettings] = {}
    pools: dict[str, PoolSettings] = {}


def checked(settings: EgressSettings) -> EgressSettings:
    """Return the same settings if they are consistent.

    Raises:
        RuleError: they are not; `key` is the path of the faulty setting.
    """
    addresses = addresses_of(settings)
    if settings.echo and urlsplit(settings.echo).scheme not in ("http", "https"):
        raise RuleError("is not a URL. Write for example https://echo.example/ip", key="$.egress.echo")
    for provider, pool in settings.pools.items():
        key = f"$.egress.pools.{provider}"
        primary = listed(pool.primary)
        if not primary:
            raise RuleError("names no address. Name at least one", key=f"{key}.primary")
        _known(primary, addresses, f"{key}.primary")
        _known(pool.backups, addresses, f"{key}.backups")
        for account, names in pins(pool).items():
            if not names:
                raise RuleError("leaves it no address. Name at least one", key=f"{key}.pin.{account}")
            members = {name: addresses[name] for name in (*primary, *pool.backups)}
            _known(names, members, f"{key}.pin.{account}")
    return settings


def addresses_of(settings: EgressSettings) -> dict[str, Address]:
    """Return the addresses by name.

    Raises:
        RuleError: one is not an address.
    """
    return {name: _address(name, said) for name, said in settings.addresses.items()}


def listed(names: str | list[str]) -> list[str]:
    """Return one name or several as a list."""
    return [names] if isinstance(names, str) else list(names)


def pins(pool: PoolSettings) -> dict[str, list[str]]:
    """Return the accounts that are limited to some addresses, with those addresses."""
    said: dict[str, str | list[str]] = {"*": pool.pin} if isinstance(pool.pin, str) else {**pool.pin}
    return {account: listed(names) for account, names in said.items()}


def _address(name: str, said: str | AddressSettings) -> Address:
    key = f"$.egress.addresses.{name}"
    if isinstance(said, str):
        said = AddressSettings(bind=said)
    if said.bind:
        try:
            ipaddress.ip_address(said.bind)
        except ValueError:
            raise RuleError(
                f"{said.bind!r} is not an address. Write it as a number, such as 203.0.113.10", key=key
            ) from None
    if said.proxy:
        parts = urlsplit(said.proxy)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            # The URL itself may hold a password, so the error does not repeat it.
            raise RuleError("its proxy is not a URL. Write for example http://10.0.0.2:3128", key=f"{key}.proxy")
    return Address(name, said.bind, said.proxy, said.scope)


def _known(names: list[str], addresses: dict[str, Address], key: str) -> None:
    for name in names:
        if name not in addresses:
            raise RuleError(f"no address is called {name!r}. There are: {', '.join(addresses) or 'none'}", key=key)
