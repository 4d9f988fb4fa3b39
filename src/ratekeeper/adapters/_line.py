"""One websocket as the gate sees it: leave to dial, leave for each message, and what it holds while it is open.

A dial is a call like any other request. What goes out afterwards is charged message by message: nobody says when a
message arrived, so each is left in flight for a while and then counts as spent. What a provider counts per connection is
kept under a name of this process.
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
"""Status, headers and body of the answer to a handshake."""

_LONGEST_READ: Final = 65_536
"""Bytes of a message that are parsed at most: a longer one never subscribes."""


class Line:
    """One governed websocket, from the leave to dial until it is closed.

    Args:
        governor: whose gate is asked.
        provider: the rules of its host.
        outbound: the handshake.
        call: the dial, which may go ahead.

    Attributes:
        name: what its own limits are kept under.
        call: the dial; what became of it is told by `opened` or `failed`.
    """

    def __init__(self, governor: Governor, provider: Provider, outbound: Outbound, call: ClientCall) -> None:
        self._governor = governor
        self._provider = provider
        self._path = outbound.path
        self._headers = outbound.headers
        self._lock = threading.Lock()
        self._kept: list[tuple[frozenset[str], Permit]] = []
        """Slots that it and its subscriptions hold, by what was subscribed to."""
        if call.held is not None:
            self._kept.append((frozenset(), call.held))
        self._closed = False
        self._leases = governor.gate.leases
        self.name = self._leases.name()
        self.call = call
        self._leases.add(self)

    def opened(self, *, is_async: bool) -> Steps[None]:
        """The handshake succeeded. A dial that holds a place (connections at once) holds it until `close`.

        An answer to a server's ping cannot wait. So one message of each window is set aside for them while it is open.
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
                # It waits only if the connection that had its name before has just sent all that it might.
                yield waiting(permit.acquire, permit.acquire_async, is_async=is_async)
                self._keep(frozenset(), permit)

    def failed(self, error: BaseException, answer: Refused | None) -> None:
        """The dial failed, with an answer or without one; or the connection was given up before it was in use."""
        if answer is None:
            self.call.failed(error)
        else:
            status, headers, body = answer
            self.call.answered(status, {name.lower(): value for name, value in headers.items()}, body)
        self.close()

    def sending(self, message: str | bytes | None, *, is_async: bool) -> Steps[None]:
        """Waits until a message may be sent. `message` None: a ping or a pong, which also passes a pause."""
        tree = _tree(message)
        plan = self._cost(tree)
        if plan is None or self._closed:
            return
        slots, rest = parted(plan.charges)
        data, held = message is not None, None
        if slots:
            # Its own permit, for a subscription outlasts its message.
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
        """It is still open: hold what it holds for longer."""
        self.call.streaming()
        with self._lock:
            permits = [permit for _, permit in self._kept]
        for permit in permits:
            permit.renew()

    @property
    def holds(self) -> bool:
        """Whether anything must be renewed while it is open."""
        return not self._closed and (not self.call.done or bool(self._kept))

    def close(self) -> None:
        """It is closed: what it held is free. May be called again, from any thread."""
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
        """The charges of one message: those of a subscription or of a call first, those of any message for the rest."""
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
        """`data`: whether it is for a message of the program; a sign of life waits for no pause, and goes first."""
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
        """Unsubscribed: a subscription whose topics are all gone gives its slots back."""
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
    """Waits for leave to dial. ``None``: the host has no rules, or a layer above has asked already.

    Args:
        governor, outbound, family, is_async, any_address: as for `ratekeeper.adapters._client.ClientCall`.

    Raises:
        Rejected: it may not.
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
    """Dials when it may; returns what `dial` does, and the line (None: its messages are not charged).

    Args:
        dial: makes the connection.
        refused: the answer to the handshake that an error of `dial` carries, if there is one.
        leave: closes a connection that may not be used after all.
        governor, outbound, family, is_async, any_address: as for `ratekeeper.adapters._client.ClientCall`.

    Raises:
        Rejected: it may not be dialled, or not be used.
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
    """What a message asks for, in lower case."""
    return next((str(tree[name]).lower() for name in ("op", "method", "event", "type") if name in tree), "")


def _topics(tree: dict[str, Any] | None) -> frozenset[str]:
    named = (tree or {}).get("params") or (tree or {}).get("args") or (tree or {}).get("topic") or ()
    listed = named if isinstance(named, list) else [named]
    return frozenset(
        one if isinstance(one, str) else msgspec.json.encode(one, order="sorted").decode() for one in listed
    )
