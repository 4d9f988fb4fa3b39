"""binance-sdk-spot and the other binance-sdk-*: ``client = govern(Spot(ConfigurationRestAPI(...)))``.

All of them send through one function of ``binance_common``. It repeats failed reads by itself and signs each time;
each time it asks for a timestamp, a repetition waits first.
"""

from __future__ import annotations

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


def govern(client: C, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> C:
    """Governs the REST half of one client in place and returns it.

    Args:
        client: of any ``binance_sdk_*`` package, or the ``rest_api`` of one.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this client; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """
    import binance_common.utils

    from ratekeeper.adapters.requests import govern as below

    target: Any = client
    session = getattr(target, "rest_api", target)._session
    install(SDK, binance_common.utils)
    below(session, gate=gate, priority=priority, max_wait=max_wait)
    session.ratekeeper = Governor(gate, priority=priority, timeout=max_wait)
    return client


def patch(module: ModuleType) -> None:
    """Governs every client of an unchanged program.

    Args:
        module: ``binance_common.utils``.
    """
    install(SDK, module, Governor(lenient=True))


def _outbound(given: Mapping[str, Any]) -> Outbound | None:
    import binance_common.utils

    settings, utils = given["configuration"], vars(binance_common.utils)
    params = {**(given["payload"] or {}), **(given["body"] or {})}
    if given["is_signed"] and params.get("timestamp") is not None:
        return None  # the caller's own instant grows old while we wait: the HTTP client looks after that
    query = utils["encoded_string"](utils["clean_none_value"](params))
    return planned(given["method"], f"{settings.base_path}{given['path']}", settings.base_headers, query)


def _family() -> type[Exception]:
    from binance_common.errors import TooManyRequestsError

    return TooManyRequestsError


def _fields(message: str, reply: Reply | None) -> dict[str, Any]:
    after = None if reply is None else int(dict(reply.headers)["Retry-After"])
    code = -1003 if reply is None else code_of(reply, "code", -1003)
    return {"error_message": message, "status_code": code, "retry_after": after}


SDK = Sdk(
    name="binance-common",
    calls={"send_request": ("session", "configuration", "method", "path", "payload", "body", "is_signed")},
    outbound=_outbound,
    client=lambda given: (given["session"], given["configuration"].proxy),
    family=_family,
    fields=_fields,
    signs={"get_timestamp": ()},
)
"""What is hooked."""
