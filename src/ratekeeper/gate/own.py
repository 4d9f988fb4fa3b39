"""A governed call that the program sends itself, with all policies: ``gate.call(...)``."""

from __future__ import annotations

import contextvars
import functools
import queue
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ratekeeper.gate import priorities
from ratekeeper.gate.call import Call, Reply, Served, tried_of
from ratekeeper.gate.outcomes import described, fate_of
from ratekeeper.gate.permit import Permit
from ratekeeper.gate.steps import Steps, waiting, within
from ratekeeper.policy.freshness import Service
from ratekeeper.policy.retry import Tried
from ratekeeper.rules.call import Outcome, Request
from ratekeeper.stores.threads import Helper

if TYPE_CHECKING:
    from ratekeeper.rules.provider import Provider

__all__ = ["Got", "OwnCall"]


class Got(NamedTuple):
    """A response.

    Attributes:
        status, headers, body: of HTTP; header names unchanged.
        service: where the response came from.
        age: its maximum age in seconds.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    service: Service = Service.FRESH
    age: float = 0.0


class OwnCall(Call):
    """A call that the program sends.

    Args:
        permit: makes a permit (`Gate.permit_for`).
        attempt_timeout: seconds that an attempt may take; None: as long as `send` takes.
        max_block_wait: seconds that a call without a timeout waits for the end of a block.
        rules: of the provider.
        request: the request.
        send: makes one attempt with its permit and returns ``(status, headers, body)``; awaited if `is_async`.
        options: of `Gate.permit`.
    """

    def __init__(
        self,
        permit: Callable[..., Permit],
        attempt_timeout: float | None,
        max_block_wait: float,
        rules: Provider,
        request: Request,
        send: Callable[[Permit], Any],
        options: Mapping[str, Any],
        *,
        is_async: bool,
    ) -> None:
        super().__init__(rules, request, is_async)
        self.urgent = priorities.urgent(options.get("priority"))
        self._permit = permit
        self._attempt_timeout = attempt_timeout
        self._max_block_wait = max_block_wait
        self._send = send
        self._options = options

    def attempt(self, timeout: float | None) -> Steps[Any]:
        own = self._options.get("timeout")
        patience = timeout if own is None else own if timeout is None else min(own, timeout)
        block_wait = self._options.get("block_wait")
        if block_wait is None and own is None and not self.patient:
            block_wait = self._max_block_wait
        permit = self._permit(
            self.rules,
            self.request,
            **{**self._options, "timeout": patience, "block_wait": block_wait},
        )
        left, longest = time.monotonic(), self._attempt_timeout
        try:
            if not permit.at_once():
                yield waiting(permit.acquire, permit.acquire_async, is_async=self.is_async)
            if self.leaving is not None:
                yield from self.leaving()
            left = time.monotonic()
        except BaseException:
            permit.give_up()  # nothing was sent
            raise
        try:
            if longest is None:
                status, headers, body = yield functools.partial(self._send, permit)
            elif self.is_async:
                status, headers, body = yield from within(self._sending(permit), longest, lambda: self.late(longest))
            else:
                status, headers, body = yield functools.partial(self._cut_off, permit, longest)
        except BaseException as error:
            fate = fate_of(error) if isinstance(error, Exception) else None
            permit.refund() if fate is Outcome.NETWORK else permit.unknown()
            if fate is not None:
                reason = described(error, time.monotonic() - left, self.rules.namespace, self.request)
                self.tried = Tried(fate, fate is Outcome.UNKNOWN, reason=reason)
            raise
        told = permit.settle(status, headers, body)
        self.tried = tried_of(told, time.monotonic())
        return Got(status, headers, body)

    def _sending(self, permit: Permit) -> Steps[Any]:
        return (yield functools.partial(self._send, permit))

    def _cut_off(self, permit: Permit, seconds: float) -> Any:
        """Send in a thread. After the timeout the thread runs on, because nothing can stop it from outside."""
        done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                done.put((self._send(permit), None))
            except BaseException as error:  # noqa: BLE001 - the waiting thread raises it again
                done.put((None, error))

        context = contextvars.copy_context()
        Helper(context.run, work)
        try:
            result, error = done.get(timeout=seconds)
        except queue.Empty:
            raise self.late(seconds) from None
        if error is not None:
            raise error
        return result

    def read(self, response: Got) -> Steps[tuple[Reply | None, Got]]:
        return Reply(response.status, tuple(response.headers.items()), response.body), response
        yield

    def answer(self, reply: Reply, served: Served) -> Got:
        return Got(reply.status, dict(reply.headers), reply.body, *served)
