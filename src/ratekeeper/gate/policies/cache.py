"""The response cache: all processes share it, one of them makes the call, and a stale response is better than none."""

from __future__ import annotations

import functools
import time
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final, NamedTuple

from ratekeeper.errors import Blocked, CallFailed, Rejected
from ratekeeper.gate.call import Call, Next, Policy, Reply, Served, packed, unpacked
from ratekeeper.gate.context import Context
from ratekeeper.gate.policies.single_flight import Leader, SingleFlight
from ratekeeper.gate.steps import Steps, apart
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.freshness import Cache, Kept, Service
from ratekeeper.rules.call import Outcome, Plan, Request
from ratekeeper.rules.handling import class_of, fingerprint
from ratekeeper.rules.secrets import holds, secrets_of, struck

__all__ = ["Caching"]

_LONGEST: Final = 60.0
"""Followers wait at most this many seconds for the leader."""


class _Wanted(NamedTuple):
    key: bytes
    ttl: float
    owner: str
    """The owner of the response; ``""``: it is public."""
    topic: str
    """The worker keeps the order of all work on this topic: for one response or one owner."""


class _Found(NamedTuple):
    kept: Kept
    age: float
    reply: Reply
    outdated: bool
    """Whether the owner has changed the account since, so that even a fresh response may be wrong."""


