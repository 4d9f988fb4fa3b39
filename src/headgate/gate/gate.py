"""The gate: one governed call, written once, for tasks and threads alike."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from headgate.errors import StoreError
from headgate.gate import priorities
from headgate.gate.contact import Contact
from headgate.gate.events import Event, Events
from headgate.gate.permit import Permit
from headgate.gate.room import WaitingRoom
from headgate.gate.settings import home_folder, load_settings, open_store_name, parse_hosts, program_name, secret_of
from headgate.gate.settling import Settling
from headgate.gate.times import Times
from headgate.ledger.decide import Refusal
from headgate.ledger.limit import SECOND
from headgate.rules.book import Rulebook
from headgate.rules.call import Call, Identity, Plan, Priority
from headgate.rules.provider import Provider
from headgate.stores.base import Store
from headgate.stores.memory import MemoryStore
from headgate.stores.records import Snapshot

__all__ = ["Gate"]


class Gate:
    """One gate for calls to any provider. Gates of all processes that use the same store share every budget.

    Args:
        store: ``"host://"`` (all processes of this machine), ``"memory://"`` (this gate only) or a `Store`;
            None: ``$HEADGATE_STORE``, else ``host://``.
        config: a configuration file (`Settings`); None: ``$HEADGATE_CONFIG``, else none. Every other argument, and the
            environment, go before it.
        home: the state folder; None: ``$HEADGATE_HOME``, else the platform's.
        hosts: hosts to treat as a provider, ``{"127.0.0.1:9300": "binance-usdm"}`` or the text form; None:
            ``$HEADGATE_HOSTS``.
        rules: further rule files (TOML).
        name: what to call this process in lists.
        priority: class of calls that name none; None: ``$HEADGATE_PRIORITY``, else the route's own.
        weight: this process's share in fairness among equals; None: ``$HEADGATE_WEIGHT``, else 1.
        max_wait: seconds a call waits that names no timeout; None: 900.

    A gate may be used from any number of threads and event loops, and after a fork. Close it, or use it as a context
    manager; one that is dropped lets its permits end with their leases.
    """

    _default: ClassVar[Gate | None] = None
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
        learn: bool | None = None,
    ) -> None:
        said = load_settings(config)
        self.events = Events()
        self.home = home_folder(home or os.environ.get("HEADGATE_HOME") or said.home)
        self.book = Rulebook.load(
            hosts={**said.hosts, **parse_hosts(hosts)}, extra=[*said.rules, *map(Path, rules)], headroom=said.headroom
        )
        self.max_wait = said.max_wait if max_wait is None else max_wait
        self.untouched_hosts: dict[str, int] = {}
        """Calls to hosts without rules, by host: they pass untouched."""
        self._name = name
        self.weight = max(1, weight or int(os.environ.get("HEADGATE_WEIGHT") or said.weight))
        self._learn = said.learn if learn is None else learn
        priority = priority if priority is not None else os.environ.get("HEADGATE_PRIORITY") or said.priority
        self._priority = None if priority == "" else priorities.of(priority)
        self._egress = os.environ.get("HEADGATE_EGRESS") or said.egress or "default"
        self.store, secret = self._open_store(store or os.environ.get("HEADGATE_STORE") or said.store)
        self._secret = secret
        self._identities: dict[tuple[str, str], Identity] = {}
        self._begin()

    def _open_store(self, store: str | Store | None) -> tuple[Store, bytes]:
        if isinstance(store, Store):
            return store, secrets.token_bytes(32)
        if open_store_name(store).startswith("memory"):
            return MemoryStore(), secrets.token_bytes(32)
        from headgate.stores.host import HostStore
        from headgate.stores.safe import SafeStore

        try:
            secret = secret_of(self.home)
        except StoreError:
            secret = b""  # the store will say what is wrong; without the folder nothing is shared anyhow
        return SafeStore(HostStore(self.home), self._say_store), secret

    def _begin(self) -> None:
        """What belongs to one process; made anew after a fork."""
        self._pid = os.getpid()
        self._joined = False
        self._join_lock = threading.Lock()
        self.bell: socket.socket | None = None
        self.member = secrets.randbits(62) | 1
        self.who = tuple((self.member, klass) for klass in range(len(Priority)))
        self.times = Times(self.store)
        self.room = WaitingRoom(self)
        self.settling = Settling(self)
        self.contact = Contact(self)
        self._providers: dict[str, Provider] = {}
        self._plans: dict[tuple[str | Provider, str, str, str, str], tuple[Provider, Plan]] = {}
        self._generation = -1

    def _join(self) -> None:
        with self._join_lock:
            if not self._joined:
                self.bell = self.store.join(self.member, self._name or program_name())
                self._joined = True
                rebuilt = getattr(getattr(self.store, "inner", None), "rebuilt", str)()
                if rebuilt and rebuilt != "reboot":
                    self.events.say(
                        "store lost",
                        f"the ledgers under {self.home} were broken ({rebuilt}) and begin anew; bans were kept, and every "
                        "limit starts as used up or by half until its window is over",
                    )

    def _say_store(self, kind: str, message: str) -> None:
        self.events.say(kind, message)

    # -- for users -------------------------------------------------------------------------------------------------

    @classmethod
    def shared(cls) -> Gate:
        """The process's own gate, made from the environment on first use; what adapters use if given none."""
        with cls._default_lock:
            if cls._default is None:
                cls._default = cls()
                atexit.register(cls._default._depart)
            return cls._default

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
        egress: str = "",
        account: str = "",
    ) -> Permit:
        """A permit for one attempt of one call; enter it to wait for it.

        Args:
            provider: name of the provider (``binance-usdm``), or what `match` found.
            method, path: of the call, without host and query.
            params: query and form parameters, as far as its cost or its owner depends on them.
            body: parsed JSON body, likewise.
            headers: of the request; only the one that names the API key is read.
            priority: who goes first; default: the surrounding `priority` block, the gate's, the route's.
            timeout: seconds it may wait; None: the gate's `max_wait`. 0: now or never.
            egress: name of the address the call leaves from, if the machine has several.
            account: name of the account; default: told by the API key.

        Raises:
            UnknownProvider: no rules for `provider`.
        """
        if self._pid != os.getpid():
            self.store.after_fork()
            self._begin()
        if not self._joined:
            self._join()
        if params is None and body is None and headers is None and self._generation == self.store.generation:
            usual = (provider, method, path, egress, account)
            known = self._plans.get(usual)
            if known is None:
                if len(self._plans) > 4096:
                    self._plans.clear()
                known = self._plans[usual] = self._plan(provider, Call(method, path), egress, account)
            rules, plan = known
        else:
            rules, plan = self._plan(provider, Call(method, path, params, body, headers), egress, account)
        if priority is not None:
            klass = priorities.of(priority)
        else:
            chosen = priorities.current()
            if chosen is None:
                chosen = self._priority
            klass = plan.priority if chosen is None else chosen
        return Permit(self, rules, plan, klass, self.max_wait if timeout is None else timeout)

    def _plan(self, provider: str | Provider, call: Call, egress: str, account: str) -> tuple[Provider, Plan]:
        rules = self.provider(provider)
        identity = self._identities.get((egress, account)) or self._identity(egress, account)
        return rules, rules.plan(call, identity)

    def _identity(self, egress: str, account: str) -> Identity:
        made = Identity(egress or self._egress, account, self._secret)
        if len(self._identities) < 4096:
            self._identities[egress, account] = made
        return made

    def provider(self, name: str | Provider) -> Provider:
        """Rules of a provider, with its limits as they were learned."""
        if self._generation != self.store.generation:
            self._generation = self.store.generation
            self._providers.clear()
            self._plans.clear()
        key = name if isinstance(name, str) else name.namespace
        found = self._providers.get(key)
        if found is None:
            found = self.book.provider(name) if isinstance(name, str) else name
            learned = self.store.learned.get(found.namespace)
            if learned:
                found = found.with_learned(learned)
            self._providers[key] = found
        return found

    def match(self, host: str, path: str = "") -> Provider | None:
        """Rules for a host (``name`` or ``name:port``), or None: then the call passes untouched, and is counted."""
        found = self.book.for_host(host.lower(), path)
        if found is None:
            if len(self.untouched_hosts) < 1000:
                self.untouched_hosts[host] = self.untouched_hosts.get(host, 0) + 1
            return None
        return self.provider(found)

    def on(self, handler: Callable[[Event], object]) -> Callable[[], None]:
        """Call `handler` with every `Event`; returns what takes it off again."""
        return self.events.on(handler)

    def read(self) -> Snapshot:
        """Everything the store knows, for people."""
        return self.store.read(self.times.now)

    def scope(self, name: str) -> str:
        """A scope as users write it (``binance-usdm/class:order``) as the store knows it (with mapped hosts)."""
        provider, slash, rest = name.partition("/")
        return self.provider(provider.partition("@")[0]).namespace + slash + rest

    def block(self, scope: str, seconds: float | None, kind: str = "pause", reason: str = "") -> None:
        """Shut a scope for every process, at once. `seconds` None: until `unblock`."""
        length = None if seconds is None else int(seconds * SECOND)
        self.store.block(scope, length, kind, reason, time.monotonic_ns(), time.time_ns())

    def unblock(self, scope: str, kind: str = "") -> bool:
        """Open a scope again and let the waiting calls of every process look."""
        gone = self.store.unblock(scope, kind)
        self.store.wake([m for m in self.read().members if m != self.member])
        self.room.look()
        return gone

    def first_contact(self, provider: Provider, base_url: str) -> None:
        """Before the first call to a provider that states its limits: read them, once for the whole machine."""
        if self._learn:
            self.contact.make(provider, base_url)

    async def first_contact_async(self, provider: Provider, base_url: str) -> None:
        """`first_contact` without blocking the event loop."""
        if self._learn and not self.contact.made(provider):
            import asyncio

            await asyncio.to_thread(self.contact.make, provider, base_url)

    # -- told on behalf of the waiting room ------------------------------------------------------------------------

    def tell_wait(self, plan: Plan, no: Refusal, now: int) -> None:
        """A call waits for long: say why (law 7), about one limit once a minute."""
        why = f"{no.kind} {no.key}{': ' + no.reason if no.reason else ''}"
        self.events.say_seldom(
            "waiting", no.key, 60.0, f"{plan.route or 'a call'} waits {(no.opens - now) / SECOND:.0f} s for {why}",
            plan.provider, key=no.key, seconds=(no.opens - now) / SECOND,
        )  # fmt: skip

    # -- closing ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Refuse who waits, stop the helper thread, leave the store. Permits that are held can still be settled."""
        if self._pid == os.getpid():
            self.room.close()
        self._depart()

    def _depart(self) -> None:
        """Leave the store. All that is needed when the program ends: its waiting threads end with it, without a word."""
        if self._pid == os.getpid():
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
