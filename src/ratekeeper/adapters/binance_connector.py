"""binance-connector 3.x: ``client = govern(Spot(key, secret))``.

The gate is in front of the two methods that sign; what is not signed waits in ``send_request``.
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
    """Governs one client in place and returns it.

    Args:
        client: ``binance.spot.Spot``, or any other ``binance.api.API``.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this client; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """
    from binance.api import API

    from ratekeeper.adapters.requests import govern as below

    target: Any = client
    install(SDK, API)
    below(target.session, gate=gate, priority=priority, max_wait=max_wait)
    target.ratekeeper = Governor(gate, priority=priority, timeout=max_wait)
    return client


def patch(module: ModuleType) -> None:
    """Governs every client of an unchanged program.

    Args:
        module: ``binance.api``.
    """
    install(SDK, module.API, Governor(lenient=True))


def _outbound(given: Mapping[str, Any]) -> Outbound | None:
    client = given["self"]
    return planned(
        given["http_method"], f"{client.base_url}{given['url_path']}", client.session.headers, given["payload"]
    )


def _family() -> type[Exception]:
    from binance.error import ClientError

    return ClientError  # type: ignore[no-any-return]


def _fields(message: str, reply: Reply | None) -> dict[str, Any]:
    status, code = (429, -1003) if reply is None else (reply.status, code_of(reply, "code", -1003))
    header = {} if reply is None else dict(reply.headers)
    return {"status_code": status, "error_code": code, "error_message": message, "header": header, "error_data": None}


_PARAMETERS = ("http_method", "url_path", "payload")

SDK = Sdk(
    name="binance-connector",
    calls=dict.fromkeys(("sign_request", "limited_encoded_sign_request", "send_request"), _PARAMETERS),
    outbound=_outbound,
    client=lambda given: (given["self"].session, given["self"].proxies),
    family=_family,
    fields=_fields,
)
"""What is hooked."""
