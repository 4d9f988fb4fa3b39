"""What is done around every governed call, and how it is switched on."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ratekeeper.errors import RuleError
from ratekeeper.policy.breaker import Breaker
from ratekeeper.policy.freshness import Cache
from ratekeeper.policy.retry import Retry

__all__ = ["Batch", "Policies"]


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How single calls are collected and made as one, where the rules know how (``[[merges]]``) and it is cheaper.

    Attributes:
        window: seconds for which the first call waits for others.
        most: calls in one batch at most; the provider's own bound may be lower.
    """

    window: Annotated[float, Meta(ge=0, le=10, title="seconds from 0 to 10")] = 0.005
    most: Annotated[int, Meta(ge=2, title="a number from 2")] = 100


class Policies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which policies are in force: off, on with defaults (True), or with settings of one's own.

    Attributes:
        retry: failed calls are made again where that is safe.
        breaker: a provider in trouble is left alone until it is back.
        cache: answers are kept for a while and shared by all processes.
        batch: single calls are merged into one.
    """

    retry: bool | Retry = False
    breaker: bool | Breaker = False
    cache: bool | Cache = False
    batch: bool | Batch = False

    @classmethod
    def all(cls) -> Policies:
        """All of them, with their defaults."""
        return cls(retry=True, breaker=True, cache=True, batch=True)

    @classmethod
    def named(cls, text: str) -> Policies:
        """From ``"all"``, ``"none"`` or some of their names, as in ``"retry,cache"``.

        Raises:
            RuleError: there is no such policy.
        """
        names = [name.strip() for name in text.lower().split(",") if name.strip()]
        if names == ["all"]:
            return cls.all()
        if names == ["none"]:
            return cls()
        unknown = [name for name in names if name not in cls.__struct_fields__]
        if unknown:
            known = ", ".join(cls.__struct_fields__)
            raise RuleError(f"no policy is called {unknown[0]!r}: use all, none, or some of {known}")
        return cls(**dict.fromkeys(names, True))

    @property
    def attempt_timeout(self) -> float | None:
        """Seconds that one attempt may take; None: as long as its client lets it."""
        return self.retry.attempt_timeout if isinstance(self.retry, Retry) else None

    def __bool__(self) -> bool:
        return any((self.retry, self.breaker, self.cache, self.batch))
