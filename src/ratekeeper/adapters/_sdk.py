"""What the SDKs of exchanges share: the gate before their signature, whichever private method that is.

An SDK signs a timestamp and then calls its HTTP client. So the wait happens in front of the method that signs; the HTTP
client below is governed as well, takes what was waited for, and tells what came back. A request that the SDK repeats
by itself finds nothing to take: it waits and is charged anew, before it is signed again where the SDK lets us.

A call may leave from several addresses if the HTTP client below can, and its user has set no proxy. Where no connection
can be made from one address, nothing was sent: the SDK makes the call again, signed anew, from the next.

Each SDK is a description (`Sdk`). The methods are hooked once per process; whom a call asks is the governor that its
object carries, or the one of `ratekeeper run`, or nobody.
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
"""Errors of exactly these types say, if no HTTP client of ours saw the call, that the SDK refused to make it."""


@dataclass(frozen=True, slots=True)
class Sdk:
    """One SDK, as it is hooked.

    Attributes:
        name: what its package is called on PyPI.
        owners: module -> what is hooked in it: the name of a class, or "" for functions of the module itself.
        calls: methods that make one call, from before the signature to the parsed answer -> parameters we read.
        outbound: the request that a call will become, from its arguments by name (`self` among them); None: leave it
            to the HTTP client.
        family: the SDK's own error that a program expects when its call is refused.
        http: the attribute of a client that holds its HTTP client; "": it is one itself.
        carrier: what of an object given to `govern` makes the calls.
        proxies: those that the SDK itself gives to a request, from the arguments of a call.
        fields: attributes of such an error, from our message and, if a block holds the call, from what the provider would
            have answered.
        signs: methods that an SDK (in threads) calls for each signature, where it repeats requests inside a call.
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
        """Governs one client in place and returns it.

        Args:
            client: as made; what its constructor has sent already went past the gate.
            gate: the gate to ask; ``None`` is the process's shared one.
            priority: class of every call of this client; ``None`` leaves it to the context and the route.
            max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
                refuses at once what is shut for long.
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
        """Governs every client of an unchanged program. `module`: one of `owners`, just imported."""
        install(self, _owner(module, self.owners[module.__name__]), Governor(lenient=True))

    def below(self, question: str, given: Mapping[str, Any], outbound: Outbound) -> bool:
        """What our adapter says of the HTTP client that will send a call: whether it can send from ``any_address`` (with no
        proxy of the SDK between), whether it ``governs``."""
        try:
            if question == "any_address" and self.proxies(given):
                return False
            client = self._http(_carrier(given))
            url = f"{outbound.scheme}://{outbound.netloc}{outbound.path}"
            return bool(getattr(_adapter_of(client), question)(client, url))
        except Exception as error:  # a client of another kind, which would just send, from the default address
            if struck(error):
                raise
            return False

    def _http(self, carrier: Any) -> Any:
        return getattr(carrier, self.http) if self.http else carrier


def _owner(module: ModuleType, name: str) -> Any:
    return getattr(module, name) if name else module


def _carrier(given: Mapping[str, Any]) -> Any:
    """What carries the governor, of the arguments of a call: the client, or the session that a function is given."""
    return given.get("self", given.get("session"))


def _adapter_of(client: Any) -> Any:
    """Our module for an HTTP client's library."""
    packages = {cls.__module__.partition(".")[0] for cls in type(client).__mro__}
    (library,) = packages & {"aiohttp", "httpx", "requests"}
    return import_module(f"ratekeeper.adapters.{library}")


def planned(
    method: str, url: str, headers: Mapping[Any, Any], params: Any = None, body: str | None = None
) -> Outbound | None:
    """The request that an SDK is about to build.

    Args:
        method: of HTTP.
        url: whole, with or without a query.
        headers: those that rules may look at, in any case; values that are None are left out.
        params: of the query or of a form, a dict or encoded; values that are None are left out.
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
    """A provider's own code at a dotted path of an answer."""
    found = dig_json(reply.body, path)
    return otherwise if found is None else found


