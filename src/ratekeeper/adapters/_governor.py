"""The governor of an adapter: it reaches the gate and decides about a call after an internal error.

After an internal error a call keeps to a safe share of the limits, or the governor refuses it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ratekeeper.adapters._wire import Outbound, in_family
from ratekeeper.config.resolution import UNGOVERNED_ON_ERROR, switched_on
from ratekeeper.errors import RatekeeperError, StoreUnavailable
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
"""Returns the base error of a client library, imported only when needed."""


class Governor:
    """The way of one adapter to its gate.

    Args:
        gate: the gate to ask; ``None``: the process's shared one, created on first use.
        priority: priority of every call through this adapter; ``None``: the context and the route decide.
        lenient: for an unchanged program. After an unexpected error of ours a call keeps to a safe share (`Gate.spare`). If
            that fails too, the call is refused with an error of the client's family. It passes ungoverned only if the user
            has set ``ungoverned_on_error``. Errors that are not ours, such as one of a signal handler, are raised.
        timeout: seconds that a call may wait, also for the end of a block; ``None``: the gate's `max_wait`, and its
            `max_block_wait` for a block.
    """

    __slots__ = ("_told", "gate", "lenient", "priority", "timeout")

    gate: Gate
    """The gate to ask."""

    def __init__(
        self,
        gate: Gate | None = None,
        *,
        priority: Priority | int | str | None = None,
        lenient: bool = False,
        timeout: float | None = None,
    ) -> None:
        if gate is not None:  # if not, see `__getattr__`
            self.gate = gate
        self._told = False
        self.priority = priority
        self.lenient = lenient
        self.timeout = timeout

    def __getattr__(self, name: str) -> Any:
        """Return the shared gate, looked up each time because a fork has another."""
        if name != "gate":
            raise AttributeError(name)
        from ratekeeper.gate.gate import Gate

        return Gate.shared()

    def knows(self, netloc: str, path: str) -> bool:
        """Whether there are rules for a host."""
        try:
            return self.gate.book.for_host(netloc, path) is not None
        except Exception as error:  # noqa: BLE001 - the callee raises it if it is not ours
            return self._asked_again(lambda gate: gate.book.for_host(netloc, path), error, netloc, None) is not None

    def match(self, outbound: Outbound | None, family: Family | None = None) -> Provider | None:
        """Return the rules for a request; None: it passes. `family`: of the error, if the gate cannot tell."""
        if outbound is None:
            return None
        try:
            return self.gate.match(outbound.netloc, outbound.path)
        except Exception as error:  # noqa: BLE001 - the callee raises it if it is not ours
            return self.match_anyhow(outbound, family, error)

    def match_anyhow(self, outbound: Outbound, family: Family | None, error: Exception) -> Provider | None:
        """Do the same as `match` with the spare gate, after the gate has raised `error`."""
        netloc, path = outbound.netloc, outbound.path
        return self._asked_again(lambda gate: gate.match(netloc, path), error, netloc, family)

    @property
    def pipeline(self) -> Pipeline | None:
        """The policies around calls; None if the gate cannot be asked."""
        try:
            return self.gate.pipeline
        except Exception as error:
            if not self.excuses(error):
                raise
            return None

    def excuses(self, error: Exception) -> bool:
        """Whether calls go on after an error: the error is ours, and the program has no explicit gate."""
        return self.lenient and ours(error)

    def _asked_again(self, ask: Callable[[Gate], T], error: Exception, netloc: str, family: Family | None) -> T | None:
        """Ask the spare gate after the gate has raised `error`. None: the call passes ungoverned."""
        other = self.instead(error, netloc, family)
        if other is None:
            return None
        try:
            return ask(other.gate)
        except Exception as problem:
            raise refused(problem, netloc, family) from problem

    def instead(self, error: Exception, netloc: str, family: Family | None) -> Governor | None:
        """Return the governor of a call after an internal error: the spare gate's. None: none, because the user has set that.

        Raises:
            Exception: the error itself, if it is not ours.
            RatekeeperError: the gate cannot be created, or the spare gate cannot.
        """
        if not self.lenient or not ours(error):
            raise error
        if self._ungoverned():
            log.warning(PASSES, netloc, exc_info=error)
            return None
        if isinstance(error, RatekeeperError) and not isinstance(error, StoreUnavailable):
            # An unreadable configuration may concern any host.
            raise refused(error, netloc, family) from error
        if not self._told:
            self._told = True
            log.warning("ratekeeper: a call to %s could not be governed as usual: a safe share", netloc, exc_info=error)
        try:
            from ratekeeper.gate.gate import Gate

            return Governor(Gate.spare(), priority=self.priority, timeout=self.timeout)
        except Exception as problem:  # noqa: BLE001 - an error that is not ours is raised unchanged
            raise refused(problem, netloc, family) from error

    def _ungoverned(self) -> bool:
        """Whether the user prefers ungoverned calls to refused ones."""
        if switched_on(os.environ.get(UNGOVERNED_ON_ERROR, "")):
            return True
        try:
            return self.gate.ungoverned_on_error
        except Exception:  # noqa: BLE001 - there is no gate, so no such setting
            return False


def refused(error: Exception, netloc: str, family: Family | None) -> Exception:
    """Return the error for a call that Ratekeeper cannot govern."""
    if not ours(error):
        return error
    said = RatekeeperError(
        f"the call to {netloc} is refused, for Ratekeeper cannot govern it: {type(error).__name__}: {error}."
        " (RATEKEEPER_UNGOVERNED_ON_ERROR=1 lets such calls pass)"
    )
    return said if family is None else in_family(said, family)
