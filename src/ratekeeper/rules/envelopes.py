"""How providers wrap their answers: `envelopes.toml`."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

import msgspec

__all__ = ["Envelope", "filled", "put"]

SECOND = 1_000_000_000


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One provider's wrapping.

    Attributes:
        ok: JSON of an answer that says nothing but yes.
        failed: JSON that the fields of a refusal are put into.
        message: dotted path of a refusal's text in it.
        banned: the text of a ban: ``$until`` is its end in Unix ms, ``$ip`` the address in parentheses, or nothing.
        routes: answers of single routes, by method and template.
    """

    ok: str = "{}"
    failed: str = "{}"
    message: str = "message"
    banned: str = ""
    routes: dict[str, str] = {}

    @classmethod
    def of(cls, provider: str) -> Envelope:
        """The provider's envelope; a plain one for a provider that has none."""
        text = Path(__file__).with_name("envelopes.toml").read_text("utf-8")
        return msgspec.convert(tomllib.loads(text), dict[str, Envelope]).get(provider, cls())

    def banned_text(self, ip: str, until: int) -> str:
        """What is said to `ip` (``""``: nobody knows it) that is banned until `until` (Unix ns)."""
        return Template(self.banned).substitute(ip=f"({ip})" if ip else "", until=until // 1_000_000)


def filled(template: str, now: int) -> bytes:
    """The template with the time `now` (Unix ns) in it."""
    if "$" not in template:
        return template.encode()
    iso = datetime.fromtimestamp(now // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    units = {"s": now // SECOND, "ms": now // 1_000_000, "us": now // 1000, "ns": now}
    return Template(template).substitute(units, iso=f"{iso}.{now // 1_000_000 % 1000:03}Z").encode()


def put(body: Any, path: str, value: Any) -> Any:
    """`body` with `value` at a dotted path; a number names a place in a list. What is not there is made."""
    if not path:
        return value
    step, _, rest = path.partition(".")
    if step.isdecimal():
        rows = list(body) if isinstance(body, list) else []
        rows += [None] * (int(step) + 1 - len(rows))
        rows[int(step)] = put(rows[int(step)], rest, value)
        return rows
    return {**(body if isinstance(body, dict) else {}), step: put((body or {}).get(step), rest, value)}
