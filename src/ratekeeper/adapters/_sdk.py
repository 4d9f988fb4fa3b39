"""Hooks for exchange SDKs: the gate waits before the private method that signs a request.

An SDK signs a timestamp and then calls its HTTP client. So the call waits in front of the signing method. The HTTP client
below is governed as well: it takes the attempt and reports the response. A request that the SDK repeats by itself finds no
attempt to take, so it waits and is charged anew, before it is signed again if the SDK allows that.

A call may leave from several addresses if the HTTP client below supports it and the program has set no proxy. If one
address gets no connection, nothing was sent: the SDK makes the call again, with a new signature, from the next address.

An `Sdk` describes each SDK. The hooks are installed once per process. A call asks the governor that its object carries, or
the one of `ratekeeper run`, or none.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from ratekeeper.adapters._client import OuterCall, run
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._wire import Outbound, from_url, lowered, unconnected
from ratekeeper.errors import Blocked, RatekeeperError, Rejected
from ratekeeper.gate.call import CURRENT, Call, Reply, peek
from ratekeeper.gate.steps import Steps, drive, drive_async
from ratekeeper.rules.reading import dig_json
from ratekeeper.stores.faults import struck

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate

__all__ = ["Sdk", "code_of", "install", "planned", "problems"]

log = logging.getLogger("ratekeeper")

C = TypeVar("C")

MOVED = (
    "ratekeeper: %s %s is not as Ratekeeper knows it (%s). Its calls are governed in the HTTP client only, where a call"
    " that is signed cannot wait for longer than its signature lasts. Use a version named in Ratekeeper's documentation"
)

_LOCAL = (AssertionError, AttributeError, KeyError, PermissionError, TypeError, ValueError)
"""Errors of exactly these types mean that the SDK refused to make the call, if no governed HTTP client saw it."""


@dataclass(frozen=True, slots=True)
class Sdk:
    """The description of one SDK and its hooks.

    Attributes:
        name: the package name on PyPI.
        owners: module -> the class to hook in it, or "" for functions of the module itself.
        calls: methods that make one call, from before the signature to the parsed response -> parameters we read.
        outbound: makes the request of a call from its arguments by name (`self` among them); None: leave the call to the
            HTTP client.
        family: the SDK's own error that a program expects when its call is refused.
        http: the attribute of a client that holds its HTTP client; "": the client is one itself.
        carrier: returns the part of an object given to `govern` that makes the calls.
        proxies: returns the proxies that the SDK sets on a request, from the arguments of a call.
        fields: attributes of `family`'s errors, from our message and, for a blocked call, from the response that the
            provider would give.
        signs: methods that an SDK (in threads) calls for each signature, if it repeats requests inside a call.
    """

    name: str
    owners: Mapping[str, str]
    calls: Mapping[str, tuple[str, ...]]
    outbound: Callable[[Mapping[str, Any]], Outbound | None]
    family: Callable[[], type[Exception]]
    http: str = ""
    carrier: Callable[[Any], Any] = lambda client: client
    proxies: Callable[[Mapping[str, Any]], Any] = lambda given: None
    fields: Callable[[str, Reply | None], Mapping[str, Any]] = lambda message, reply: {}
    signs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def govern(self, client: C, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> C:
        """Govern one client in place and return it.

        Args:
            client: the SDK's client. The gate does not see requests that its constructor has sent.
            gate: the gate to ask; ``None``: the process's shared one.
            priority: priority of every call of this client; ``None``: the context and the route decide.
            max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: the gate's settings,
                which refuse a call at once if a block lasts long.
        """
        carrier = self.carrier(client)
        for module, name in self.owners.items():
            owner = _owner(import_module(module), name)
            if not isinstance(owner, type) or isinstance(carrier, owner):
                install(self, owner)
        http = self._http(carrier)
        _adapter_of(http).govern(http, gate=gate, priority=priority, max_wait=max_wait)
        carrier.ratekeeper = Governor(gate, priority=priority, timeout=max_wait)
        return client

    def patch(self, module: ModuleType) -> None:
        """Govern every client of an unchanged program. `module`: one of `owners`, just imported."""
        install(self, _owner(module, self.owners[module.__name__]), Governor(lenient=True))

    def below(self, question: str, given: Mapping[str, Any], outbound: Outbound) -> bool:
        """Ask our adapter about the HTTP client that will send a call: whether it can send from ``any_address`` (without a
        proxy of the SDK), or whether it ``governs``."""
        try:
            if question == "any_address" and self.proxies(given):
                return False
            client = self._http(_carrier(given))
            url = f"{outbound.scheme}://{outbound.netloc}{outbound.path}"
            return bool(getattr(_adapter_of(client), question)(client, url))
        except Exception as error:  # an unknown client, which just sends from the default address
            if struck(error):
                raise
            return False

    def _http(self, carrier: Any) -> Any:
        return getattr(carrier, self.http) if self.http else carrier


def _owner(module: ModuleType, name: str) -> Any:
    return getattr(module, name) if name else module


def _carrier(given: Mapping[str, Any]) -> Any:
    """Return the argument of a call that carries the governor: the client, or the session given to a function."""
    return given.get("self", given.get("session"))


def _adapter_of(client: Any) -> Any:
    """Return our module for an HTTP client's library."""
    packages = {cls.__module__.partition(".")[0] for cls in type(client).__mro__}
    (library,) = packages & {"aiohttp", "httpx", "requests"}
    return import_module(f"ratekeeper.adapters.{library}")


