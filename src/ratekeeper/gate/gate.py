"""The gate: one governed call, written once, for tasks and threads alike (long because it explains every argument)."""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from ratekeeper.config.resolution import configure, program_name
from ratekeeper.gate import priorities
from ratekeeper.gate.context import Context
from ratekeeper.gate.events import Event, Events
from ratekeeper.gate.opening import opened, spare_store
from ratekeeper.gate.override import OVERRIDING, overriding, understood
from ratekeeper.gate.permit import Permit
from ratekeeper.gate.plans import Plans
from ratekeeper.gate.room import WaitingRoom
from ratekeeper.gate.settling import Settling
from ratekeeper.gate.steps import Steps, drive, drive_async
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.address import Address
from ratekeeper.pools.pool import Choice, Egress
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Identity, Plan, Priority, Request
from ratekeeper.stores.base import Store
from ratekeeper.stores.records import Snapshot
from ratekeeper.stores.threads import green

if TYPE_CHECKING:
    from ratekeeper.gate.congestion import CongestionControls
    from ratekeeper.gate.contact import Contact
    from ratekeeper.gate.leases import Leases
    from ratekeeper.gate.nonces import Nonces
    from ratekeeper.gate.own import Got
    from ratekeeper.gate.policies.pipeline import Pipeline
    from ratekeeper.rules.provider import Provider

__all__ = ["Gate"]

_MET: Final = 1.0
"""The gate checks the first contact of a provider again after this many seconds."""
_LAST: Final = 2.0
"""A closing gate waits at most this many seconds for its pending writes."""


T = TypeVar("T")


class _Later(Generic[T]):
    """A part of a gate that is imported and created on first use, because few programs need it.

    Args:
        module, name: of its class.
        arguments: names of the gate's attributes that the constructor gets.
    """

    def __init__(self, module: str, name: str, *arguments: str) -> None:
        self._module, self._name, self._arguments = module, name, arguments

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name

    def __get__(self, gate: Gate, owner: type) -> T:
        kind = getattr(import_module(self._module), self._name)
        made = kind(*[getattr(gate, name) for name in self._arguments])
        # Concurrent threads all get the same object; later ones find it in the gate itself.
        return gate.__dict__.setdefault(self._attribute, made)  # type: ignore[no-any-return]