class Caching(Policy):
    """The cached responses of one gate."""

    when_overriding: ClassVar[bool] = False

    def __init__(self, context: Context, cache: Cache) -> None:
        self._events = context.events
        self._store = context.store
        self._worker = context.worker
        self._cache = cache
        self._responses = context.store.responses(context.home, cache.most_bytes)
        self._single_flight = SingleFlight(context.store, context.worker)

    def close(self) -> None:
        """Close the response storage."""
        self._single_flight.close()
        self._responses.close()

    def around(self, call: Call, plan: Plan, ask: Next) -> Steps[Any]:
        """Return a response from the cache, or from `ask`, and then store it."""
        wanted = self._wanted(call, plan)
        if wanted is None:
            try:
                return (yield from ask(call, plan))
            finally:
                self._acted(call, plan)
        found: _Found | None = None
        for _ in range(2):  # a follower that waited in vain makes its own call
            found = yield from self._look(wanted, call.is_async)
            answer = self._usable(call, plan, wanted, found)
            if answer is not None:
                return answer
            if call.urgent:
                break  # the leader's call may stand behind many in the queue
            flight = yield from self._single_flight.join(wanted.key, is_async=call.is_async)
            if isinstance(flight, Leader):
                try:
                    # The previous leader may have stored a response since the last check.
                    found = yield from self._look(wanted, call.is_async)
                    answer = self._usable(call, plan, wanted, found)
                    if answer is not None:
                        return answer
                    return (yield from self._asked(call, plan, wanted, found, ask))
                finally:
                    flight.finish()
            yield from flight.wait(_LONGEST, is_async=call.is_async)
            found = yield from self._look(wanted, call.is_async)
            if found is not None and not found.outdated and self._cache.fresh(found.kept, found.age):
                self._told("cache hit", plan, found)
                return call.answer(found.reply, Served(Service.SHARED, found.age))
        return (yield from self._asked(call, plan, wanted, found, ask))

    # -- which responses -------------------------------------------------------------------------------------------

    def _wanted(self, call: Call, plan: Plan) -> _Wanted | None:
        """Return key, time to live and owner of the response; None: the gate does not cache it."""
        if not call.answers or call.request.method.startswith("WS"):
            return None
        ttl = self._ttl(call, plan)
        if not ttl:
            return None
        key = call.rules.handling.key(call.request, plan)
        owner = "" if class_of(plan) == "market" else _owner(plan)
        return None if key is None else _Wanted(key, ttl, owner, owner or key.hex())

    def _ttl(self, call: Call, plan: Plan) -> float:
        provider = plan.provider.partition("@")[0]
        route = f"{provider} {plan.route.partition(' #')[0]}"
        own = [pattern for pattern in self._cache.ttl if fnmatchcase(route, pattern)]
        if own:
            return self._cache.ttl[max(own, key=len)]
        ttl = call.rules.handling.ttl(plan)
        if ttl is None and class_of(plan) == "market" and call.request.method.upper() == "GET":
            return self._cache.market
        return ttl or 0.0

    # -- the response storage ----------------------------------------------------------------------------------------

    def _look(self, wanted: _Wanted, is_async: bool) -> Steps[_Found | None]:
        return apart(self._worker, wanted.topic, functools.partial(self._get, wanted), None, is_async=is_async)

    def _get(self, wanted: _Wanted) -> _Found | None:
        value = self._responses.get(wanted.key)
        opened = None if value is None else unpacked(value)
        if opened is None:
            return None
        at, ttl, reply = opened
        moved = self._responses.get(_moved(wanted.owner)) if wanted.owner else None
        outdated = moved is not None and int.from_bytes(moved, "big") >= at
        age = (time.monotonic_ns() + self._store.skew()[1] - at) / SECOND
        return _Found(Kept(at / SECOND, min(ttl, wanted.ttl)), age, reply, outdated)

    def _put(self, wanted: _Wanted, reply: Reply, asked: int) -> None:
        if len(reply.body) <= self._cache.largest:
            self._responses.put(wanted.key, packed(reply, asked, wanted.ttl), self._cache.keep(wanted.ttl))

    def _acted(self, call: Call, plan: Plan) -> None:
        """Mark cached responses of an account as outdated after a call that changes it."""
        reads = call.request.method.upper() in {"GET", "HEAD"} and class_of(plan) not in {"order", "cancel"}
        if not reads and (owner := _owner(plan)):
            stamp = self._store.present().hi.to_bytes(8, "big")
            put = functools.partial(self._responses.put, _moved(owner), stamp, self._cache.keep(3600.0))
            self._worker.later(owner, put)  # works in a cancelled task too

    # -- asking ----------------------------------------------------------------------------------------------------

    def _usable(self, call: Call, plan: Plan, wanted: _Wanted, found: _Found | None) -> Any:
        """Return a cached response that serves at once: a fresh one, or any while a block holds the call."""
        if found is None:
            return None
        if not found.outdated and self._cache.fresh(found.kept, found.age):
            self._told("cache hit", plan, found)
            return call.answer(found.reply, Served(Service.HIT, found.age))
        blocks = self._store.blocks
        over = blocks.against(plan.scopes, plan.charges, time.monotonic_ns()) if blocks else None
        if over is not None and over.kind == "ban" and self._cache.serves(found.kept, found.age, banned=True):
            return self._stale(call, plan, found, "banned")
        return None

    def _asked(self, call: Call, plan: Plan, wanted: _Wanted, found: _Found | None, ask: Next) -> Steps[Any]:
        asked = self._store.present().lo  # the earliest possible instant
        try:
            response = yield from ask(call, plan)
        except Exception as error:
            # A call that failed and was blocked before its next attempt counts as both: failed and blocked.
            in_vain = isinstance(error, Rejected | CallFailed) or call.tried is not None
            shut = isinstance(error, Blocked) or isinstance(error.__cause__, Blocked)
            if in_vain and found is not None and self._cache.serves(found.kept, found.age, banned=shut):
                return self._stale(call, plan, found, struck(str(error), secrets_of(call.request)))
            raise
        outcome = call.tried.outcome if call.tried is not None else Outcome.OK
        if outcome is Outcome.OK:
            reply, response = yield from call.read(response)
            if (
                reply is not None
                and reply.status == 200
                and call.rules.handling.good(reply.body)
                and not _quotes(reply, call.request)
            ):
                put = functools.partial(self._put, wanted, reply, asked)
                yield from apart(self._worker, wanted.topic, put, None, is_async=call.is_async)
            call.label(response, Served(call.service))
        elif outcome is not Outcome.BAD_REQUEST and found is not None:
            banned = outcome is Outcome.BANNED
            if self._cache.serves(found.kept, found.age, banned=banned):
                yield from call.discard(response)
                return self._stale(call, plan, found, str(outcome))
        return response

    def _stale(self, call: Call, plan: Plan, found: _Found, why: str) -> Any:
        self._told("cache stale", plan, found, why)
        return call.answer(found.reply, Served(Service.STALE, found.age))

    def _told(self, kind: str, plan: Plan, found: _Found, why: str = "") -> None:
        self._events.say(
            kind, f"{plan.route}: an answer {found.age:.1f} s old{': ' + why if why else ''}", plan.provider,
            route=plan.route, age=found.age,
        )  # fmt: skip


def _owner(plan: Plan) -> str:
    start = f"{plan.provider}/account:"
    return next((scope for scope in plan.scopes if scope.startswith(start)), "")


def _quotes(reply: Reply, request: Request) -> bool:
    """Whether a response quotes a secret of its request: then it is not stored."""
    secrets = secrets_of(request)
    if not secrets:
        return False
    headers = "\n".join(value for _, value in reply.headers)
    return holds(reply.body, secrets) or holds(headers.encode("utf-8", "surrogatepass"), secrets)


def _moved(owner: str) -> bytes:
    return fingerprint("moved", owner)
