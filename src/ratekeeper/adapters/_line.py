"""One websocket under the gate: a permit to dial, a permit for each message, and the slots it holds while open.

A dial is a call like any other request. Afterwards the gate charges each message. No response tells when a message has
arrived, so each stays in flight for a while and then counts as spent. Limits per connection use a name of this process.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from ratekeeper.adapters._client import begin
from ratekeeper.gate.call import HandedDown, take
from ratekeeper.gate.steps import Steps, waiting
from ratekeeper.ledger.limit import parted
from ratekeeper.rules.call import Priority, Request
from ratekeeper.rules.reading import decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ratekeeper.adapters._client import ClientCall
    from ratekeeper.adapters._governor import Family, Governor
    from ratekeeper.adapters._wire import Outbound
    from ratekeeper.gate.permit import Permit
    from ratekeeper.ledger.limit import Charge
    from ratekeeper.rules.call import Plan
    from ratekeeper.rules.provider import Provider

__all__ = ["Line", "Refused", "dialled", "dialling"]

Refused: TypeAlias = "tuple[int, Mapping[str, str], bytes]"
"""Status, headers and body of the response to a handshake."""

_LONGEST_READ: Final = 65_536
"""The gate parses at most this many bytes of a message. A longer message never subscribes."""


class Line:
    """One governed websocket, from the permit to dial until it is closed.

    Args:
        governor: of the gate to ask.
        provider: the rules of its host.
        outbound: the handshake.
        call: the dial, which has its permit.

    Attributes:
        name: the name of its own limits.
        call: the dial; `opened` or `failed` reports its outcome.
    """

    def __init__(self, governor: Governor, provider: Provider, outbound: Outbound, call: ClientCall) -> None:
        self._governor = governor
        self._provider = provider
        self._path = outbound.path
        self._headers = outbound.headers
        self._lock = threading.Lock()
        self._kept: list[tuple[frozenset[str], Permit]] = []
        """The slots of the connection and its subscriptions, by topics."""
        if call.held is not None:
            self._kept.append((frozenset(), call.held))
        self._closed = False
        self._leases = governor.gate.leases
        self.name = self._leases.name()
        self.call = call
        self._leases.add(self)

    def opened(self, *, is_async: bool) -> Steps[None]:
        """Report a successful handshake. A dial with a slot (concurrent connections) holds it until `close`.

        A pong cannot wait. So the gate reserves one message of each window for pongs while the connection is open.
        """
        if not self.call.slots:
            self.call.answered(101, {})
        plan = self._plan("WS-SEND", self._path, None)
        if plan is not None:
            own = tuple(
                charge
                for charge in plan.charges
                if "connection" in charge.limit.scope and charge.limit.capacity > charge.cost
            )
            if own:
                permit = self._permit(plan, own, data=False)
                # This waits only if the previous connection of that name has just used up its messages.
                yield waiting(permit.acquire, permit.acquire_async, is_async=is_async)
                self._keep(frozenset(), permit)

    def failed(self, error: BaseException, answer: Refused | None) -> None:
        """Report a failed dial, with or without a response, or a connection that was dropped before use."""
        if answer is None:
            self.call.failed(error)
        else:
            status, headers, body = answer
            self.call.answered(status, {name.lower(): value for name, value in headers.items()}, body)
        self.close()

    def sending(self, message: str | bytes | None, *, is_async: bool) -> Steps[None]:
        """Wait until a message may be sent. `message` None: a ping or a pong, which also passes a pause."""
        tree = _tree(message)
        plan = self._cost(tree)
        if plan is None or self._closed:
            return
        slots, rest = parted(plan.charges)
        data, held = message is not None, None
        if slots:
            # A separate permit, because a subscription outlasts its message.
            held = self._permit(plan, slots, data=data)
            yield waiting(held.acquire, held.acquire_async, is_async=is_async)
        try:
            permit = self._permit(plan, rest, data=data)
            yield waiting(permit.acquire, permit.acquire_async, is_async=is_async)
        except BaseException:
            if held is not None:
                held.refund()
            raise
        permit.unknown()
        if held is not None:
            self._keep(_topics(tree), held)
        elif tree is not None and "unsub" in _verb(tree):
            self._forget(_topics(tree))

    def renew(self) -> None:
        """Extend the leases of the open connection."""
        self.call.streaming()
        with self._lock:
            permits = [permit for _, permit in self._kept]
        for permit in permits:
            permit.renew()

    @property
    def holds(self) -> bool:
        """Whether the connection has leases to renew."""
        return not self._closed and (not self.call.done or bool(self._kept))

    def close(self) -> None:
        """Free everything that the closed connection held. Safe to call again, from any thread."""
        with self._lock:
            again, self._closed = self._closed, True
            kept, self._kept = self._kept, []
        if not self.call.done:
            self.call.answered(101, {})
        for _, permit in kept:
            permit.refund()
        if not again:
            self._leases.remove(self, self.name)

    # --- what a message costs -------------------------------------------------------------------------------------

    def _cost(self, tree: dict[str, Any] | None) -> Plan | None:
        """Return the charges of one message: those of a subscription or a call, and those of any message for the rest."""
        plans = [self._plan("WS-SEND", self._path, tree)]
        if tree is not None:
            verb = _verb(tree)
            subscribes = "subscri" in verb and "unsub" not in verb
            special = ("WS-SUBSCRIBE", self._path) if subscribes else ("WS", f"/{verb.lstrip('/')}")
            plans.insert(0, self._plan(*special, tree))
        found = [plan for plan in plans if plan is not None]
        if not found:
            return None
        charges: dict[str, Charge] = {}
        for plan in found:
            for charge in plan.charges:
                charges.setdefault(charge.key, charge)
        return dataclasses.replace(found[0], charges=tuple(charges.values()))

    def _plan(self, method: str, path: str, body: Any) -> Plan | None:
        request = Request(method, path, {"connection": self.name}, body, self._headers)
        plan = self._governor.gate.plan(self._provider, request)
        return plan if plan.route and plan.charges else None

    def _permit(self, plan: Plan, charges: tuple[Charge, ...], *, data: bool) -> Permit:
        """Make a permit. `data`: it is for a message of the program; a ping or pong passes a pause and goes first."""
        permit = self._governor.gate.permit(
            self._provider, "WS-SEND", self._path,
            priority=self._governor.priority if data else Priority.CRITICAL,
            timeout=self._governor.timeout, any_address=False,
        )  # fmt: skip
        if not data:
            permit.aside()
        permit.plan = dataclasses.replace(plan, charges=charges, scopes=plan.scopes if data else ())
        return permit

    def _keep(self, topics: frozenset[str], permit: Permit) -> None:
        with self._lock:
            if not self._closed:
                self._kept.append((topics, permit))
                return
        permit.refund()

    def _forget(self, topics: frozenset[str]) -> None:
        """Remove unsubscribed topics. A subscription without topics gives its slots back."""
        left: list[tuple[frozenset[str], Permit]] = []
        with self._lock:
            for known, permit in self._kept:
                remaining = known - topics
                if known and not remaining:
                    permit.refund()
                else:
                    left.append((remaining if known else known, permit))
            self._kept = left


def dialling(
    governor: Governor, outbound: Outbound, family: Family, *, is_async: bool, any_address: bool = False
) -> Steps[Line | None]:
    """Wait for a permit to dial. ``None``: the host has no rules, or an upper layer has asked already.

    Args:
        governor, outbound, family, is_async, any_address: as for `ratekeeper.adapters._client.ClientCall`.

    Raises:
        Rejected: the gate refused the dial.
    """
    if take(outbound.netloc) is not None:
        return None
    provider = governor.match(outbound, family)
    call = yield from begin(governor, outbound, family, is_async=is_async, any_address=any_address, apart=True)
    if call is None or provider is None:
        return None
    return Line(governor, provider, outbound, call)


def dialled(
    governor: Governor,
    outbound: Outbound,
    family: Family,
    dial: Callable[[], Any],
    *,
    refused: Callable[[BaseException], Refused | None],
    leave: Callable[[Any], Any],
    is_async: bool,
    any_address: bool = False,
) -> Steps[tuple[Any, Line | None]]:
    """Wait, then dial; return the result of `dial` and the line (None: the gate does not charge its messages).

    Args:
        dial: makes the connection.
        refused: returns the handshake response that an error of `dial` holds, if any.
        leave: closes a connection that may not be used after all.
        governor, outbound, family, is_async, any_address: as for `ratekeeper.adapters._client.ClientCall`.

    Raises:
        Rejected: the gate refused the dial or the use of the connection.
    """
    line = yield from dialling(governor, outbound, family, is_async=is_async, any_address=any_address)
    if line is None:
        return (yield dial), None
    try:
        with HandedDown(line.call):
            connection = yield dial
    except BaseException as error:
        line.failed(error, refused(error))
        raise
    try:
        yield from line.opened(is_async=is_async)
    except BaseException as error:
        line.failed(error, None)
        yield lambda: leave(connection)
        raise
    return connection, line


def _tree(message: str | bytes | None) -> dict[str, Any] | None:
    if not message or len(message) > _LONGEST_READ:
        return None
    tree = decoded(message)
    return tree if isinstance(tree, dict) else None


def _verb(tree: dict[str, Any]) -> str:
    """Return the operation of a message, in lower case."""
    return next((str(tree[name]).lower() for name in ("op", "method", "event", "type") if name in tree), "")


def _topics(tree: dict[str, Any] | None) -> frozenset[str]:
    named = (tree or {}).get("params") or (tree or {}).get("args") or (tree or {}).get("topic") or ()
    listed = named if isinstance(named, list) else [named]
    return frozenset(
        one if isinstance(one, str) else msgspec.json.encode(one, order="sorted").decode() for one in listed
    )
