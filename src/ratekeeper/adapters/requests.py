"""requests: ``session.mount("https://", Adapter())``.

The gate governs the adapter's own connection pools, so that it charges urllib3's retries as well as the session's
redirects. Timeouts do not include the wait.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from requests.adapters import DEFAULT_POOLBLOCK, HTTPAdapter
from requests.exceptions import ConnectionError, ReadTimeout, RequestException  # noqa: A004 - requests calls it so
from requests.utils import select_proxy
from urllib3.exceptions import ReadTimeoutError
from urllib3.response import HTTPResponse

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._wire import in_family
from ratekeeper.adapters.urllib3 import pool_classes
from ratekeeper.errors import CallFailed, RatekeeperError

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate

__all__ = ["Adapter", "any_address", "govern", "governs", "patch"]

F = TypeVar("F", bound=RatekeeperError)
S = TypeVar("S")


class Adapter(HTTPAdapter):
    """A governed transport adapter for ``requests.Session.mount``.

    Args:
        gate: the gate to ask; ``None``: the process's shared one.
        priority: priority of every call through this adapter; ``None``: the context and the route decide.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: the gate's settings, which
            refuse a call at once if a block lasts long.
        **options: as for ``requests.adapters.HTTPAdapter``: ``pool_maxsize``, ``max_retries``...
    """

    def __init__(
        self, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None, **options: Any
    ) -> None:
        self._governor = Governor(gate, priority=priority, timeout=max_wait)
        super().__init__(**options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._governor = Governor()  # a gate belongs to its process, so a pickled adapter asks the shared one
        super().__setstate__(state)  # type: ignore[misc]

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = DEFAULT_POOLBLOCK, **options: Any) -> None:
        """Make the pool manager, with governed pools."""
        super().init_poolmanager(connections, maxsize, block, **options)
        self._govern(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Return the pool manager of a proxy, with governed pools."""
        return self._govern(super().proxy_manager_for(proxy, **options))

    def _govern(self, manager: Any) -> Any:
        manager.pool_classes_by_scheme = pool_classes(self._governor, manager.pool_classes_by_scheme)
        return manager

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        """Send a prepared request. A refusal by the gate is also a ``RequestException``."""
        return _sent(super().send, self, request, *args, **options)


def govern(session: S, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> S:
    """Govern an existing session in place and return it. Its adapters keep their pools and options.

    Args:
        session: a ``Session``; the gate also governs adapters that are mounted later.
        gate, priority, max_wait: as for `Adapter`.
    """
    target: Any = session
    governor = Governor(gate, priority=priority, timeout=max_wait)
    original, one_by_one = target.get_adapter, threading.Lock()

    @functools.wraps(original)
    def get_adapter(url: str) -> Any:
        adapter = original(url)
        with one_by_one:
            if isinstance(adapter, HTTPAdapter) and not isinstance(adapter, Adapter):
                _turn(adapter, governor)
        return adapter

    target.get_adapter = get_adapter
    return session


def _turn(adapter: Any, governor: Governor) -> None:
    """Turn an adapter of any class into a governed one. It keeps connections and settings."""
    kind = type(adapter)
    adapter._governor = governor
    adapter.__class__ = type(kind.__name__, (Adapter, kind), {"__module__": kind.__module__})
    for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
        adapter._govern(manager).clear()  # its pools have the old classes


def patch(module: ModuleType) -> None:
    """Convert refusals of the governed urllib3 below into ``RequestException``, for an unchanged program.

    Args:
        module: ``requests.adapters``.
    """
    original = module.HTTPAdapter.send

    @functools.wraps(original)
    def send(self: Any, request: Any, *args: Any, **options: Any) -> Any:
        return _sent(functools.partial(original, self), self, request, *args, **options)

    module.HTTPAdapter.send = send


def _sent(send: Callable[..., Any], adapter: Any, request: Any, *args: Any, **options: Any) -> Any:
    try:
        return send(request, *args, **options)
    except RatekeeperError as error:
        raise _ours(error, request, adapter) from error.__cause__


def any_address(session: Any, url: str) -> bool:
    """Whether requests of a session to a URL leave from the address that the gate chooses: its pools are governed, and
    neither the program nor the environment sets a proxy or a source address."""
    if not governs(session, url) or session.get_adapter(url).poolmanager.connection_pool_kw.get("source_address"):
        return False
    proxies = session.merge_environment_settings(url, {}, None, None, None)["proxies"]
    return not select_proxy(url, proxies)


def governs(session: Any, url: str) -> bool:
    """Whether requests of a session to a URL ask a gate, as all do under ``ratekeeper run``."""
    pools = getattr(session.get_adapter(url), "poolmanager", None)
    return pools is not None and hasattr(pools.pool_classes_by_scheme.get(urlsplit(url).scheme), "ratekeeper")


def _ours(error: F, request: Any, adapter: Any) -> F:
    """Convert the error into the class that requests would raise for its cause."""
    kind: type[Exception] = RequestException
    if isinstance(error, CallFailed) and error.__cause__ is not None:
        kind = ReadTimeout if isinstance(error.__cause__, ReadTimeoutError) else ConnectionError
    made = in_family(error, lambda: kind)
    made.request = request  # type: ignore[attr-defined]
    raw = getattr(error, "response", None)
    if isinstance(raw, HTTPResponse):
        made.response = adapter.build_response(request, raw)  # type: ignore[attr-defined]
    return made
