"""What can be set on the emulator, on the command line, from `ratekeeper.testing` or while it runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ratekeeper.typed import converted

__all__ = ["LimitChange", "Live", "Options", "parse_latency", "parse_limit"]

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=600_000)]


class Live(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be changed while the emulator runs, by ``POST /__emulator__/options``; `Emulator` says what each means."""

    latency: tuple[Milliseconds, Milliseconds] = (0.0, 0.0)
    loss: Share = 0.0
    hangup: Share = 0.0
    errors: Share = 0.0
    hang: Share = 0.0
    ws_interval: Annotated[float, msgspec.Meta(ge=0.001, le=3_600)] = 0.25
    ws_lifetime: Annotated[float, msgspec.Meta(ge=0)] | None = None
    ws_silent: bool = False
    ws_refuse: Share = 0.0
    ws_lag: Milliseconds = 0.0
    skew: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)] = 0.0
    date_offset: Annotated[float, msgspec.Meta(ge=-3_600, le=3_600)] = 0.0
    date_drift: Annotated[float, msgspec.Meta(ge=-100_000, le=100_000)] = 0.0
    date_spread: Annotated[float, msgspec.Meta(ge=0, le=3_600)] = 0.0
    date_per: Literal["connection", "answer"] = "connection"
    count_refused: bool = True
    usage_headers: bool = True
    retry_after: bool = True
    date: bool = True
    capacity: Annotated[int, msgspec.Meta(ge=1)] | None = None
    ban_after: Annotated[int, msgspec.Meta(ge=0)] = 10
    ban: Annotated[float, msgspec.Meta(ge=0)] | None = None


class LimitChange(msgspec.Struct, frozen=True):
    """A limit of the rule file, enforced with other numbers: `capacity` units per `seconds`."""

    name: str
    capacity: int
    seconds: float | None = None


class Options(Live, kw_only=True):
    """Everything that can be set when the emulator starts; `limits` are those to change besides the main limit."""

    provider: str
    host: str = "127.0.0.1"
    port: int = 9300
    window: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    scale: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    limits: tuple[LimitChange, ...] = ()
    seed: int | None = None
    log: str | None = None

    def change(self, values: dict[str, Any]) -> None:
        """Set the named `Live` fields; `ValueError` names what is wrong and changes nothing."""
        current = {name: getattr(self, name) for name in Live.__struct_fields__}
        try:
            checked = converted({**current, **values}, Live, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"options: {error}") from None
        for name in Live.__struct_fields__:
            setattr(self, name, getattr(checked, name))


def parse_latency(text: str) -> tuple[float, float]:
    """``"40"`` or ``"20-80"`` as milliseconds from and to."""
    low, _, high = text.partition("-")
    try:
        span = float(low), float(high or low)
    except ValueError:
        raise ValueError(f"latency must be MS or MS-MS, such as 20-80, not {text!r}") from None
    if not 0 <= span[0] <= span[1]:
        raise ValueError(f"latency must rise from 0 or more, not {text!r}")
    return span


def parse_limit(text: str) -> LimitChange:
    """``"orders-10s=50"`` or ``"orders-10s=50/5"``: name, capacity in units and, if given, seconds."""
    name, equals, numbers = text.partition("=")
    capacity, slash, seconds = numbers.partition("/")
    try:
        change = LimitChange(name.strip(), int(capacity), float(seconds) if slash else None)
    except ValueError:
        change = LimitChange("", 0)
    wrong = change.capacity < 1 or (change.seconds is not None and not 0 < change.seconds < 1e9)
    if wrong or not equals or not change.name:
        raise ValueError(
            f"a limit must be NAME=CAPACITY or NAME=CAPACITY/SECONDS, such as orders-10s=50/5, not {text!r}"
        )
    return change
