"""The grid itself: which order belongs on which level, and what is kept of it on disk. Sends nothing.

Levels lie evenly around a middle. One of them, the gap, has no order; those below it buy, those above it sell. An order
that is filled makes its level the new gap. So the gap alone says what the whole grid should look like.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Order:
    """An order of ours. Its id is on disk before it is sent, so that the program that comes next can ask for it."""

    client_id: str
    side: str


@dataclass
class Ladder:
    """The state of one grid. Every change is on disk when the method returns.

    Attributes:
        path: the file.
        levels: on each side of the middle.
        step: between two levels, in quote currency.
        middle: price of level 0; 0: not known yet.
        gap: the level without an order.
        counter: orders so far; it makes every client order id one of its own, also after a restart.
        fills: orders that were filled.
        orders: by level.
    """

    path: Path
    levels: int
    step: float
    middle: float = 0.0
    gap: int = 0
    counter: int = 0
    fills: int = 0
    orders: dict[int, Order] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, levels: int, step: float) -> "Ladder":
        """The grid of the program before, or a new one."""
        if not path.exists():
            return cls(path, levels, step)
        kept = json.loads(path.read_text())
        orders = {int(level): Order(**order) for level, order in kept.pop("orders").items()}
        return cls(path, orders=orders, **kept)

    def begin(self, price: float) -> None:
        """Lay the grid around a price, once."""
        if not self.middle:
            self.middle = round(price)
            self._keep()

    def wanted(self) -> dict[int, str]:
        """The side of each level's order, those near the gap first."""
        near = sorted(range(-self.levels, self.levels + 1), key=lambda level: abs(level - self.gap))
        return {level: "BUY" if level < self.gap else "SELL" for level in near if level != self.gap}

    def wrong(self) -> Iterator[tuple[int, Order]]:
        """Orders that do not belong where they are: a fill was heard of before an earlier one."""
        wanted = self.wanted()
        for level, order in list(self.orders.items()):
            if wanted.get(level) != order.side:
                yield level, order

    def missing(self) -> Iterator[tuple[int, str]]:
        """Levels that have no order, and the side of the one that they want. May change while it is read."""
        for level, side in self.wanted().items():
            if level not in self.orders and self.wanted().get(level) == side:
                yield level, side

    def price(self, level: int) -> float:
        """The price of a level."""
        return self.middle + level * self.step

    def level_of(self, client_id: str) -> int | None:
        """Where an order is; None if it is not of this grid."""
        return next((level for level, order in self.orders.items() if order.client_id == client_id), None)

    def take(self, level: int, side: str) -> str:
        """Note that an order will be sent; returns its client order id, which was never used before."""
        self.counter += 1
        self.orders[level] = Order(f"grid{level:+d}n{self.counter}", side)
        self._keep()
        return self.orders[level].client_id

    def forget(self, level: int) -> None:
        """There is no order here, or no longer. Its id is not used again: what is late may still arrive."""
        self.orders.pop(level, None)
        self._keep()

    def filled(self, level: int) -> None:
        """The order of a level was filled."""
        order = self.orders.pop(level, None)
        if order is not None:
            self.fills += 1
            self.gap = min(self.gap, level) if order.side == "BUY" else max(self.gap, level)
            self._keep()

    def _keep(self) -> None:
        part = self.path.with_suffix(".part")
        kept = {name: value for name, value in asdict(self).items() if name != "path"}
        with part.open("w") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)
