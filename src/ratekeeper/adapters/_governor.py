"""How an adapter reaches its gate, and what becomes of a call when something goes wrong on the way.

Nothing that goes wrong is a free pass: the call keeps to a safe share, or is refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ratekeeper.adapters._wire import Outbound, in_family
from ratekeeper.config.resolution import UNGOVERNED_ON_ERROR, switched_on
from ratekeeper.errors import RatekeeperError
from ratekeeper.stores.faults import ours

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.gate.policies.pipeline import Pipeline
    from ratekeeper.rules.call import Priority
    from ratekeeper.rules.provider import Provider

__all__ = ["Family", "Governor", "refused"]

log = logging.getLogger("ratekeeper")

PASSES = "ratekeeper: a call to %s passes ungoverned"

T = TypeVar("T")

Family: TypeAlias = Callable[[], type[Exception]]
"""Gives the base error of a client library, imported only when it is needed."""


class Governor:
    """How one adapter reaches its gate.

    Args:
        gate: the gate to ask; ``None`` is the process's shared one, made on first use.
        priority: class of every call through this adapter; ``None`` leaves it to the context and the route.
        lenient: for an unchanged program: at an unexpected error of ours a call keeps to a safe share (`Gate.spare`), and if
            even that fails it is refused, as an error of the client's family; it passes ungoverned only if the user has said
            so (``ungoverned_on_error``). Whatever was not ours, such as what a signal's handler raised, is raised.
        timeout: seconds that a call may wait, also for the end of a block; ``None``: the gate's `max_wait`, and its
            `max_block_wait` for a block.
    """

    __slots__ = ("_told", "gate", "lenient", "priority", "timeout")

    gate: Gate
    """The gate that is asked."""

    def __init__(
        self,
        gate: Gate | None = None,
        *,
        priority: Priority | int | str | None = None,
        lenient: bool = False,
        timeout: float | None = None,
    ) -> None:
        if gate is not None:  # else see `__getattr__`
            self.gate = gate
        self._told = False
        self.priority = priority
        self.lenient = lenient
        self.timeout = timeout

    def __getattr__(self, name: str) -> Any:
        """The shared gate, asked for each time: a fork has another."""
        if name != "gate":
            raise AttributeError(name)
        from ratekeeper.gate.gate import Gate

        return Gate.shared()

    def knows(self, netloc: str, path: str) -> bool:
        """True if there are rules for a host."""
        try:
            return self.gate.book.for_host(netloc, path) is not None
        except Exception as error:  # noqa: BLE001 - raised there if it is not ours
            return self._asked_again(lambda gate: gate.book.for_host(netloc, path), error, netloc, None) is not None

    def match(self, outbound: Outbound | None, family: Family | None = None) -> Provider | None:
        """The rules for a request; None: it passes. `family`: of the error, if nobody can tell."""
        if outbound is None:
            return None
        try:
            return self.gate.match(outbound.netloc, outbound.path)
        except Exception as error:  # noqa: BLE001 - raised there if it is not ours
            return self.match_anyhow(outbound, family, error)

    def match_anyhow(self, outbound: Outbound, family: Family | None, error: Exception) -> Provider | None:
        """`match` by the spare gate: the gate has raised `error`."""
        netloc, path = outbound.netloc, outbound.path
        return self._asked_again(lambda gate: gate.match(netloc, path), error, netloc, family)

    @property
    def pipeline(self) -> Pipeline | None:
        """What is done around calls; nothing where the gate cannot be asked."""
        try:
            return self.gate.pipeline
        except Exception as error:
            if not self.excuses(error):
                raise
            return None

    def excuses(self, error: Exception) -> bool:
        """Whether calls go on after an error: it is ours, and the program has not asked for a gate."""
        return self.lenient and ours(error)

    def _asked_again(self, ask: Callable[[Gate], T], error: Exception, netloc: str, family: Family | None) -> T | None:
        """What the spare gate answers in place of one that has raised `error`; None where a call passes ungoverned."""
        other = self.instead(error, netloc, family)
        if other is None:
            return None
        try:
            return ask(other.gate)
        except Exception as problem:
            raise refused(problem, netloc, family) from problem

    def instead(self, error: Exception, netloc: str, family: Family | None) -> Governor | None:
        """Who governs a call when something went wrong: the spare gate. None: nobody, for the user has said so.

        Raises:
            Exception: the error itself, if it is not ours to judge.
            RatekeeperError: the gate cannot be made, or not even a spare one.
        """
        if not self.lenient or not ours(error):
            raise error
        if self._ungoverned():
            log.warning(PASSES, netloc, exc_info=error)
            return None
        if isinstance(error, RatekeeperError):  # a configuration that cannot be read may say something of any host
            raise refused(error, netloc, family) from error
        if not self._told:
            self._told = True
            log.warning("ratekeeper: a call to %s could not be governed as usual: a safe share", netloc, exc_info=error)
        try:
            from ratekeeper.gate.gate import Gate

            return Governor(Gate.spare(), priority=self.priority, timeout=self.timeout)
        except Exception as problem:  # noqa: BLE001 - not ours is raised as it is
            raise refused(problem, netloc, family) from error

    def _ungoverned(self) -> bool:
        """Whether the user prefers calls that pass ungoverned to calls that are refused."""
        if switched_on(os.environ.get(UNGOVERNED_ON_ERROR, "")):
            return True
        try:
            return self.gate.ungoverned_on_error
        except Exception:  # noqa: BLE001 - no gate, nobody has said so
            return False


def refused(error: Exception, netloc: str, family: Family | None) -> Exception:
    """What is raised where nobody can say whether a call may be sent."""
    if not ours(error):
        return error
    said = RatekeeperError(
        f"the call to {netloc} is refused, for Ratekeeper cannot govern it: {type(error).__name__}: {error}."
        " (RATEKEEPER_UNGOVERNED_ON_ERROR=1 lets such calls pass)"
    )
    return said if family is None else in_family(said, family)
