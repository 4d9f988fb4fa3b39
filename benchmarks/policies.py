"""What the policies around a call cost, beside the same stacked by hand from the usual libraries."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["stacks"]

PATH = "/fapi/v1/klines"


def stacks(count: int, rounds: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Microseconds per synchronous call that succeeds at once: one that must be made, and one whose answer is kept."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(rounds):
        for name, make in _CONTENDERS.items():
            for kept in (False, True):
                run, close = make(folder / f"{turn}", kept)
                try:
                    run(0)  # what is made on first use, and what is kept
                    begun = time.perf_counter()
                    for number in range(count):
                        run(0 if kept else number + 1)
                    took = (time.perf_counter() - begun) / count * 1e6
                finally:
                    close()
                found.setdefault(name, ([], []))[kept].append(took)
    return {name: (statistics.median(made), statistics.median(hits)) for name, (made, hits) in found.items()}


Made = tuple[Callable[[int], Any], Callable[[], None]]


def _answer(_permit: Any = None) -> tuple[int, dict[str, str], bytes]:
    return 200, {"content-type": "application/json"}, b"[]"


def _ratekeeper(store: str) -> Callable[[Path, bool], Made]:
    def make(home: Path, kept: bool) -> Made:
        from ratekeeper import Cache, Gate, Policies

        policies = Policies(retry=True, breaker=True, batch=True, cache=Cache(market=3600.0) if kept else True)
        # A limit that is never reached, or the calls would wait.
        rules = Path(__file__).parent / "roomy.toml"
        gate = Gate(store, home=home, hosts={}, rules=[rules], learn=False, policies=policies)

        def run(number: int) -> Any:
            return gate.call("roomy", "GET", "/item" if kept else "/order-book", _answer, params={"id": number})

        return run, gate.close

    return make


def _stacked(retrying: str) -> Callable[[Path, bool], Made]:
    def make(home: Path, kept: bool) -> Made:
        import cachetools
        import limits
        import pybreaker

        limiter = limits.strategies.FixedWindowRateLimiter(limits.storage.MemoryStorage())
        item = limits.RateLimitItemPerMinute(10**9)
        breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=5)
        cache: Any = cachetools.TTLCache(maxsize=10_000, ttl=3600)
        again = _again(retrying)

        def attempt() -> Any:
            while not limiter.hit(item):
                time.sleep(0.01)
            return breaker.call(_answer)

        def run(number: int) -> Any:
            if kept and number in cache:
                return cache[number]
            answer = again(attempt)
            if kept:
                cache[number] = answer
            return answer

        return run, lambda: None

    return make


def _again(library: str) -> Callable[[Callable[[], Any]], Any]:
    if library == "stamina":
        import stamina

        return stamina.RetryingCaller(attempts=6).on(OSError)  # type: ignore[no-any-return]
    import tenacity

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(6),
        wait=tenacity.wait_random_exponential(multiplier=1, max=32),
        retry=tenacity.retry_if_exception_type(OSError),
    )


_CONTENDERS: dict[str, Callable[[Path, bool], Made]] = {
    "ratekeeper, memory://": _ratekeeper("memory://"),
    "ratekeeper, host:// (all processes)": _ratekeeper("host://"),
    "tenacity + pybreaker + limits + cachetools": _stacked("tenacity"),
    "stamina + pybreaker + limits + cachetools": _stacked("stamina"),
}
