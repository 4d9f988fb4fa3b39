"""What happened, from what the exchange itself has counted. Instants are Unix seconds of its clock."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ON_THE_WAY = 1.0
"""Seconds after the first refusal of a ban in which requests may arrive that had left before anybody knew."""


@dataclass(frozen=True)
class Span:
    """The part of the run that counts: whole windows."""

    begin: float
    end: float
    window: float

    def windows(self) -> list[float]:
        """Their starts."""
        return [self.begin + n * self.window for n in range(round((self.end - self.begin) / self.window))]


def utilisation(stats: Mapping[str, Any], span: Span, ban: tuple[str, float, float], addresses: list[str]) -> Any:
    """By address, and of all together: used and offered weight over whole windows in which the address was not banned."""
    capacity = stats["limits"][stats["main"]]["capacity"]
    rows = [row for row in stats["windows"] if row["limit"] == stats["main"]]
    used = {(row["owner"].removeprefix("ip:"), row["start"]): row["accepted"] for row in rows}
    shut, since, until = ban
    found, total = {}, Counter[str]()
    for address in addresses:
        free = [at for at in span.windows() if address != shut or at + span.window <= since or at >= until]
        spent = sum(used.get((address, at), 0) for at in free)
        found[address] = round(spent / (capacity * len(free)), 4)
        total.update(used=spent, offered=capacity * len(free))
    return found, {**total, "utilisation": round(total["used"] / total["offered"], 4)}


def the_ban(rows: list[dict[str, Any]], ban: tuple[str, float, float]) -> dict[str, Any]:
    """What became of the banned address.

    Args:
        rows: every arrival at the exchange, in order.
        ban: address, from, until.
    """
    address, since, until = ban
    there = [row for row in rows if row["ip"] == address]
    refused = [row["t"] for row in there if row["status"] == 418]
    known = min(refused, default=since)
    after = [row["t"] for row in there if row["t"] >= until]
    return {
        "address": address,
        "seconds": round(until - since, 3),
        "met_after": round(known - since, 3),
        "on_the_way": sum(at <= known + ON_THE_WAY for at in refused),
        "sent_during_the_ban": sum(at > known + ON_THE_WAY for at in refused),
        "served_by_others": sum(since < row["t"] < until and row["ip"] != address for row in rows),
        "taken_back_after": round(after[0] - until, 3) if after else None,
    }


def answered(stats: Mapping[str, Any]) -> dict[str, int]:
    """Calls let through so far, by program."""
    return {
        name: counts["arrivals"] - counts["throttled"] - counts["banned"]
        for name, counts in stats["clients"].items()
        if name in ("collector", "trader", "monitor")
    }
