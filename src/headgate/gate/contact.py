"""First contact: before the first call to a provider that states its limits and its time, ask it once.

One process of the machine asks; the others wait for it through a short block on the provider. What is learned lasts a
day. If asking fails, the rule file's numbers hold.
"""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
import weakref
from typing import TYPE_CHECKING, Final

from headgate.ledger.limit import SECOND
from headgate.rules.call import Answer, Call
from headgate.stores.records import Grant

if TYPE_CHECKING:
    from headgate.gate.gate import Gate
    from headgate.rules.provider import Provider

__all__ = ["CONTACT", "Contact"]

CONTACT: Final = "contact"
"""The kind of block that holds other calls while a provider is asked; it ends as soon as the answer is there."""

_FRESH: Final = 86_400 * SECOND
_FAILED: Final = 300 * SECOND
_PATIENCE: Final = 4.0
"""Seconds to wait for the answer."""
_MOST: Final = 32 << 20
"""Bytes of an answer that are read at most."""


class Contact:
    """What one gate knows of first contacts."""

    def __init__(self, gate: Gate) -> None:
        self._gate = weakref.proxy(gate)
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()

    def made(self, provider: Provider) -> bool:
        """Whether there is nothing to ask."""
        until = self._known.get(provider.namespace)
        if until is not None and time.monotonic_ns() < until:
            return True
        return provider.learn_route() is None

    def make(self, provider: Provider, base_url: str) -> None:
        """Ask, unless it was asked lately by any process. Never raises."""
        if self.made(provider):
            return
        with self._lock:
            if self.made(provider) or not self._claim(provider.namespace):
                return
            try:
                good = self._ask(provider, base_url)
            finally:
                self._gate.unblock(provider.namespace, CONTACT)
            until = time.monotonic_ns() + (_FRESH if good else _FAILED)
            self._gate.store.remember(f"contact:{provider.namespace}", b"%d" % until)
            self._known[provider.namespace] = until

    def _claim(self, namespace: str) -> bool:
        """Become the one who asks; the others are held meanwhile."""
        store, mono = self._gate.store, time.monotonic_ns()
        with store.batch():
            note = store.remember(f"contact:{namespace}")
            if note is not None and mono < int(note):
                self._known[namespace] = int(note)
                return False
            patience = int((_PATIENCE + 1) * SECOND)
            store.remember(f"contact:{namespace}", b"%d" % (mono + patience))
            self._gate.block(namespace, _PATIENCE + 1, CONTACT, "its limits are being read")
        return True

    def _ask(self, provider: Provider, base_url: str) -> bool:
        route = provider.learn_route()
        assert route is not None
        gate = self._gate
        plan = provider.plan(Call(*route))
        grant = gate.store.reserve(plan.provider, plan.charges, (), (gate.member, 0), gate.times.now(plan.provider))
        if not isinstance(grant, Grant):
            return False  # no room even for that: whatever filled it knows the limits
        request = urllib.request.Request(base_url.rstrip("/") + route[1], headers={"User-Agent": "headgate"})  # noqa: S310 - the caller's own base URL
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as got:  # noqa: S310
                answer = Answer(got.status, {k.lower(): v for k, v in got.headers.items()}, got.read(_MOST))
        except urllib.error.HTTPError as error:
            with error:
                answer = Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read(_MOST))
        except urllib.error.URLError as error:
            # Refused or not found by name: it was never sent. Anything else may still arrive.
            if isinstance(error.reason, ConnectionRefusedError | socket.gaierror):
                gate.settling.refunded(grant)
            else:
                gate.settling.lingers(grant)
            return False
        except (OSError, ValueError):
            gate.settling.lingers(grant)
            return False
        told = gate.settling.answered(provider, plan, grant, answer, None)
        return bool(told.learned)
