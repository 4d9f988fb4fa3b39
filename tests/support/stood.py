"""How long the machine let nobody here run: what is not used meanwhile says nothing about the arithmetic."""

from __future__ import annotations

import threading
import time
from types import TracebackType

__all__ = ["Stood"]

_TICK = 0.005


class Stood:
    """Measures in a ``with`` block, in a thread of its own.

    A thread that is due to run and does not, while its process uses no processor either, waits for a processor that others
    have. Time in which this process works is not counted, however late it makes anybody.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.is_set():
            begin, used = time.time(), time.process_time()
            time.sleep(_TICK)
            late = time.time() - begin - 2 * _TICK - (time.process_time() - used)
            if late > 0:
                self._spans.append((begin, late))

    def share(self, begin: float, end: float) -> float:
        """The part of the time between two instants (Unix seconds) that was lost."""
        return min(1.0, sum(late for at, late in self._spans if begin <= at < end) / (end - begin))

    def __enter__(self) -> Stood:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
