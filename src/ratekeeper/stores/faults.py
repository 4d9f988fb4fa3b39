"""Whose fault an unexpected exception is: ours, which the fallback handles, or the program's, which must receive it.

An exception that a signal handler raises (a soft time limit, an alarm) strikes in whatever code runs, and looks like an error
of that code. It belongs to the program. Our code must neither swallow it nor go on as if nothing had happened.
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
    """Whether a signal handler raised it, as far as the currently installed handlers show."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def ours(error: BaseException) -> bool:
    """Whether it came from our own code, or from a library that only our code calls."""
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
