"""First contact: before the first call to a provider that states its limits and its time, the gate reads them once.

One process of the machine asks; a short block on the provider holds the others. Learned limits last a day. If the
request fails, the limits of the rule file apply.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from ratekeeper.gate.context import Context
from ratekeeper.gate.settling import Settling
from ratekeeper.ledger.limit import SECOND
from ratekeeper.ledger.shares import AGED
from ratekeeper.policy.shared import Claim
from ratekeeper.rules.call import Answer, Request
from ratekeeper.rules.reading import LARGEST
from ratekeeper.stores.blocks import CONTACT
from ratekeeper.stores.records import Ask, Grant

if TYPE_CHECKING:
    from ratekeeper.pools.address import Address
    from ratekeeper.rules.provider import Provider

__all__ = ["Contact"]

_FRESH: Final = 86_400 * SECOND
_FAILED: Final = 300 * SECOND
_PATIENCE: Final = 4.0
"""Seconds to wait for the response."""
_HOLD: Final = int((_PATIENCE + 1) * SECOND)
"""The block holds the other processes for this long at most, ns."""
_MOST: Final = LARGEST + 1
"""The gate reads at most this many bytes of a response: one more than it parses."""


class Contact:
    """The first contacts of one gate."""

    def __init__(self, context: Context, settling: Settling) -> None:
        self._context = context
        self._settling = settling
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()

    def made(self, provider: Provider) -> bool:
        """Whether the gate has nothing to ask this provider."""
        until = self._known.get(provider.namespace)
        if until is not None and time.monotonic_ns() < until:
            return True
        return provider.learn_route is None

    def make(self, provider: Provider, base_url: str) -> None:
        """Ask the provider, unless any process has asked it lately. Never raises."""
        if self.made(provider):
            return
        with self._lock:
            if self.made(provider) or not self._claim(provider.namespace):
                return
            try:
                good = self._ask(provider, base_url)
            finally:
                self._context.unblock(provider.namespace, CONTACT)
            length = _FRESH if good else _FAILED
            self._context.store.update(
                f"contact:{provider.namespace}", Claim, lambda _, now: (Claim(now.hi + length), None), length
            )
            self._known[provider.namespace] = time.monotonic_ns() + length

    def _claim(self, namespace: str) -> bool:
        """Claim the right to ask; a block holds the other processes meanwhile."""

        def claim() -> bool:
            until = self._context.store.claim(f"contact:{namespace}", _HOLD)
            if until:
                self._known[namespace] = until
                return False
            self._context.block(namespace, _HOLD / SECOND, CONTACT, "its limits are being read")
            return True

        return bool(self._context.store.transact_again(claim))

    def _ask(self, provider: Provider, base_url: str) -> bool:
        """Ask from the first address that has a connection. True: the gate has learned limits."""
        egress = self._context.egress
        for address in egress.reachable(provider.name, provider.namespace):
            learned = self._ask_from(address, provider, base_url)
            if learned is not None:
                return learned
            egress.failed(provider.namespace, address)
        return False

    def _ask_from(self, address: Address, provider: Provider, base_url: str) -> bool | None:
        """Ask from one address; None: no connection could be made."""
        import http.client
        import urllib.error
        import urllib.request

        from ratekeeper.pools.echo import opener  # imports an HTTP client, so only where it is needed

        route = provider.learn_route
        assert route is not None
        context, settling = self._context, self._settling
        plan = provider.plan(Request(*route), context.plans.identity(address))
        held = context.store.blocks.against(plan.scopes, plan.charges, time.monotonic_ns())
        if held is not None and held.kind != CONTACT:
            return False  # a ban or a pause holds this call like any other
        ask = Ask(plan.provider, plan.charges, (), (context.member, AGED))
        grant = context.store.reserve(ask, context.times.now(plan.provider))
        if not isinstance(grant, Grant):
            return False  # no room even for this call: the program that filled the limit knows it
        request = urllib.request.Request(base_url.rstrip("/") + route[1], headers={"User-Agent": "ratekeeper"})  # noqa: S310 - the caller's own base URL
        try:
            try:
                with opener(address).open(request, timeout=_PATIENCE) as got:
                    answer = Answer(got.status, {k.lower(): v for k, v in got.headers.items()}, got.read(_MOST))
            except urllib.error.HTTPError as error:
                with error:
                    answer = Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read(_MOST))
        except urllib.error.URLError as error:
            # Connection refused, unknown host, or no such local address: the request was never sent. Else it may arrive.
            absent = getattr(error.reason, "errno", None) == errno.EADDRNOTAVAIL
            if absent or isinstance(error.reason, ConnectionRefusedError | socket.gaierror):
                settling.refunded(grant)
                return False if isinstance(error.reason, socket.gaierror) else None
            settling.lingers(grant)
            return False
        except (OSError, ValueError, http.client.HTTPException):
            settling.lingers(grant)
            return False
        except BaseException:
            settling.lingers(grant)
            raise
        told = settling.answered(provider, plan, grant, answer, None)
        return bool(told.learned)