def problems(sdk: Sdk, owner: Any) -> list[str]:
    """What an upgrade of the SDK has moved: one line for each method that is gone or takes other parameters."""
    found = ((name, _problem(owner, name, needed)) for name, needed in {**sdk.calls, **sdk.signs}.items())
    return [f"{owner.__name__}.{name} {problem}" for name, problem in found if problem]


def _problem(owner: Any, name: str, needed: tuple[str, ...]) -> str:
    method = getattr(owner, name, None)
    if method is None:
        return "is gone"
    lost = [parameter for parameter in needed if parameter not in inspect.signature(method).parameters]
    return f"does not take {', '.join(lost)}" if lost else ""


def install(sdk: Sdk, owner: Any, default: Governor | None = None) -> None:
    """Hooks the methods of a class, or the functions of a module, once. What has moved is left alone, with a warning.

    Args:
        sdk: what to hook.
        owner: the class or the module.
        default: asked by objects that carry no governor of their own as `ratekeeper`; None: they pass.
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
    if isinstance(owner, ModuleType):  # whoever imported the function by its name has it under that name
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType) and vars(module).get(name) is original:
                setattr(module, name, hook)


# --- hooks ------------------------------------------------------------------------------------------------------


def _calling(sdk: Sdk, original: Any, default: Governor | None) -> Any:
    """What takes the place of a method that makes a call."""
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
        except Exception as error:  # wrong arguments and the like: the SDK itself says so, or it sends something
            if struck(error):
                raise
            outbound = None
        rules = None if governor is None else governor.match(outbound, sdk.family)
        if governor is None or outbound is None or rules is None or peek(outbound.netloc) is not None:
            # Not ours, or in the HTTP client's hands, or waited for by a layer above.
            return original(*args, **kw)

        def send(request: Any) -> Any:
            # SDKs write timestamp and signature into what they are given: each try has its own.
            return original(*map(_own, args), **{name: _own(value) for name, value in kw.items()})

        any_address = sdk.below("any_address", given.arguments, outbound)
        signing = _Signing(
            governor, outbound, rules, None, send, family=sdk.family, is_async=is_async, any_address=any_address
        )
        signing.sdk = sdk
        signing.below = governor.lenient and sdk.below("governs", given.arguments, outbound)
        pipeline = governor.pipeline
        if pipeline is not None and pipeline.keeps(signing):
            return original(*args, **kw)  # nothing to sign: the HTTP client below does it all, and keeps what it gets
        return drive_all(run(signing))

    return call


def _own(value: Any) -> Any:
    return dict(value) if type(value) is dict else value


def _signed(sdk: Sdk, original: Any, default: Governor | None) -> Any:
    """What takes the place of a method that makes a signature."""

    @functools.wraps(original)
    def sign(*args: Any, **kw: Any) -> Any:
        call = CURRENT.get()
        if isinstance(call, _Signing) and call.sdk is sdk:
            call.again()
        return original(*args, **kw)

    return sign


class _Signing(OuterCall):
    """One call of an SDK, whose attempt the HTTP client below takes."""

    sdk: Sdk
    answers = False
    below = False
    """Whether the HTTP client answers by itself, as the provider would, to a call that a block holds."""
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
        self.answered(200, {})  # an HTTP client that nobody governs: spent, and nothing learned

    def fails_over(self, error: Exception) -> bool:
        # What the SDK has repeated by itself may have been sent before.
        return self.elsewhere and not self.repeated and unconnected(error)

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        made = super().fail(error, cause)
        self._fill(made)
        return made

    def blocked_answer(self, block: Blocked) -> Steps[Any]:
        # The SDK makes its own error of the answer that the HTTP client gives it.
        if not self.below:
            raise self.fail(block, None)
        return (yield from self.send_ungoverned())

    def _fill(self, error: Exception) -> None:
        """What a program reads off the SDK's own errors."""
        block = error if isinstance(error, Blocked) else error.__cause__
        reply = self.denied(block) if isinstance(block, Blocked) else None
        for name, value in self.sdk.fields(str(error), reply).items():
            setattr(error, name, value)

    def again(self) -> None:
        """The SDK signs: if the attempt is spent this is a repetition, which waits for one of its own."""
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
        self.observed_above = False  # the next request below takes the new attempt, and sees its answer