class Gate:
    """A gate for calls to any provider. All gates on the same store share every limit.

    Args:
        store: ``"host://"`` (all processes of this machine), ``"memory://"`` (this gate only) or a `Store`;
            None: ``$RATEKEEPER_STORE``, else ``host://``.
        config: a configuration file (`Settings`); None: ``$RATEKEEPER_CONFIG``, else ``ratekeeper.toml`` in the state folder
            (`find_settings`). Every other argument, and the environment, override it.
        home: the state folder; None: ``$RATEKEEPER_HOME``, else the platform's.
        hosts: hosts to treat as a provider, ``{"127.0.0.1:9300": "binance-usdm"}`` or the text form; None:
            ``$RATEKEEPER_HOSTS``.
        rules: further rule files (TOML).
        name: the name of this process in lists.
        priority: priority of calls that name none; None: ``$RATEKEEPER_PRIORITY``, else the route's own.
        weight: this process's fair share among equals; None: ``$RATEKEEPER_WEIGHT``, else 1.
        max_wait: seconds that a call without a timeout may wait; None: 900.
        max_block_wait: seconds that such a call waits for the end of a ban, a pause or another block. A block that ends
            later refuses it at once. ``inf``: as long as `max_wait`. None: ``$RATEKEEPER_MAX_BLOCK_WAIT``, else 30.
        learn: whether adapters ask a provider for its limits before the first call; None: they do.
        policies: the policies around calls (`Policies`, or their names: ``"all"``, ``"retry,cache"``); None:
            ``$RATEKEEPER_POLICIES``, else none.

    Any number of threads and event loops may use a gate, also after a fork. Close it, or use it as a context manager. The
    permits of a gate that is dropped end with their leases.
    """

    contact: _Later[Contact] = _Later("ratekeeper.gate.contact", "Contact", "context", "settling")
    """First contacts with providers; for adapters."""
    leases: _Later[Leases] = _Later("ratekeeper.gate.leases", "Leases")
    """Leases of open resources; for websockets."""
    nonces: _Later[Nonces] = _Later("ratekeeper.gate.nonces", "Nonces", "context", "_secret")
    """The order of signed calls; for adapters."""
    congestion: _Later[CongestionControls] = _Later(
        "ratekeeper.gate.congestion", "CongestionControls", "events", "gathers"
    )
    """Congestion control of each provider; for `gather_bounded` and its like."""

    _default: ClassVar[Gate | None] = None
    _spare: ClassVar[Gate | None] = None
    _default_locks: ClassVar[dict[str, threading.Lock]] = {}

    def __init__(
        self,
        store: str | Store | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        home: str | os.PathLike[str] | None = None,
        hosts: str | Mapping[str, str] | None = None,
        rules: Iterable[str | os.PathLike[str]] = (),
        name: str | None = None,
        priority: Priority | int | str | None = None,
        weight: int | None = None,
        max_wait: float | None = None,
        max_block_wait: float | None = None,
        learn: bool | None = None,
        policies: Policies | str | None = None,
    ) -> None:
        said = configure(
            config, store=store, home=home, hosts=hosts, rules=rules, name=name, priority=priority, weight=weight,
            max_wait=max_wait, max_block_wait=max_block_wait, learn=learn, policies=policies,
        )  # fmt: skip
        self.events = Events()
        from ratekeeper.config.rulebook import rulebook  # imports the parser of rule files

        self.home, self._book, self.policies = said.home, rulebook(said), said.policies
        self.attempt_timeout = said.policies.attempt_timeout
        self.max_wait, self.max_block_wait, self.weight = said.max_wait, said.max_block_wait, said.weight
        self._name, self._learn, self.ungoverned_on_error = name, said.learn, said.ungoverned_on_error
        self.gathers, self.pollers = said.settings.gathers, said.settings.pollers
        patterns = said.settings.priorities
        self._priority, self._assigned = said.priority, priorities.Assigned(patterns) if patterns else None
        self.store, self._secret = opened(said.store, said.home, self.events.say)
        self.worker = self.store.worker()
        self.egress = Egress(said.egress, self.store, self.events.say, self.worker)
        self._begin()

    def _begin(self) -> None:
        """Create the parts that belong to one process; called again after a fork."""
        self._pid, self._threads = os.getpid(), _thread.start_new_thread
        self._joined = False
        self._join_lock = threading.Lock()
        self._acquainted: dict[str, float] = {}
        self.plans = Plans(self._book, self.store, self.egress, self._secret)
        context = self.context = Context(
            self.store, self.worker, self.events, self.egress, self.plans, self.policies, self.home,
            max_wait=self.max_wait, max_block_wait=self.max_block_wait, weight=self.weight,
        )  # fmt: skip
        self.member, self.times = context.member, context.times
        self.settling = Settling(context)
        self.room = _room(self.store)(context, self.settling)
        self.store.heard, self.store.died = self.settling.after, self.events.reporter()
        self.pipeline = _policies(context) if self.policies else None
        for name in ("contact", "leases", "nonces"):
            self.__dict__.pop(name, None)

    def _join(self) -> None:
        with self._join_lock:
            if not self._joined:
                self.context.wake_socket = self.store.join(self.member, self._name or program_name())
                self._joined = True
                rebuilt = getattr(getattr(self.store, "inner", None), "rebuilt", str)()
                if rebuilt and rebuilt != "reboot":
                    self.events.say(
                        "store lost",
                        f"the ledgers under {self.home} were broken ({rebuilt}) and begin anew; bans were kept, and every "
                        "limit starts as used up or by half until its window is over",
                    )

    # -- for users -------------------------------------------------------------------------------------------------

    @classmethod
    def _one_by_one(cls) -> threading.Lock:
        """Return the lock under which a process-wide gate is made. Greenlets need one of their own library."""
        return cls._default_locks.setdefault(green(), threading.Lock())

    @classmethod
    def shared(cls) -> Gate:
        """Return the gate of this process, created from the environment on first use. Adapters use it by default."""
        with cls._one_by_one():
            if cls._default is None:
                cls._default = cls()
                atexit.register(cls._default._depart)
            return cls._default

    @classmethod
    def spare(cls) -> Gate:
        """Return the spare gate, which has a safe share of every limit. It governs calls when the shared gate fails."""
        with cls._one_by_one():
            if cls._spare is None:
                cls._spare = cls._make_spare(cls._default)
            return cls._spare

    @classmethod
    def _make_spare(cls, main: Gate | None) -> Gate:
        part = spare_store(main.store, main.home) if main is not None else spare_store(None, None)
        made = cls(part, learn=False, policies=Policies())
        if main is not None:
            made._secret = main._secret
            made._begin()
        made.events.say(
            "store lost",
            "something is wrong inside Ratekeeper. Going on with a safe share: each limit divided by "
            f"{part.processes}, the number of processes last seen.",
        )
        return made

    def permit(
        self,
        provider: str | Provider,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        priority: Priority | int | str | None = None,
        timeout: float | None = None,
        block_wait: float | None = None,
        egress: str = "",
        account: str = "",
        any_address: bool = True,
    ) -> Permit:
        """Return a permit for one attempt of one call. Enter it to wait for it.

        Args:
            provider: name of the provider (``binance-usdm``), or the result of `match`.
            method, path: of the call, without host and query.
            params: query and form parameters, as far as the cost or the owner depends on them.
            body: parsed JSON body, likewise.
            headers: of the request; the gate reads only the one that names the API key.
            priority: the priority; default: that of the surrounding `priority` block, of the configuration for the route,
                of the gate, of the route.
            timeout: seconds that the permit may wait, also for the end of a block; None: the gate's `max_wait`. 0: do not
                wait; ``inf``: wait without end.
            block_wait: seconds; a block that ends later than this from now refuses the call at once. None: `timeout` if
                given, else the gate's `max_block_wait`.
            egress: name of the address to send from; default: the best one of the provider's pool.
            account: name of the account; default: the API key tells it.
            any_address: whether the caller will send from the address `Permit.egress`; if not, from the default one.

        Raises:
            UnknownProvider: there are no rules for `provider`.
        """
        return self.permit_for(
            provider, Request(method, path, params, body, headers),
            priority=priority, timeout=timeout, block_wait=block_wait, egress=egress, account=account,
            any_address=any_address,
        )  # fmt: skip

    def permit_for(
        self,
        provider: str | Provider,
        request: Request,
        *,
        priority: Priority | int | str | None = None,
        timeout: float | None = None,
        block_wait: float | None = None,
        egress: str = "",
        account: str = "",
        any_address: bool = True,
    ) -> Permit:
        """Return a permit as `permit` does, for a request as the rules see it."""
        if self._pid != os.getpid():
            self.store.after_fork()
            self.worker.after_fork()
            self._begin()
        if _thread.start_new_thread is not self._threads:
            self.room.same_threads()
        if not self._joined:
            self._join()
        choice: Choice | None = None
        found = None
        if any_address and not egress and self.egress.pools:
            found = self.plans.choice(provider, request, account)
        if found is not None:
            rules, choice = found
            address, plan = choice.address, choice.plan(choice.address)
        elif request.params is None and request.body is None and request.headers is None:
            rules, plan, address = self.plans.usual(provider, request, egress, account)
        else:
            rules, plan, address = self.plans.leaving(provider, request, egress, account)
        if priority is not None:
            priority = Priority.of(priority)
        else:
            chosen = priorities.CURRENT.get()
            if chosen is None and self._assigned is not None:
                chosen = self._assigned.of(plan)
            if chosen is None:
                chosen = self._priority
            priority = plan.priority if chosen is None else chosen
        if block_wait is None:
            block_wait = self.max_block_wait if timeout is None else timeout
        timeout = self.max_wait if timeout is None else timeout
        if OVERRIDING.get():
            plan = overriding(plan)
        return Permit(self.room, rules, plan, priority, timeout, block_wait, address, choice, request)

    def call(
        self,
        provider: str | Provider,
        method: str,
        path: str,
        send: Callable[[Permit], Any],
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Got:
        """Make a whole call with the gate's policies: cached responses, retries, a breaker.

        Args:
            provider, method, path, params, body, headers: as for `permit`.
            send: makes one attempt with the given permit, and returns ``(status, headers, body)``. The gate calls it for
                each attempt, so sign inside it.
            **options: other arguments of `permit`: ``priority``, ``timeout``, ``block_wait``, ``egress``, ``account``.

        Raises:
            Rejected: the call was not sent.
            RetriesExhausted, OutcomeUnknown: the call was sent and failed.
        """
        request = Request(method, path, params, body, headers)
        return drive(self._run(provider, request, send, options, is_async=False))

    async def call_async(
        self,
        provider: str | Provider,
        method: str,
        path: str,
        send: Callable[[Permit], Awaitable[Any]],
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Got:
        """Do the same as `call` on asyncio; the gate awaits `send`."""
        request = Request(method, path, params, body, headers)
        return await drive_async(self._run(provider, request, send, options, is_async=True))

    def _run(
        self, provider: str | Provider, request: Request, send: Callable[[Permit], Any], options: Any, *, is_async: bool
    ) -> Steps[Got]:
        from ratekeeper.gate.own import OwnCall  # imports what policies need

        rules = self.provider(provider)
        call = OwnCall(
            self.permit_for, self.attempt_timeout, self.max_block_wait, rules, request, send, options, is_async=is_async
        )
        return call.attempt(None) if self.pipeline is None else self.pipeline.run(call)

    def plan(self, provider: str | Provider, request: Request) -> Plan:
        """Return the plan (what a request would spend) from the default address."""
        return self.plans.plan(provider, request)

    def identity(self, address: Address, account: str = "") -> Identity:
        """Return the identity that a provider sees for calls from that address."""
        return self.plans.identity(address, account)

    def provider(self, name: str | Provider) -> Provider:
        """Return the rules of a provider, with learned limits."""
        return self.plans.provider(name)

    def match(self, host: str, path: str = "") -> Provider | None:
        """Return the rules for a host (``name`` or ``name:port``). None: the call passes ungoverned; the gate counts it."""
        return self.plans.match(host, path)

    @property
    def book(self) -> Rulebook:
        """The rules of all providers."""
        return self.plans.book

    @property
    def untouched_hosts(self) -> dict[str, int]:
        """The number of ungoverned calls, by host without rules."""
        return self.plans.untouched_hosts

    def on(self, handler: Callable[[Event], object]) -> Callable[[], None]:
        """Call `handler` with every `Event`; return a function that removes it."""
        return self.events.on(handler)

    def read(self) -> Snapshot:
        """Return everything that the store knows, for people."""
        return self.store.read(self.times.now)

    def scope(self, name: str) -> str:
        """Convert a scope that users write (``everything``, ``binance-usdm/class:order``) into the store's form (with mapped
        hosts). Raises as `ratekeeper.gate.override.understood` does."""
        return understood(name, lambda provider: self.provider(provider).namespace)

    def block(self, scope: str, seconds: float | None, kind: str = "pause", reason: str = "") -> None:
        """Block a scope for every process, at once. `seconds` None: until `unblock`. Raises ValueError: not above 0."""
        self.context.block(scope, seconds, kind, reason)

    def unblock(self, scope: str, kind: str = "") -> bool:
        """Open a scope again and wake the waiting calls of every process."""
        return self.context.unblock(scope, kind)

    def acquainted(self, provider: Provider) -> bool:
        """Whether the next call needs no `first_contact`."""
        known = self._acquainted.get(provider.namespace, 0.0)
        if known > time.monotonic():
            return True
        met = (not self._learn or self.contact.made(provider)) and self.egress.discovered(provider.name)
        if met:  # learned limits last a day, so a second more or less does not matter
            self._acquainted[provider.namespace] = time.monotonic() + _MET
        return met

    def first_contact(self, provider: Provider, base_url: str) -> None:
        """Read the limits of a provider that states them, once per machine, before the first call. If an echo service tells
        the addresses, ask it first."""
        if not self.egress.discovered(provider.name):
            self.egress.discover(provider.name)
        if self._learn:
            self.contact.make(provider, base_url)

    async def first_contact_async(self, provider: Provider, base_url: str) -> None:
        """Do the same as `first_contact` without blocking the event loop."""
        if not self.acquainted(provider):
            import asyncio

            await asyncio.to_thread(self.first_contact, provider, base_url)

    # -- closing ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Refuse waiting calls, stop the helper thread, leave the store. Held permits can still be settled."""
        if self._pid == os.getpid():
            self.room.close()
            if self.pipeline is not None:
                self.pipeline.close()
        self._depart()

    def _depart(self) -> None:
        """Leave the store. This suffices at the end of the program, because its waiting threads end with it."""
        if self._pid == os.getpid():
            for name in ("leases", "nonces"):
                if name in self.__dict__:
                    self.__dict__[name].close()
            self.worker.close(_LAST)
            if self._joined:
                self.store.leave(self.member)
            self._joined = False
            self.store.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _room(store: Store) -> type[WaitingRoom]:
    if not store.together:
        return WaitingRoom
    from ratekeeper.gate.remote import RemoteRoom

    return RemoteRoom


def _policies(context: Context) -> Pipeline:
    from ratekeeper.gate.policies.pipeline import Pipeline

    return Pipeline(context)
