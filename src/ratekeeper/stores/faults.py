"""Whose fault an unexpected exception is: ours, which the safe share answers, or that of the program, which must have it.

An exception that a signal's handler raises (a soft time limit, an alarm) strikes in the middle of whatever runs, and looks
like an error of that. It belongs to the program: nobody of us may swallow it, nor go on as if nothing had happened.
"""

from __future__ import annotations

import functools
import signal
import sys
from types import CodeType
from typing import Any, Final

__all__ = ["ours", "struck"]

_OURS: Final = frozenset({"ratekeeper", "msgspec", "lmdb", "redis", *sys.stdlib_module_names}) - {"__main__"}


def struck(error: BaseException) -> bool:
    """Whether a signal's handler raised it, as far as the handlers that are set now can tell."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def ours(error: BaseException) -> bool:
    """Whether it came out of our own code, or of a library that only we call."""
    if not isinstance(error, Exception) or struck(error):
        return False
    trace, name = error.__traceback__, "ratekeeper"
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return name.partition(".")[0] in _OURS


def _code(handler: Any) -> CodeType | None:
    if isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)
    if not hasattr(handler, "__code__") and callable(handler):
        handler = vars(type(handler)).get("__call__")
    return getattr(handler, "__code__", None)
