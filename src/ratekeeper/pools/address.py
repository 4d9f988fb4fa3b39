"""One address to leave from: a local source address, a proxy, or whatever the system chooses."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Address"]


@dataclass(frozen=True, slots=True)
class Address:
    """An egress address.

    Attributes:
        name: as the configuration calls it.
        bind: local source address, or ``""``.
        proxy: URL of a proxy, or ``""``. It may hold a password: show `leaves` instead.
        scope: whose ledgers it spends on, if the configuration says so.
    """

    name: str
    bind: str = ""
    proxy: str = field(default="", repr=False)
    scope: str = ""

    @property
    def plain(self) -> bool:
        """Whether nothing has to be done to leave from it."""
        return not (self.bind or self.proxy)

    @property
    def leaves(self) -> str:
        """How it leaves, for people and without secrets."""
        parts = urlsplit(self.proxy)
        proxy = f"proxy {parts.hostname}{f':{parts.port}' if parts.port else ''}" if self.proxy else ""
        return " by ".join(part for part in (self.bind, proxy) if part) or "default"
