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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any
from urllib.parse import urlencode

from ratekeeper.adapters._call import Attempt, Steps, drive, drive_async, peek
from ratekeeper.adapters._errand import Governed, denied, run
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._wire import Outbound, from_url, lowered, unconnected
from ratekeeper.errors import Blocked, RatekeeperError, Rejected
from ratekeeper.gate.errand import Reply
from ratekeeper.rules.reading import dig_json
from ratekeeper.stores.faults import struck

__all__ = ["Sdk", "code_of", "install", "planned", "problems"]

log = logging.getLogger("ratekeeper")

MOVED = (
    "ratekeeper: %s %s is not as Ratekeeper knows it (%s). Its calls are governed in the HTTP client only, where a call"
    " that is signed cannot wait for longer than its signature lasts. Use a version named in Ratekeeper's documentation"
)

_LOCAL = (AssertionError, AttributeError, KeyError, PermissionError, TypeError, ValueError)
"""Errors of exactly these types say, if no HTTP client of ours saw the call, that the SDK refused to make it."""

_signing: ContextVar[_Signing | None] = ContextVar("ratekeeper_sdk", default=None)
"""The SDK's call that we are in."""


@dataclass(frozen=True, slots=True)
class Sdk:
    """One SDK, as it is hooked.

    Attributes:
        name: what its package is called on PyPI.
        calls: methods that make one call, from before the signature to the parsed answer -> parameters we read.
        outbound: the request that a call will become, from its arguments by name (`self` among them); None: leave it
            to the HTTP client.
        client: the HTTP client that sends it, and the proxies that the SDK itself gives to each request.
        family: the SDK's own error that a program expects when its call is refused.
        fields: attributes of such an error, from our message and, if a block holds the call, from what the provider would
            have answered.
        signs: methods that an SDK calls for each signature, where it repeats requests inside a call.
    """

    name: str
    calls: Mapping[str, tuple[str, ...]]
    outbound: Callable[[Mapping[str, Any]], Outbound | None]
    client: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    family: Callable[[], type[Exception]]
    fields: Callable[[str, Reply | None], Mapping[str, Any]] = lambda message, reply: {}
    signs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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
            carrier = given.arguments.get("self", given.arguments.get("session"))
            governor = getattr(carrier, "ratekeeper", None) or default
            outbound = None if governor is None else sdk.outbound(given.arguments)
        except Exception as error:  # wrong arguments and the like: the SDK itself says so, or it sends something
            if struck(error):
                raise
            outbound = None
        rules = None if governor is None else governor.match(outbound, sdk.family)
        if governor is None or outbound is None or rules is None or peek(outbound.netloc) is not None:
            # Not ours, or in the HTTP client's hands, or waited for by a layer above.
            return original(*args, **kw)

        def send() -> Any:
            # SDKs write timestamp and signature into what they are given: each try has its own.
            return original(*map(_own, args), **{name: _own(value) for name, value in kw.items()})

        roams = _roams(sdk, given.arguments, outbound)
        signing = _Signing(governor, outbound, rules, is_async=is_async, family=sdk.family, roams=roams)
        signing.sdk, signing.send = sdk, send
        signing.below = governor.lenient and _governs(sdk, given.arguments, outbound)
        pipeline = governor.pipeline
        if pipeline is not None and pipeline.keeps(signing):
            return original(*args, **kw)  # nothing to sign: the HTTP client below does it all, and keeps what it gets
        return drive_all(run(signing))

    return call


def _own(value: Any) -> Any:
    return dict(value) if type(value) is dict else value


def _roams(sdk: Sdk, given: Mapping[str, Any], outbound: Outbound) -> bool:
    """Whether a request leaves from the address that the gate has chosen: the HTTP client is governed so that it can, and
    no proxy stands between, whether the user gave it to the SDK, to the client or to the environment."""
    try:
        client, proxies = sdk.client(given)
        return not proxies and bool(_adapter_of(client).roams(client, _url(outbound)))
    except Exception as error:  # a client of another kind: it leaves from the default address
        if struck(error):
            raise
        return False