def planned(
    method: str, url: str, headers: Mapping[Any, Any], params: Any = None, body: str | None = None
) -> Outbound | None:
    """Return the request that an SDK is about to build.

    Args:
        method: the HTTP method.
        url: the whole URL, with or without a query.
        headers: the headers that rules may read, in any case; None values are left out.
        params: of the query or of a form, a dict or encoded; None values are left out.
        body: JSON text.
    """
    if params and not isinstance(params, str):
        params = urlencode({name: value for name, value in params.items() if value is not None}, doseq=True)
    if params:
        url += ("&" if "?" in url else "?") + params
    sent = lowered({name: value for name, value in headers.items() if value is not None})
    if body is not None:
        sent["content-type"] = "application/json"
    return from_url(method, url, sent, body)


def code_of(reply: Reply, path: str, otherwise: Any) -> Any:
    """Return a provider's own error code at a dotted path of a response."""
    found = dig_json(reply.body, path)
    return otherwise if found is None else found


def problems(sdk: Sdk, owner: Any) -> list[str]:
    """Return one line for each hooked method that an upgrade of the SDK has removed or given other parameters."""
    found = ((name, _problem(owner, name, needed)) for name, needed in {**sdk.calls, **sdk.signs}.items())
    return [f"{owner.__name__}.{name} {problem}" for name, problem in found if problem]


def _problem(owner: Any, name: str, needed: tuple[str, ...]) -> str:
    method = getattr(owner, name, None)
    if method is None:
        return "is gone"
    lost = [parameter for parameter in needed if parameter not in inspect.signature(method).parameters]
    return f"does not take {', '.join(lost)}" if lost else ""


def install(sdk: Sdk, owner: Any, default: Governor | None = None) -> None:
    """Hook the methods of a class, or the functions of a module, once. Skip changed methods with a warning.

    Args:
        sdk: the description of the hooks.
        owner: the class or the module.
        default: the governor for objects without their own `ratekeeper` attribute; None: they pass.
    """
    if problem := problems(sdk, owner):
        log.warning(MOVED, sdk.name, _version(sdk.name), "; ".join(problem))
    for names, make in ((sdk.calls, _calling), (sdk.signs, _signed)):
        for name, needed in names.items():
            original = getattr(owner, name, None)
            if not _problem(owner, name, needed) and not hasattr(original, "ratekeeper"):
                hook = make(sdk, original, default)
                hook.ratekeeper = sdk.name
                _replace(owner, name, original, hook)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(of no known version)"


def _replace(owner: Any, name: str, original: Any, hook: Any) -> None:
    setattr(owner, name, hook)
    if isinstance(owner, ModuleType):  # other modules may have imported the function by name
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType) and vars(module).get(name) is original:
                setattr(module, name, hook)


# --- hooks ------------------------------------------------------------------------------------------------------


