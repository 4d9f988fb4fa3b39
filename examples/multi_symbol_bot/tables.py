"""Two tables, ``python tables.py [SECONDS]``: how much of each endpoint's budget is used, and what Bitget's codes mean."""

import sys
import time

from rich.console import Console
from rich.table import Table

from ratekeeper import Gate, Retry
from ratekeeper.gate.call import tried_of
from ratekeeper.policy.retry import Again, Repeat
from ratekeeper.rules.call import Answer, Request

CODES = (
    (429, "429", "Too Many Requests", "a limit is used up; the code is text"),
    (400, "30001", "header is empty", "of the old API: no limit at all"),
    (400, "30007", "header is wrong", "the same; only on a websocket it means too many requests"),
    (400, "40010", "Request timed out", "inside Bitget: an order may stand all the same"),
    (400, "45110", "less than the minimum amount 5 USDT", "the order is too small"),
    (503, "", "", "Bitget is in trouble, which is not a quota"),
)
"""Status, code, text, and what it means. The texts of the first three are made up; nobody compares them."""


def usage(gate: Gate, seconds: float) -> Table:
    """Each endpoint's budget: the most that was used of it at one moment of the next `seconds`."""
    peaks: dict[str, tuple[float, int, int, int]] = {}
    end = time.monotonic() + seconds
    while True:
        for view in gate.read().ledgers:
            used = view.used + view.inflight
            known = peaks.get(view.key, (0.0, 0, 0, 0))
            peaks[view.key] = max(known, (used / view.limit.usable, used, view.limit.usable, view.foreign))
        if time.monotonic() >= end:
            break
        time.sleep(0.05)
    table = Table(
        "endpoint", "whose", "used at most", "of", "others'", title=f"usage in {seconds:g} s", title_justify="left"
    )
    for key, (share, used, usable, foreign) in sorted(peaks.items(), key=lambda item: -item[1][0]):
        whose, _, endpoint = key.split("/", 2)[2].partition("endpoint:")
        if not used:
            continue
        colour = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
        shown = f"[{colour}]{used:,} ({share:.0%})[/]"
        table.add_row(
            endpoint.replace("/", " /", 1) or "all together", whose.strip(","), shown, f"{usable:,}", f"{foreign or ''}"
        )
    return table


def errors(gate: Gate) -> Table:
    """What Ratekeeper takes Bitget's answers for, and what follows for an order and for a question."""
    rules, retry = gate.provider("bitget"), gate.policies.retry
    retry = retry if isinstance(retry, Retry) else Retry()
    table = Table(
        "status, code", "is taken for", "an order", "a question", "it means", title="answers", title_justify="left"
    )
    for status, code, text, meaning in CODES:
        body = f'{{"code": "{code}", "msg": "{text}"}}'.encode() if code else b""
        follows, outcome = [], ""
        calls = (Request("POST", "/api/v2/mix/order/place-order"), Request("GET", "/api/v2/mix/order/detail"))
        for call, safe in zip(calls, (False, True), strict=True):
            told = rules.feedback(gate.plan(rules, call), Answer(status, {}, body), now=time.time_ns())
            outcome = str(told.outcome)
            verdict = retry.next(Repeat(safe, 0.0, 900.0), tried_of(told, 0.0), 1, 0.0, 0.5)
            if isinstance(verdict, Again):
                follows.append("made again")
            else:
                follows.append("its fate is unknown: ask" if verdict.unknown else "an error")
        table.add_row(f"{status} {code}", outcome, *follows, meaning)
    return table


if __name__ == "__main__":
    with Gate() as opened:
        console = Console(width=150)
        console.print(usage(opened, float(sys.argv[1]) if len(sys.argv) > 1 else 2.0))
        console.print(errors(opened))
