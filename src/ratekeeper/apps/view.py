"""What all processes share, as data and as a screen: for ``ratekeeper status``, ``top`` and the demo.

What is not used (reserved, set aside, carried over, held for others) never counts as used: it stands beside it, in words.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from ratekeeper.apps.layout import columns, paragraph, shorten
from ratekeeper.config.resolution import configure
from ratekeeper.config.schema import store_address
from ratekeeper.gate.override import spoken
from ratekeeper.gate.waits import Wait
from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.ledger.shares import AGED
from ratekeeper.pools.pool import AddressView
from ratekeeper.rules.call import Priority
from ratekeeper.rules.times import real_period
from ratekeeper.stores.inforce import PACED
from ratekeeper.stores.records import LedgerView, Snapshot
from ratekeeper.stores.redis.address import is_address, parse_address

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

__all__ = ["as_data", "as_table"]

_LEAST: Final = 16
"""The scope of a block keeps at least so many columns."""
_BAR: Final = 20
_LONG: Final = 30 * SECOND
_COLOURS: Final = {"active": "green", "warning": "yellow", "resting": "yellow", "banned": "red"}


# -- data --------------------------------------------------------------------------------------------------------------


def as_data(
    found: Snapshot, waits: dict[Priority, Wait], addresses: Iterable[AddressView] = (), here: int | None = None
) -> dict[str, Any]:
    """The snapshot as JSON types; times in Unix seconds, periods in seconds.

    Args:
        found, waits, addresses: of the store.
        here: living processes of this machine, where the store does not tell them by name.
    """
    mono, wall = time.monotonic_ns(), time.time()
    name = store_address(str(configure().store))
    return {
        "home": str(configure().home),
        "store": str(parse_address(name)) if is_address(name) else name,
        "degraded": found.degraded,
        "processes": sorted(found.members.values()),
        "processes_here": len(found.members) if here is None else here,
        "permits_held": found.permits,
        "limits": [_ledger(view, found) for view in sorted(found.ledgers, key=lambda v: v.key)],
        "blocks": [
            {
                "scope": block.scope,
                "kind": block.kind,
                "reason": block.reason,
                "until": None if block.length is None else round(wall + (block.ends() - mono) / SECOND, 3),
            }
            for block in found.blocks
            if block.ends() > mono
        ],
        "addresses": [_address(view, mono, wall) for view in addresses],
        "waits": {
            priority.name.lower(): {
                "calls": wait.calls,
                "mean_seconds": round(wait.total / max(1, wait.calls) / SECOND, 3),
                "longest_seconds": round(wait.longest / SECOND, 3),
            }
            for priority, wait in waits.items()
        },
        "learned": {
            provider: {
                name: {"capacity": c, "seconds": p / SECOND} for name, (c, p) in limits.items() if name[0] != "~"
            }
            for provider, limits in found.learned.items()
        },
    }


def _ledger(view: LedgerView, found: Snapshot) -> dict[str, Any]:
    provider, name, scope = (*view.key.split("/", 2), "", "")[:3]
    known, ledger = found.learned.get(provider, {}), view.key[len(provider) + 1 :]
    names = found.former | found.members
    part = known.get(PACED + ledger, (1000, 0))[0]
    used, inflight = view.used - view.carried, view.inflight - view.held
    taken = sum(row[0] + row[1] for row in view.rows.values())
    # Rows tell of this window and the last. Units of a slow call on a short one may be older.
    counted = view.limit.window in (Window.FIXED, Window.SLIDING) and view.limit.period >= _LONG
    return {
        "provider": provider.partition("@")[0],
        "host": provider.partition("@")[2],
        "limit": name,
        "scope": scope,
        "window": str(view.limit.window),
        "seconds": view.limit.period / SECOND,
        "capacity": view.limit.capacity,
        "headroom": view.limit.headroom,
        "pace": part / 1000 if 0 < part < 1000 else None,
        "stated": ledger in known or name in known,
        "used": used,
        "inflight": inflight,
        "carried": view.carried,
        "set_aside": max(0, view.expected - view.foreign),
        "held": view.held,
        "utilisation": round((view.used + view.inflight) / view.limit.usable, 4),
        "foreign": view.foreign,
        "foreign_expected": view.expected,
        "unexplained": max(0, used - view.foreign - taken) if counted else 0,
        "spenders": [
            {
                "process": names.get(member, f"gone-{member % 10000:04d}"),
                "priority": Priority(priority % AGED).name.lower(),
                "taken": row[0],
                "taken_before": row[1],
                "waiting": row[3],
            }
            for (member, priority), row in sorted(view.rows.items(), key=lambda item: -item[1][0])
        ],
    }


def _address(view: AddressView, mono: int, wall: float) -> dict[str, Any]:
    fullest = view.fullest
    used, taken = (fullest.used - fullest.carried, fullest.used + fullest.inflight) if fullest is not None else (0, 0)
    return {
        "provider": view.provider.partition("@")[0],
        "host": view.provider.partition("@")[2],
        "address": view.name,
        "leaves": view.leaves,
        "scope": view.scope,
        "state": view.state,
        "warnings": view.warnings,
        "until": round(wall + (view.until - mono) / SECOND, 3) if view.until else None,
        "limit": "" if fullest is None else fullest.key.split("/")[1],
        "used": used,
        "capacity": 0 if fullest is None else fullest.limit.capacity,
        "utilisation": 0.0 if fullest is None else round(taken / fullest.limit.usable, 4),
    }


# -- a screen ----------------------------------------------------------------------------------------------------------


def as_table(data: dict[str, Any]) -> RenderableType:
    """The state for a terminal of any width."""
    return _Screen(data)


class _Screen:
    """The state, drawn for the width that it is given."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        data, width = self._data, options.max_width
        if data["degraded"]:
            yield Text(f"SAFE SHARE: {_clean(data['degraded'])}", style="bold red")
            yield Text("Programs go on, each with its share of every limit. This machine knows:", style="red")
        for block in data["blocks"]:
            yield _block(block, width)
        if data["limits"]:
            yield from _limits(data["limits"], width)
            # One address without a name needs no table of its own: its limits are all above.
            if len(data["addresses"]) > 1 or any(row["state"] != "active" for row in data["addresses"]):
                yield from _addresses(data["addresses"], width)
            yield from _spenders(data["limits"], width)
        elif not data["degraded"]:
            place = data["store"] if is_address(data["store"]) else data["home"]
            yield Text(f"Nothing has been spent under {place} yet. Try: ratekeeper run -- python your_bot.py")
        for priority, wait in data["waits"].items():
            text = f"waited, {priority}: {wait['calls']:,} calls, {wait['mean_seconds']:.1f} s on average, "
            yield Text(f"{text}{wait['longest_seconds']:.1f} s at longest", style="dim")
        names = ", ".join(shorten(name, width // 2) for name in data["processes"])
        if not names:
            names = f"{data['processes_here']} on this machine" if data["processes_here"] else "none"
        yield Text(f"processes: {names}", style="dim")
        if not data["degraded"]:
            yield Text(f"permits held: {data['permits_held']:,}", style="dim")


def _block(block: dict[str, Any], width: int) -> Text:
    from rich.text import Text

    end = "until resumed" if block["until"] is None else f"for {max(0.0, block['until'] - time.time()):.0f} s more"
    kind = block["kind"].upper()
    scope = shorten(spoken(block["scope"]), max(_LEAST, width - len(kind) - len(end) - 2))
    return Text(f"{kind} {scope} {end}  {_clean(block['reason'])}".rstrip(), style="bold red")


def _limits(limits: list[dict[str, Any]], width: int) -> Iterator[Text]:
    from rich.text import Text

    rows = [
        (
            f"  {row['limit']}{real_period(row['limit'], round(row['seconds'] * SECOND))} ",
            row["scope"],
            (f"{row['window']} {_span(row['seconds'])}".rstrip(), f"{_in_use(row):,} of {row['capacity']:,}"),
        )
        for row in limits
    ]
    longest = max(len(head + name) + len("  ".join(cells)) + 2 for head, name, cells in rows)
    bar = _BAR if longest + 2 + _BAR <= width else _BAR // 2 if width >= 4 * _BAR else 0
    heads, *lines = columns([("limit", "", ("window", "used")), *rows], width - bar - 2, right=(1,))
    yield Text(heads[0], style="bold")
    owner = None
    for row, told in zip(limits, lines, strict=True):
        now = row["provider"] + (f" at {row['host']}" if row["host"] else "")
        if now != owner:
            owner = now
            yield Text(shorten(owner, width), style="bold cyan")
        taken = _in_use(row) + row["carried"] + row["set_aside"] + row["held"]
        taken += row["inflight"] if row["window"] != Window.SLOTS else 0
        usable = max(1, row["capacity"] - row["headroom"])
        share, full = min(1.0, _in_use(row) / usable), min(1.0, taken / usable)
        colour = "red" if full >= 0.9 else "yellow" if full >= 0.7 else "green"
        for line in told:
            drawn = Text(line)
            if line is told[-1] and round(bar * full):
                drawn.append("  " + "█" * round(bar * share), style=colour)
                drawn.append("░" * (round(bar * full) - round(bar * share)), style=colour)
            yield drawn
        if notes := list(_notes(row)):
            yield paragraph("; ".join(notes), width)


def _in_use(row: dict[str, Any]) -> int:
    """What a limit's column of used units shows: of slots, which nobody uses up, those in use."""
    return int(row["inflight"] if row["window"] == Window.SLOTS else row["used"])


def _notes(row: dict[str, Any]) -> Iterator[str]:
    """All about a limit that its number of used units does not tell."""
    if row["inflight"] and row["window"] != Window.SLOTS:
        yield f"{row['inflight']:,} more reserved for calls under way"
    if row["carried"]:
        yield f"{row['carried']:,} more carried over from the last window"
    if row["foreign"]:
        yield f"{row['foreign']:,} of it used by other programs"
    if row["set_aside"]:
        yield f"{row['set_aside']:,} more set aside for other programs"
    if row["unexplained"]:
        yield f"{row['unexplained']:,} of it sent by no program here, or counted to be safe"
    if row["held"]:
        yield f"{row['held']:,} more held for programs that cannot reach the store"
    if row["pace"] is not None:
        yield f"paced after a refusal: {row['pace']:.0%} of it for now"
    elif row["headroom"]:
        yield f"{row['headroom']:,} left unused (headroom)"
    if row["stated"]:
        yield "stated by the provider"


def _addresses(rows: list[dict[str, Any]], width: int) -> Iterator[Text]:
    from rich.text import Text

    told = []
    for row in rows:
        end = f" for {max(0.0, row['until'] - time.time()):.0f} s more" if row["until"] else ""
        shown = row["scope"] if row["scope"] != row["address"] else row["leaves"]
        told.append(
            (
                f"  {row['provider']} ",
                row["address"] + ("" if shown in ("default", row["address"]) else f" ({shown})"),
                (
                    row["state"] + end,
                    f"{row['used'] / max(1, row['capacity']):.0%}",
                    f"{row['limit']} {row['used']:,} of {row['capacity']:,}" if row["limit"] else "nothing yet",
                    str(row["warnings"] or ""),
                ),
            )
        )
    heads, *lines = columns([("address", "", ("state", "used", "of", "warnings")), *told], width, right=(1, 3))
    yield Text()
    yield Text(heads[0], style="bold")
    for row, made in zip(rows, lines, strict=True):
        for line in made:
            drawn = Text(line)
            if line is made[-1]:
                drawn.highlight_words([row["state"]], style=_COLOURS[row["state"]])
            yield drawn


def _spenders(limits: list[dict[str, Any]], width: int) -> Iterator[Text]:
    from rich.text import Text

    lines = []
    for row in limits:
        who = [
            f"{shorten(each['process'], width // 2)} {each['priority']} {each['taken']:,}"
            + (f" ({each['waiting']:,} waiting)" if each["waiting"] else "")
            for each in row["spenders"]
            if each["taken"] or each["waiting"]
        ]
        if row["foreign"] or row["foreign_expected"]:
            more = f" ({row['foreign_expected']:,} expected)" if row["foreign_expected"] else ""
            who.append(f"other programs {row['foreign']:,}{more}")
        if who:
            lines.append(paragraph(f"{row['limit']}: {', '.join(who)}", width, 2))
    if lines:
        yield Text()
        yield Text("taken in this window by", style="bold")
        yield from lines
        yield Text()


def _clean(text: str) -> str:
    return shorten(text, len(text) * 2)


def _span(seconds: float) -> str:
    """A period as the configuration writes it; ``""`` of slots."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s" if seconds else ""
