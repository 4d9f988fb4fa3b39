"""How text and tables fit a terminal of any width: names are shortened in their middle, numbers never are."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["columns", "paragraph", "shorten"]

_LEAST: Final = 16
"""Where less than this is left of a name, names stand on lines of their own."""


def shorten(text: str, width: int) -> str:
    """A name in at most `width` columns of a terminal: both its ends stay, and its control characters go."""
    from rich.cells import cell_len

    text = "".join(sign if sign.isprintable() else " " for sign in text)
    short, keep = text, max(1, min(len(text), width))
    while keep > 0 and cell_len(short) > width:
        keep -= 1
        short = f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
    return short


def columns(rows: Iterable[tuple[str, str, Sequence[str]]], width: int, right: Container[int] = ()) -> list[list[str]]:
    """Rows as lines that fit `width`. Only names are ever shortened.

    Args:
        rows: each of a head, a name behind it, and further cells (as many in each); the first row names the columns.
        width: columns of the terminal.
        right: which of the cells are set to the right, from 0.

    Returns:
        For each row its lines: one, or several where no room is left beside the cells for a name. Then each cell has the name
        of its column before it.
    """
    from rich.cells import cell_len

    rows = list(rows)
    widths = [max(map(cell_len, column), default=0) for column in zip(*(cells for _, _, cells in rows), strict=True)]
    longest = max(cell_len(head) + cell_len(name) for head, name, _ in rows)
    left = min(longest, width - sum(2 + each for each in widths))
    beside = left >= max(cell_len(head) + min(cell_len(name), _LEAST) for head, name, _ in rows)
    made = []
    for head, name, cells in rows:
        first = head + shorten(name, (left if beside else width) - cell_len(head)) if name else head
        if beside:
            laid = [
                " " * (size - cell_len(cell)) + cell if at in right else cell + " " * (size - cell_len(cell))
                for at, (cell, size) in enumerate(zip(cells, widths, strict=True))
            ]
            made.append(["  ".join([first + " " * (left - cell_len(first)), *laid]).rstrip()])
        else:
            told = [shorten(first, width)]
            for at, cell in zip(rows[0][2], cells, strict=True) if made else ():
                more = f"  {at} {cell}" if cell else ""
                if len(told) > 1 and cell_len(told[-1] + more) <= width:
                    told[-1] += more
                elif cell:
                    told.append("  " + more)
            made.append(told)
    return made


def paragraph(text: str, width: int, by: int = 4) -> Text:
    """A text that is indented `by` so many columns and broken between words, for a terminal of that `width`."""
    from textwrap import fill

    from rich.text import Text

    margin = " " * by
    return Text(
        fill(text, max(_LEAST, width), initial_indent=margin, subsequent_indent=margin + "  ", break_on_hyphens=False),
        style="" if by == 2 else "dim",
    )
