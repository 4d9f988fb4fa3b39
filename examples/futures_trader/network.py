"""How the network fares, as a history that can be plotted: ``python network.py report [FILE]``.

Each line of the file is one probe: ``at`` (Unix seconds), ``ms`` (response time; null if there was none), ``interval``
(seconds to the next), and what happened since the line before.
"""

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from ratekeeper import Event, Gate, Interval, Poller, Rejected

COUNTED = ("errors", "retries", "retried", "gave_up", "unknown", "throttled", "bans", "stale")
TROUBLE = ("network", "unknown", "overloaded", "failed")
"""What is the network's or the exchange's fault, and not a limit's."""


class Monitor:
    """Probes the exchange with one small call that is never repeated, and counts what all other calls go through.

    Args:
        gate: whose events are counted, and whose limits the probe pays.
        url: of the exchange.
        file: to which lines are appended.
        interval: of the probes. It grows in trouble, and what can wait follows it.
        timeout: seconds that an answer may take.
    """

    def __init__(self, gate: Gate, url: str, file: Path, interval: Interval, timeout: float) -> None:
        self.interval = interval
        self.poller: Poller[float] = Poller(self._probe, interval, on=self._write, on_error=self._failed)
        self._gate, self._file = gate, file
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout)
        self._provider = gate.match(self._client.base_url.netloc.decode())
        self._seen: Counter[str] = Counter()
        gate.on(self._hear)

    @property
    def strained(self) -> bool:
        """Whether so many probes failed that the interval has grown."""
        return self.poller.seconds >= 2 * self.interval.shortest

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _probe(self) -> float:
        """Milliseconds from asking to the answer; the wait for leave is not among them."""
        assert self._provider is not None, "no rules for this host: set RATEKEEPER_HOSTS"
        async with self._gate.permit(self._provider, "GET", "/fapi/v1/ping", priority="high") as permit:
            began = time.monotonic()
            answer = await self._client.get("/fapi/v1/ping")
            took = (time.monotonic() - began) * 1000
            permit.settle(answer.status_code, answer.headers, answer.content)
        answer.raise_for_status()
        return took

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, Rejected):  # a ban or an open breaker: nothing was sent
            self._seen["errors"] += 1
        self._write(None)

    def _hear(self, event: Event) -> None:
        seen = self._seen
        match event.kind:
            case "retry":
                seen["retries"] += 1
                seen["retried"] += event.fields["attempt"] == 2
                seen["errors"] += event.fields["outcome"] in TROUBLE
            case "gave up":
                seen["gave_up"] += event.fields["tries"] > 1
                seen["errors"] += 1
            case "unknown":
                seen["unknown"] += 1
                seen["errors"] += 1
            case "throttled":
                seen["throttled"] += 1
            case "banned":
                seen["bans"] += 1
            case "cache stale":
                seen["stale"] += 1

    def _write(self, took: float | None) -> None:
        seen, self._seen = self._seen, Counter()
        line = {"at": round(time.time(), 3), "ms": None if took is None else round(took, 2)}
        line |= {"interval": self.poller.seconds, **{name: seen[name] for name in COUNTED}}
        with self._file.open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")


def report(file: Path) -> dict[str, Any]:
    """What the history comes to."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    total: Counter[str] = Counter()
    for row in rows:
        total.update({name: row[name] for name in COUNTED})
    hours = (rows[-1]["at"] - rows[0]["at"]) / 3600 if len(rows) > 1 else 0.0
    took = sorted(row["ms"] for row in rows if row["ms"] is not None)
    retried = total["retried"]
    return {
        "hours": round(hours, 3),
        "probes": len(rows),
        "answered": len(took),
        "ms_median": statistics.median(took) if took else None,
        "ms_95": took[int(0.95 * (len(took) - 1))] if took else None,
        "errors_per_hour": round(total["errors"] / hours, 1) if hours else None,
        "retries_succeeded": round(max(0, retried - total["gave_up"]) / retried, 3) if retried else None,
        "bans_per_day": round(total["bans"] / hours * 24, 1) if hours else None,
        **{name: total[name] for name in COUNTED},
    }


if __name__ == "__main__":
    if sys.argv[1:2] != ["report"]:
        raise SystemExit("python network.py report [FILE]")
    for name, value in report(Path(sys.argv[2] if len(sys.argv) > 2 else "network.jsonl")).items():
        print(f"{name:18} {'-' if value is None else value}")