def _governs(sdk: Sdk, given: Mapping[str, Any], outbound: Outbound) -> bool:
    """Whether the HTTP client asks the gate as well, for what comes without an attempt."""
    try:
        client, _ = sdk.client(given)
        return bool(_adapter_of(client).governs(client, _url(outbound)))
    except Exception as error:  # a client of another kind, which would just send
        if struck(error):
            raise
        return False


def _adapter_of(client: Any) -> Any:
    """Our module for an HTTP client's library."""
    packages = {cls.__module__.partition(".")[0] for cls in type(client).__mro__}
    (library,) = packages & {"aiohttp", "httpx", "requests"}
    return import_module(f"ratekeeper.adapters.{library}")


def _url(outbound: Outbound) -> str:
    return f"{outbound.scheme}://{outbound.netloc}{outbound.path}"


def _signed(sdk: Sdk, original: Any, default: Governor | None) -> Any:
    """What takes the place of a method that makes a signature."""

    @functools.wraps(original)
    def sign(*args: Any, **kw: Any) -> Any:
        signing = _signing.get()
        if signing is not None and signing.sdk is sdk:
            signing.again()
        return original(*args, **kw)

    return sign


class _Signing(Governed):
    """One call of an SDK: what it asks for, and the attempt that the HTTP client shall take next."""

    sdk: Sdk
    send: Callable[[], Any]
    answers = False
    below = False
    """Whether the HTTP client answers by itself, as the provider would, to a call that a block holds."""
    held: Attempt | None = None
    repeated = False
    _handed: ExitStack

    def attempt(self, timeout: float | None) -> Steps[Any]:
        try:
            return (yield from super().attempt(timeout))
        except Rejected as error:
            self._fill(error)
            raise

    def once(self, attempt: Attempt) -> Steps[Any]:
        self.held, self.repeated = attempt, False
        with self.hand_down():
            try:
                result = yield self.send
            except BaseException as error:
                self.held.failed(error, unsent=self.held.spare and type(error) in _LOCAL)
                raise
            if self.held.spare:
                self.held.answered(200, {})  # an HTTP client that nobody governs: spent, and nothing learned
            return result

    def untouched(self) -> Steps[Any]:
        return (yield self.send)

    def moves(self, attempt: Attempt, error: Exception) -> bool:
        # What the SDK has repeated by itself may have been sent before.
        return attempt.elsewhere and not self.repeated and unconnected(error)

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        made = super().fail(error, cause)
        self._fill(made)
        return made

    def shut(self, block: Blocked) -> Steps[Any]:
        # The SDK makes its own error of the answer that the HTTP client gives it.
        if not self.below:
            raise self.fail(block, None)
        return (yield self.send)

    def _fill(self, error: Exception) -> None:
        """What a program reads off the SDK's own errors."""
        block = error if isinstance(error, Blocked) else error.__cause__
        reply = None
        if isinstance(block, Blocked):
            reply = denied(self.governor.gate, self.rules, self.call, block)
        for name, value in self.sdk.fields(str(error), reply).items():
            setattr(error, name, value)

    @contextmanager
    def hand_down(self) -> Iterator[None]:
        """Inside the block the HTTP client finds the attempt, and the next signature finds us."""
        token = _signing.set(self)
        self._handed = ExitStack()
        with self._handed:
            self._hand()
            try:
                yield
            finally:
                _signing.reset(token)

    def _hand(self) -> None:
        if self.held is not None:
            self._handed.enter_context(self.held.below(observed_above=False))

    def again(self) -> None:
        """The SDK signs: if the attempt is spent this is a repetition, which waits for one of its own."""
        if self.held is not None and not self.held.spare:
            self.repeated = True
            known = self.rules, self.call
            try:
                self.held = (
                    drive(
                        self.governor.begin(self.outbound, self.family, is_async=False, roams=self.roams, known=known)
                    )
                    or self.held
                )
            except Rejected as error:
                if self.below and isinstance(error, Blocked):
                    return
                self._fill(error)
                raise
            self._hand()
