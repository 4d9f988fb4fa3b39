"""Random values, and answers in the grammar of every provider: what all that is tried is made of."""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec

from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Identity, Plan, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import listed

__all__ = ["ODD", "SECRET", "Base"]

SECRET: Final = "sEcReT" * 8
ODD: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**300, 1e308, 0.5, "", "0", "-5", "1e999", "nan", "inf",
    "9" * 30, "9" * 5000, "1" + "0" * 400 + "d", "٣", "²", "\x00", "Sun, 99 Foo 0000", "Sun, 06 Nov 9999 08:49:37 GMT",
    "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "until 9999999999999", [], {}, [[]], [None] * 9, {"": {}}, SECRET,
    "SECOND", "9999999 DAY", "<html>", "a" * 70_000, "[" * 300, "1m" * 300, "1700000060", "1700000060000", "120",
)  # fmt: skip


class Base:
    """One series of random inputs; the same seed makes the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.book = Rulebook.load({})
        self.providers = [self.book.provider(name) for name in self.book.names()]
        self._plans: dict[str, list[Plan]] = {}

    def plans(self, provider: Provider) -> list[Plan]:
        """Plans of some routes of a provider."""
        if provider.name not in self._plans:
            matches = [match for route in provider.file.routes for match in listed(route.match)]
            calls = [match.partition(" ") for match in self.dice.sample(matches, min(6, len(matches)))]
            identity = Identity("default", "me", b"key")
            self._plans[provider.name] = [
                provider.plan(Request(method, path.replace("*", "x")), identity) for method, _, path in calls
            ] or [provider.plan(Request("GET", "/"), identity)]
        return self._plans[provider.name]

    def odd(self) -> Any:
        """A value that nobody expects."""
        return self.dice.choice(ODD)

    def value(self, known: list[Any]) -> Any:
        """One that is expected, or one that is not."""
        return self.dice.choice(known) if known and self.dice.random() < 0.5 else self.odd()

    def body(self, provider: Provider) -> bytes | str | None:
        """A body in the provider's grammar, and then often damaged."""
        tree: dict[str, Any] = {}
        for refusal in self.dice.sample(provider.file.refusals, min(3, len(provider.file.refusals))):
            for path, accepted in refusal.body.items():
                self.put(tree, path, self.value(list(accepted)))
            for hint in refusal.retry or ():
                if hint.body:
                    self.put(tree, hint.body, self.odd())
        for learn in provider.file.learn:
            if learn.rows:
                row = {
                    name: self.odd()
                    for name in (learn.type, learn.interval, learn.number, learn.limit, learn.used)
                    if name
                }
                if learn.type and learn.units:
                    row[learn.type] = self.value(list(learn.units))
                self.put(tree, learn.rows, [row, self.odd(), dict(row)])
            if learn.clock:
                self.put(tree, learn.clock, self.odd())
        tree["msg"] = self.value(["banned until 1700000060000", f"limit 1200 per 1 MINUTE {SECRET}", "Too many"])
        try:
            raw = msgspec.json.encode(self.odd() if self.dice.random() < 0.1 else tree)
        except msgspec.MsgspecError:
            raw = repr(tree).encode("utf-8", "replace")
        return self.dice.choice(
            [raw, raw, raw, raw[: len(raw) // 2], raw + b"[" * 3000, b"[" * 2000, b'{"a":' * 2000, self.damaged(raw), b"",
             raw.decode("utf-8", "replace") + "\ud800", b"\xff\xfe" + raw, b"9" * 9000, raw + b" " * 70_000 + b"}", None]
        )  # fmt: skip

    def put(self, tree: dict[str, Any], path: str, value: Any) -> None:
        """Put a value at a dotted path."""
        *steps, last = path.split(".")
        for step in steps:
            inner = tree.setdefault(step, {})
            if not isinstance(inner, dict):
                return
            tree = inner
        tree[last] = value

    def damaged(self, raw: bytes) -> bytes:
        """The same with some bytes changed."""
        found = bytearray(raw or b"x")
        for _ in range(self.dice.randint(1, 9)):
            found[self.dice.randrange(len(found))] = self.dice.randrange(256)
        return bytes(found)

    def headers(self, provider: Provider) -> dict[str, str]:
        """Headers that the rules look at, with odd values."""
        names = {"date", "retry-after"}
        for limit in provider.limits.values():
            rule = provider.file.limits.get(limit.name)
            if rule is not None:
                stated = (getattr(rule.headers, kind) for kind in ("used", "remaining", "limit", "reset", "cost"))
                names |= {name.replace("{interval}", "1m").lower() for name in stated if name}
        chosen = self.dice.sample(sorted(names), self.dice.randint(0, len(names)))
        return {name: str(self.odd())[:9000] for name in chosen}
