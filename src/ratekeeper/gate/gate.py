"""The gate: one governed call, written once, for tasks and threads alike (long because it explains every argument)."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from ratekeeper.gate.congestion import CongestionControls
    from ratekeeper.gate.contact import Contact
    from ratekeeper.gate.leases import Leases
    from ratekeeper.gate.own import Got
    from ratekeeper.gate.policies.pipeline import Pipeline
    from ratekeeper.rules.provider import Provider

__all__ = ["Gate"]

_MET: Final = 1.0
"""Seconds for which a provider that was asked for its limits need not be looked at again."""
_LAST: Final = 2.0
"""Seconds for which a gate that is closed waits at most until all that it knows is written."""


T = TypeVar("T")


class _Later(Generic[T]):
    """A part of a gate that is loaded and made when it is first used: few programs need it.

    Args:
        module, name: where its class is.
        arguments: those of the gate's attributes that it is made of.
    """

    def __init__(self, module: str, name: str, *arguments: str) -> None:
        self._module, self._name, self._arguments = module, name, arguments

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name

    def __get__(self, gate: Gate, owner: type) -> T:
        kind = getattr(import_module(self._module), self._name)
        made = kind(*[getattr(gate, name) for name in self._arguments])
        # Of threads that come here at once, all get the same one; later ones find it in the gate itself.
        return gate.__dict__.setdefault(self._attribute, made)  # type: ignore[no-any-return]


class Gate:
    """One gate for calls to any provider. Gates of all processes that use the same store share every budget.

    Args:
        store: ``"host://"`` (all processes of this machine), ``"memory://"`` (this gate only) or a `Store`;
            None: ``$RATEKEEPER_STORE``, else ``host://``.
        config: a configuration file (`Settings`); None: ``$RATEKEEPER_CONFIG``, else ``ratekeeper.toml`` in the state folder
            (`find_settings`). Every other argument, and the environment, go before it.
        home: the state folder; None: ``$RATEKEEPER_HOME``, else the platform's.
        hosts: hosts to treat as a provider, ``{"127.0.0.1:9300": "binance-usdm"}`` or the text form; None:
            ``$RATEKEEPER_HOSTS``.
        rules: further rule files (TOML).
        name: what to call this process in lists.
        priority: class of calls that name none; None: ``$RATEKEEPER_PRIORITY``, else the route's own.
        weight: this process's share in fairness among equals; None: ``$RATEKEEPER_WEIGHT``, else 1.
        max_wait: seconds a call waits that names no timeout; None: 900.
        max_block_wait: seconds such a call waits for the end of a ban, a pause or another block; one that ends later
            refuses it at once. ``inf``: as long as `max_wait`. None: ``$RATEKEEPER_MAX_BLOCK_WAIT``, else 30.
        learn: whether adapters ask a provider for its limits before the first call; None: they do.
        policies: what is done around calls (`Policies`, or their names: ``"all"``, ``"retry,cache"``); None:
            ``$RATEKEEPER_POLICIES``, else nothing but the gate.

    A gate may be used from any number of threads and event loops, and after a fork. Close it, or use it as a context
    manager; one that is dropped lets its permits end with their leases.
    """

    contact: _Later[Contact] = _Later("ratekeeper.gate.contact", "Contact", "context", "settling")
    """What is known of first contacts; for adapters."""
    leases: _Later[Leases] = _Later("ratekeeper.gate.leases", "Leases")
    """What is held as long as something is open; for websockets."""
    congestion: _Later[CongestionControls] = _Later("ratekeeper.gate.congestion", "CongestionControls", "events")
    """How many calls to each provider may be made at a time; for those who gather."""

    _default: ClassVar[Gate | None] = None
    _spare: ClassVar[Gate | None] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()

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
        from ratekeeper.config.rulebook import rulebook  # with the reader of rule files

        self.home, self._book, self.policies = said.home, rulebook(said), said.policies
        self.attempt_timeout = said.policies.attempt_timeout
        self.max_wait, self.max_block_wait, self.weight = said.max_wait, said.max_block_wait, said.weight
        self._name, self._learn, self.ungoverned_on_error = name, said.learn, said.ungoverned_on_error
        patterns = said.settings.priorities
        self._priority, self._assigned = said.priority, priorities.Assigned(patterns) if patterns else None
        self.store, self._secret = opened(said.store, said.home, self.events.say)
        self.worker = self.store.worker()
        self.egress = Egress(said.egress, self.store, self.events.say, self.worker)
        self._begin()

    def _begin(self) -> None:
        """What belongs to one process; made anew after a fork."""
        self._pid = os.getpid()
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
        self.store.heard = self.settling.after
        self.pipeline = _policies(context) if self.policies else None
        for name in ("contact", "leases"):
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
    def shared(cls) -> Gate:
        """The process's own gate, made from the environment on first use; what adapters use if given none."""
        with cls._default_lock:
            if cls._default is None:
                cls._default = cls()
                atexit.register(cls._default._depart)
            return cls._default

    @classmethod
    def spare(cls) -> Gate:
        """For calls that the shared gate cannot govern because something is wrong inside it: a safe share of every limit."""
        with cls._default_lock:
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
        """A permit for one attempt of one call; enter it to wait for it.

        Args:
            provider: name of the provider (``binance-usdm``), or what `match` found.
            method, path: of the call, without host and query.
            params: query and form parameters, as far as its cost or its owner depends on them.
            body: parsed JSON body, likewise.
            headers: of the request; only the one that names the API key is read.
            priority: who goes first; default: the surrounding `priority` block, the
                configuration's for such calls, the gate's, the route's.
            timeout: seconds it may wait, also for the end of a block; None: the gate's `max_wait`. 0: now or never;
                ``inf``: as long as it takes.
            block_wait: seconds; a block that ends later than so from now refuses it at once. None: `timeout` if it is
                given, else the gate's `max_block_wait`.
            egress: name of the address the call leaves from; default: the best one of the provider's pool.
            account: name of the account; default: told by the API key.
            any_address: whether the caller will send from the address `Permit.egress`; if not, from the default one.

        Raises:
            UnknownProvider: no rules for `provider`.
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
        """`permit` for a request as the rules see it."""
        if self._pid != os.getpid():
            self.store.after_fork()
            self.worker.after_fork()
            self._begin()
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
        return Permit(self.room, rules, plan, priority, timeout, block_wait, address, choice)

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
        """A whole call with all that the gate's policies do around it: cached responses, retries, a breaker.

        Args:
            provider, method, path, params, body, headers: as for `permit`.
            send: makes one attempt with the permit it is given, and returns ``(status, headers, body)``. It is called for
                each attempt, so sign inside it.
            **options: others of `permit`: ``priority``, ``timeout``, ``block_wait``, ``egress``, ``account``.

        Raises:
            Rejected: it was not sent.
            RetriesExhausted, OutcomeUnknown: it was, in vain.
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
        """`call` for asyncio; `send` is awaited."""
        request = Request(method, path, params, body, headers)
        return await drive_async(self._run(provider, request, send, options, is_async=True))

    def _run(
        self, provider: str | Provider, request: Request, send: Callable[[Permit], Any], options: Any, *, is_async: bool
    ) -> Steps[Got]:
        from ratekeeper.gate.own import OwnCall  # with what policies need

        rules = self.provider(provider)
        call = OwnCall(
            self.permit_for, self.attempt_timeout, self.max_block_wait, rules, request, send, options, is_async=is_async
        )
        return call.attempt(None) if self.pipeline is None else self.pipeline.run(call)

    def plan(self, provider: str | Provider, request: Request) -> Plan:
        """What a request would spend that leaves from the default address."""
        return self.plans.plan(provider, request)

    def identity(self, address: Address, account: str = "") -> Identity:
        """Who asks, if a call leaves from that address."""
        return self.plans.identity(address, account)

    def provider(self, name: str | Provider) -> Provider:
        """Rules of a provider, with its limits as they were learned."""
        return self.plans.provider(name)

    def match(self, host: str, path: str = "") -> Provider | None:
        """Rules for a host (``name`` or ``name:port``), or None: then the call passes untouched, and is counted."""
        return self.plans.match(host, path)

    @property
    def book(self) -> Rulebook:
        """The rules of all providers."""
        return self.plans.book

    @property
    def untouched_hosts(self) -> dict[str, int]:
        """Calls that passed, by host: there are no rules for it."""
        return self.plans.untouched_hosts

    def on(self, handler: Callable[[Event], object]) -> Callable[[], None]:
        """Call `handler` with every `Event`; returns what takes it off again."""
        return self.events.on(handler)

    def read(self) -> Snapshot:
        """Everything the store knows, for people."""
        return self.store.read(self.times.now)

    def scope(self, name: str) -> str:
        """A scope as users write it (``everything``, ``binance-usdm/class:order``) as the store knows it (with mapped
        hosts). Raises as `ratekeeper.gate.override.understood` does."""
        return understood(name, lambda provider: self.provider(provider).namespace)

    def block(self, scope: str, seconds: float | None, kind: str = "pause", reason: str = "") -> None:
        """Shut a scope for every process, at once. `seconds` None: until `unblock`. Raises ValueError: not above 0."""
        self.context.block(scope, seconds, kind, reason)

    def unblock(self, scope: str, kind: str = "") -> bool:
        """Open a scope again and let the waiting calls of every process look."""
        return self.context.unblock(scope, kind)

    def acquainted(self, provider: Provider) -> bool:
        """Whether nothing is left to ask before the next call (`first_contact`)."""
        known = self._acquainted.get(provider.namespace, 0.0)
        if known > time.monotonic():
            return True
        met = (not self._learn or self.contact.made(provider)) and self.egress.discovered(provider.name)
        if met:  # what is learned lasts for days, and a second more or less does not matter
            self._acquainted[provider.namespace] = time.monotonic() + _MET
        return met

    def first_contact(self, provider: Provider, base_url: str) -> None:
        """Before the first call to a provider that states its limits: read them, once for the whole machine. Where
        addresses are told by an echo, it is asked first."""
        if not self.egress.discovered(provider.name):
            self.egress.discover(provider.name)
        if self._learn:
            self.contact.make(provider, base_url)

    async def first_contact_async(self, provider: Provider, base_url: str) -> None:
        """`first_contact` without blocking the event loop."""
        if not self.acquainted(provider):
            import asyncio

            await asyncio.to_thread(self.first_contact, provider, base_url)

    # -- closing ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Refuse who waits, stop the helper thread, leave the store. Permits that are held can still be settled."""
        if self._pid == os.getpid():
            self.room.close()
            if self.pipeline is not None:
                self.pipeline.close()
        self._depart()

    def _depart(self) -> None:
        """Leave the store. All that is needed when the program ends: its waiting threads end with it, without a word."""
        if self._pid == os.getpid():
            if "leases" in self.__dict__:
                self.leases.close()
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
