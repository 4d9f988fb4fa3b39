"""The demo for the eye: one picture that grows while it runs, and stays when it is over."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ratekeeper.apps.demo.stage import Half, Plan

__all__ = ["closing", "live", "plain_line"]

WIDTH = 80
STRIP = 72
"""Characters of the strip of time."""
BARS = " ▁▂▃▄▅▆▇█"
SHUT = "\N{BOX DRAWINGS LIGHT DIAGONAL UPPER RIGHT TO LOWER LEFT}"
GOOD, WARN, BAD = "green3", "dark_orange", "red3"
NAMES = {False: "Without Ratekeeper", True: "With Ratekeeper"}
COMMANDS = {False: "python bot.py", True: "ratekeeper run -- python bot.py"}


def live(plan: Plan, bare: Half, governed: Half, wait: float) -> RenderableType:
    """The demo as it stands; `wait`: seconds until it begins."""
    first = bare.seconds < plan.seconds and not governed.seconds
    return _column(
        _intro(plan),
        _panel(plan, bare, full=first, note=f"begins with the next window, in {wait:.0f} s" if wait else ""),
        _panel(plan, governed, full=not first, note="comes next: the same three programs, not a line changed"),
    )


def closing(plan: Plan, bare: Half, governed: Half) -> RenderableType:
    """What stays on the screen."""
    return _column(
        _intro(plan),
        _panel(plan, bare, full=False),
        _panel(plan, governed, full=False),
        Padding(_comparison(plan, bare, governed), (0, 2)),
        Padding(_words(bare, governed), (0, 2, 1, 2)),
    )


def plain_line(plan: Plan, half: Half) -> str:
    """The present state in one line, where there is no terminal."""
    said = f"{NAMES[half.governed]:<16} {half.seconds:4.0f} s   window {half.level:5,} of {half.capacity:,}   "
    said += f"answered {half.answered:5,}   refused (429) {half.throttled:3,}   banned (418) {half.banned:5,}"
    return said + (f"   locked out for {half.banned_for:.0f} s more" if half.banned_for else "")


# -- parts -----------------------------------------------------------------------------------------------------------


def _column(*parts: RenderableType) -> RenderableType:
    grid = Table.grid()
    grid.add_column(width=WIDTH)
    for part in parts:
        grid.add_row(part)
    return grid


def _intro(plan: Plan) -> RenderableType:
    if plan.real:
        budget = "2,400 weight a minute, by Binance's rules for futures"
    else:
        budget = f"2,400 weight per {plan.window} s: Binance's rules, but {plan.window}-second windows for minutes"
    text = Text()
    text.append("Three programs, one IP address, one budget\n", style="bold")
    text.append(
        f"A ccxt bot, a requests scanner and an httpx dashboard each want all they can get. Together they may spend "
        f"{budget}. An emulator on this machine enforces them: too much is refused (429), going on is banned (418).",
        style="dim",
    )
    return Padding(text, (1, 2))


def _panel(plan: Plan, half: Half, *, full: bool, note: str = "") -> RenderableType:
    begun = half.seconds > 0
    title = Text.assemble((f" {NAMES[half.governed]}", "bold"), (f"  {COMMANDS[half.governed]} ", "cyan"))
    parts: list[RenderableType] = []
    if begun:
        parts.append(_strip(plan, half))
        if full:
            parts += [Text(), _programs(half), Text()]
        parts.append(_status(plan, half))
    else:
        parts.append(Text(note, style="dim"))
    return Panel(
        Group(*parts),
        title=title,
        title_align="left",
        box=box.ROUNDED,
        padding=(0, 2),
        border_style=("dim" if not begun else GOOD if not half.throttled + half.banned else BAD),
    )


def _strip(plan: Plan, half: Half) -> RenderableType:
    """How full the window was, from left to right; refusals and bans in colour; a ruler below."""
    step = plan.seconds / STRIP
    cells: list[tuple[float, str]] = []
    at = 0
    level, seen = 0.0, ""
    for cell in range(min(STRIP, int(half.seconds / step + 0.5))):
        hit = ""
        while at < len(half.trace) and half.trace[at][0] < (cell + 1) * step:
            _, level, seen = half.trace[at]
            hit = hit or seen
            at += 1
        cells.append((level, hit or ("418" if seen == "418" else "")))
    text = Text()
    for level, seen in cells:
        if seen == "418":
            text.append(SHUT, style=BAD)
        else:
            text.append(BARS[max(1, round(level * 8)) if level else 0], style=WARN if seen else GOOD)
    text.append("·" * (STRIP - len(cells)), style="bright_black")
    ruler = "".join(f"{f'{number * plan.window} s':<{STRIP // plan.windows}}" for number in range(plan.windows))
    return Group(text, Text(ruler, style="bright_black"))


def _programs(half: Half) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("program", no_wrap=True)
    for heading in ("answered", "refused (429)", "banned (418)", "share", *(["waiting"] if half.governed else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in half.programs:
        share = f"{half.share(each):.0%}" if each.weight else ""
        waiting = [f"{each.waiting:,}"] if half.governed else []
        table.add_row(each.name, f"{each.answered:,}", _bad(each.throttled), _bad(each.banned), share, *waiting)
    return table


def _bad(count: int) -> Text:
    return Text(f"{count:,}", style=f"bold {BAD}" if count else GOOD)


def _status(plan: Plan, half: Half) -> RenderableType:
    if half.seconds >= plan.seconds:
        text = Text.assemble((f"{half.budget_used:.1%}", "bold"), " of the budget used   ")
        for count, what in ((half.throttled, "refused"), (half.bans, "bans" if half.bans != 1 else "ban")):
            text.append_text(_bad(count)).append(f" {what}   ")
        if half.banned_seconds:
            text.append(f"locked out for {half.banned_seconds:.0f} of {plan.seconds} s", style=BAD)
        return text
    if half.banned_for:
        return Text(
            f"BANNED: the exchange answers none of the three for {half.banned_for:.0f} s more", style=f"bold {BAD}"
        )
    left = plan.window - half.seconds % plan.window
    if half.governed and half.level >= half.capacity * 0.97:
        return Text(f"All {half.capacity:,} are used: further calls wait {left:.0f} s for the next window", style=GOOD)
    text = Text(f"{half.level:,} of {half.capacity:,} weight used, next window in {left:.0f} s")
    if half.throttled and half.level >= half.capacity * 0.9:
        text.append(f"   refused: {half.throttled}", style=f"bold {WARN}")
    return text


def _comparison(plan: Plan, bare: Half, governed: Half) -> RenderableType:
    halves = (bare, governed)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", min_width=30)
    for half in halves:
        table.add_column(NAMES[half.governed], justify="right", min_width=16)

    def row(name: str, *cells: str | Text) -> None:
        table.add_row(name, *cells)

    row("Share of the budget used", *(Text(f"{half.budget_used:.1%}", style="bold") for half in halves))
    each = [" · ".join(f"{share:.0%}" for share in half.windows) for half in halves]
    row(f"  in each {plan.window} s window", *(Text(text, style="dim") for text in each))
    shares = [" · ".join(f"{half.share(program):.0%}" for program in half.programs) for half in halves]
    row("  in the last one, by program", *(Text(text, style="dim") for text in shares))
    row("Calls answered", *(f"{half.answered:,}" for half in halves))
    row("Calls refused (429)", *(_bad(half.throttled) for half in halves))
    row("Calls refused by a ban (418)", *(_bad(half.banned) for half in halves))
    row("Bans", *(_bad(half.bans) for half in halves))
    row("Locked out", *(_bad(round(half.banned_seconds)).append(f" s of {plan.seconds} s") for half in halves))
    for priority, wait in governed.waits.items():
        spans = f"{wait['mean_seconds']:.1f} s · {wait['longest_seconds']:.1f} s"
        row(f"Waits, {priority} class: mean · longest", "", spans)
    return table


def _words(bare: Half, governed: Half) -> RenderableType:
    if bare.bans:
        without = (
            "Each program takes the whole budget for its own. Together they overspend it in seconds, are refused, go on, "
            "and the exchange bans the address: all three are cut off."
        )
    else:
        without = "The three have not been banned this time. Run it for longer: --seconds 72."
    if governed.throttled or governed.banned:
        with_it = Text("Something was refused. That should not be: please report it.", style=BAD)
    else:
        with_it = Text(
            "The same programs share one exact budget through a ledger on this machine. A call that has no room waits for "
            "its turn. Nothing was refused."
        )
    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("Without", without)
    table.add_row("With", with_it)
    table.add_row("Yours", Text("ratekeeper run -- python your_bot.py", style="cyan"))
    return table