def _calling(sdk: Sdk, original: Any, default: Governor | None) -> Any:
    """Replace a method that makes a call."""
    signature = inspect.signature(original)
    is_async = inspect.iscoroutinefunction(original)
    drive_all: Callable[[Steps[Any]], Any] = drive_async if is_async else drive

    @functools.wraps(original)
    def call(*args: Any, **kw: Any) -> Any:
        try:
            given = signature.bind(*args, **kw)
            given.apply_defaults()
            governor = getattr(_carrier(given.arguments), "ratekeeper", None) or default
            outbound = None if governor is None else sdk.outbound(given.arguments)
        except Exception as error:  # for example wrong arguments: the SDK itself reports them or sends something
            if struck(error):
                raise
            outbound = None
        rules = None if governor is None else governor.match(outbound, sdk.family)
        if governor is None or outbound is None or rules is None or peek(outbound.netloc) is not None:
            # The call is ungoverned, or the HTTP client handles it, or an upper layer has waited for it.
            return original(*args, **kw)

        def send(request: Any) -> Any:
            # SDKs write timestamp and signature into their arguments, so each attempt gets copies.
            return original(*map(_own, args), **{name: _own(value) for name, value in kw.items()})

        any_address = sdk.below("any_address", given.arguments, outbound)
        signing = _Signing(
            governor, outbound, rules, None, send, family=sdk.family, is_async=is_async, any_address=any_address
        )
        signing.sdk = sdk
        signing.below = governor.lenient and sdk.below("governs", given.arguments, outbound)
        pipeline = governor.pipeline
        if pipeline is not None and pipeline.keeps(signing):
            return original(*args, **kw)  # no signature: the HTTP client below does everything and caches the response
        return drive_all(run(signing))

    return call


def _own(value: Any) -> Any:
    return dict(value) if type(value) is dict else value


def _signed(sdk: Sdk, original: Any, default: Governor | None) -> Any:
    """Replace a method that makes a signature."""

    @functools.wraps(original)
    def sign(*args: Any, **kw: Any) -> Any:
        call = CURRENT.get()
        if isinstance(call, _Signing) and call.sdk is sdk:
            call.again()
        return original(*args, **kw)

    return sign


class _Signing(OuterCall):
    """One call of an SDK. The HTTP client below takes its attempt."""

    sdk: Sdk
    answers = False
    below = False
    """Whether the HTTP client itself answers a blocked call as the provider would."""
    repeated = False

    def attempt(self, timeout: float | None) -> Steps[Any]:
        try:
            return (yield from super().attempt(timeout))
        except Rejected as error:
            self._fill(error)
            raise

    def once(self, owner: Call) -> Steps[Any]:
        self.repeated = False
        return super().once(owner)

    def kept_back(self, error: BaseException) -> bool:
        return type(error) in _LOCAL

    def untaken(self, response: Any) -> None:
        self.answered(200, {})  # an ungoverned HTTP client: the cost is spent, and the gate learns nothing

    def fails_over(self, error: Exception) -> bool:
        # A request that the SDK has repeated by itself may have been sent before.
        return self.elsewhere and not self.repeated and unconnected(error)

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        made = super().fail(error, cause)
        self._fill(made)
        return made

    def blocked_answer(self, block: Blocked) -> Steps[Any]:
        # The SDK makes its own error from the HTTP client's response.
        if not self.below:
            raise self.fail(block, None)
        return (yield from self.send_ungoverned())

    def _fill(self, error: Exception) -> None:
        """Set the attributes that programs read from the SDK's own errors."""
        block = error if isinstance(error, Blocked) else error.__cause__
        reply = self.denied(block) if isinstance(block, Blocked) else None
        for name, value in self.sdk.fields(str(error), reply).items():
            setattr(error, name, value)

    def again(self) -> None:
        """Wait for a new attempt if the SDK signs again after the first attempt is spent: that is a repetition."""
        if self.spare:
            return
        self.repeated = True
        try:
            drive(self.begin(None))
        except Rejected as error:
            if self.below and isinstance(error, Blocked):
                return
            self._fill(error)
            raise
        self.observed_above = False  # the next request below takes the new attempt and sees its response
