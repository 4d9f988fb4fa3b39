"""pybit: ``session = govern(HTTP(api_key=..., api_secret=...))``.

The gate is in front of ``_submit_request``. It repeats requests by itself, with the delays it is set to; each
repetition waits and is charged, a signed one before it is signed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._sdk import Sdk, code_of, install, planned
from ratekeeper.adapters._wire import Outbound

if TYPE_CHECKING:
    from ratekeeper.gate.errand import Reply
    from ratekeeper.gate.gate import Gate

__all__ = ["SDK", "govern", "patch"]

C = TypeVar("C")


def govern(session: C, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> C:
    """Governs one ``pybit.unified_trading.HTTP`` in place and returns it.

    Args:
        session: as made.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this session; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """
    from pybit._http_manager import _V5HTTPManager

    from ratekeeper.adapters.requests import govern as below

    target: Any = session
    install(SDK, _V5HTTPManager)
    below(target.client, gate=gate, priority=priority, max_wait=max_wait)
    target.ratekeeper = Governor(gate, priority=priority, timeout=max_wait)
    return session


def patch(module: ModuleType) -> None:
    """Governs every session of an unchanged program.

    Args:
        module: ``pybit._http_manager``.
    """
    install(SDK, module._V5HTTPManager, Governor(lenient=True))


def _outbound(given: Mapping[str, Any]) -> Outbound | None:
    query = {name: value for name, value in (given["query"] or {}).items() if value is not None}
    headers = {"x-bapi-api-key": given["self"].api_key if given["auth"] else None}
    if given["method"] == "GET":
        return planned("GET", given["path"], headers, query)
    return planned(given["method"], given["path"], headers, body=json.dumps(query))


def _family() -> type[Exception]:
    from pybit.exceptions import InvalidRequestError

    return InvalidRequestError  # type: ignore[no-any-return]


def _fields(message: str, reply: Reply | None) -> dict[str, Any]:
    at = time.strftime("%H:%M:%S", time.gmtime())
    code, headers = 10006, None
    if reply is not None:
        code, headers = code_of(reply, "retCode", 0) or reply.status, dict(reply.headers)
    return {"message": message, "status_code": code, "time": at, "request": "", "resp_headers": headers}


SDK = Sdk(
    name="pybit",
    calls={"_submit_request": ("method", "path", "query", "auth")},
    outbound=_outbound,
    client=lambda given: (given["self"].client, None),
    family=_family,
    fields=_fields,
    signs={"_prepare_headers": ()},
)
"""What is hooked."""
