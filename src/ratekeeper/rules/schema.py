"""The schema of rule files: typed structs, long because the format is. `checks` looks at what a file means.

Fields marked *later* are part of the format and validated, but this version cannot evaluate them: a file that needs one
is refused when it is used (`ratekeeper.rules.checks.unready`), because ignoring it could break a limit.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ratekeeper.ledger.limit import Window
from ratekeeper.rules.times import TimeFormat

__all__ = [
    "Ban",
    "Condition",
    "Cost",
    "Costs",
    "Credit",
    "Default",
    "File",
    "Head",
    "Hints",
    "Hours",
    "Learn",
    "LimitHeaders",
    "LimitRule",
    "Lookup",
    "Merge",
    "Owner",
    "Ramp",
    "Refusal",
    "Retry",
    "Route",
    "RouteClass",
    "RouteRule",
    "Rule",
    "Scalar",
    "Signing",
    "Socket",
    "Source",
    "Sourced",
    "Term",
    "Tier",
    "schema_json",
]

Grade = Literal["D", "M", "S", "C", "I", "O", "?"]
RouteClass = Literal["cancel", "order", "account", "market", "other"]
Whole = Annotated[int, Meta(ge=0, title="a whole number from 0")]
Positive = Annotated[int, Meta(ge=1, title="a whole number from 1")]
Name = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9.-]*$", title="a name of a-z, 0-9, dots and dashes")]
Factor = Annotated[float, Meta(ge=1, title="a number from 1")]
Texts = str | list[str]


class Rule(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """Base of everything in a rule file: unknown keys are errors."""


class Source(Rule, frozen=True, kw_only=True):
    """Where numbers come from. Its key is the tag that limits and routes name.

    Grades: D vendor documentation, M measured, S source code read, C client code, I issue thread, O observed, ? weak.
    """

    title: str
    read: date
    confidence: Grade
    url: str = ""


class Sourced(Rule, frozen=True):
    """Provenance of numbers; empty fields inherit the file's."""

    source: Texts = ""
    """One or several tags of ``[sources]``; the number is taken from the first, the others confirm or differ."""
    confidence: Grade | None = None
    """Where it differs from the source's own grade."""
    note: str = ""
    since: date | None = None
    """From when the provider applies this value."""


class Term(Rule, frozen=True):
    """A cost that depends on the call. Exactly one of `by`, `count`, `has`, `sum`, `largest`, `estimate`, `age`."""

    by: str = ""
    """The value of a reference, in `bands`, in `cases`, or (`each`) in proportion."""
    count: str = ""
    """How many items a list holds, in `bands` or in proportion."""
    has: str = ""
    """Whether a reference is present: then `cost`."""
    sum: list[Cost] = []
    largest: list[Cost] = []
    estimate: Literal["", "input", "output", "input+output"] = ""
    """Tokens estimated from the request. *Later*: comes with the LLM providers."""
    age: str = ""
    """Seconds since the order that a reference names was placed, in `bands`. An age that is not known costs the dearest."""

    bands: list[tuple[int, Whole]] = []
    """``[edge, cost]``, edges rising and inclusive."""
    above: Whole | None = None
    """Beyond the last edge; without it the last band goes on."""
    cases: dict[str, Whole] = {}
    other: Whole | None = None
    """For a value that `cases` does not name; without it the dearest case."""
    cost: Whole | None = None
    each: Whole | None = None
    """In proportion: ``base + each * floor(value / per)``, at most `max`."""
    base: Whole = 0
    per: Positive = 1
    max: Positive | None = None
    times: str = ""
    """A reference whose number multiplies the result (1 when absent)."""
    missing: Whole | None = None
    """When the reference is absent. In a list of terms, one without it passes to the next."""


Cost = Whole | Term | list[Whole | Term]
"""A number, a term, or a list of which the first that applies is taken."""

Costs = dict[str, Cost]
"""Keyed by unit (charges every limit of that unit) or by the name of one limit, which wins over its unit."""

Scalar = str | int | bool


class Condition(Rule, frozen=True):
    """What a reference must be for a route to match; every field that is set must hold."""

    present: bool | None = None
    one_of: list[Scalar] = []
    count: bool = False
    """Compare the number of items instead of the value."""
    least: int | None = None
    most: int | None = None
    matches: str = ""
    """A regular expression that must be found in the value; of several values (``body.*.instId``), in every one."""


class Owner(Rule, frozen=True):
    """A kind of owner that limits name in `scope`. `ip`, `account`, `key`, `endpoint`, `connection` are built in;
    `account` and `key` need a `header` here. Exactly one of `header`, `value`, `setting`."""

    header: Texts = ""
    """Request headers (lower case) that hold a secret; only its keyed digest is used."""
    value: Texts = ""
    """A reference, such as ``instId`` or ``body.model``, or several of which the first that is present counts. One that
    names several values (``body.*.instId``) spreads the cost over their owners."""
    pattern: str = ""
    """Regular expression; its first group (or all of it) is taken from the value, or from the header: what a header
    holds beside the key may change with every call. A header in which it is not found tells no owner."""
    names: dict[str, str] = {}
    """Shell patterns over the value -> the name of the pool they share; first match."""
    setting: str = ""
    """A name from the user's configuration: ``account`` where requests do not show whose they are. Others, such as an
    organisation, *later*: they come with the LLM providers."""


class LimitHeaders(Rule, frozen=True):
    """Response headers that report a limit, lower case; ``{interval}`` stands for the period in force (``1m``)."""

    used: str = ""
    remaining: str = ""
    limit: str = ""
    """States the capacity: it is learned."""
    reset: str = ""
    reset_format: TimeFormat = "seconds"
    cost: str = ""
    """States what this call was charged."""


class Hours(Rule, frozen=True, kw_only=True):
    """Another capacity at some time of the day. *Later*: comes with Zhipu."""

    from_: str = msgspec.field(name="from")
    to: str
    zone: str
    capacity: Positive


class Tier(Rule, frozen=True, kw_only=True):
    """A limit as it is for customers of one tier or role."""

    capacity: Positive
    refill: Whole = 0
    """0: in proportion to the capacity."""


class LimitRule(Sourced, frozen=True, kw_only=True):
    """A limit. Without a known algorithm leave `window` at ``sliding``, which is safe for all of them."""

    unit: Name
    capacity: Positive
    period: str = ""
    """A duration such as ``1m``; empty for slots."""
    window: Window = Window.SLIDING
    scope: Texts = "ip"
    refill: Whole = 0
    lifetime: bool = False
    """A budget for life that grows by outside events; `refill` is the trickle that remains when it is empty, and does
    not grow with a capacity that is learned."""
    origin: str = ""
    """A duration: how far the edges of a fixed window lie after whole periods since the epoch (UTC)."""
    headroom: Whole = 0
    headers: LimitHeaders = LimitHeaders()
    tiers: dict[str, Positive | Tier] = {}
    """By the customer's tier or role, which the user's configuration names; `capacity` holds for all others."""
    zone: str = ""
    """Civil days begin at midnight here (``America/Los_Angeles``). *Later*: comes with Gemini."""
    calendar: Literal["", "week", "month"] = ""
    """The window is a civil week or month; `period` is its longest length. *Later*: comes with Anthropic."""
    hours: list[Hours] = []
    adaptive: bool = False
    """The real capacity is hidden and must be felt out below `capacity`: see `ratekeeper.policy.pace`."""


class Route(Sourced, frozen=True, kw_only=True):
    """What calls of one kind cost."""

    class_: RouteClass = msgspec.field(name="class", default="other")
    """Sets the default priority: cancel, order, account, market fall in this order; other ranks as account."""
    cost: Costs = {}
    ok: Costs = {}
    """The actual cost where the call succeeded and it differs from `cost`."""
    failed: Costs = {}
    """The actual cost where the call was answered with an error (4xx) and it differs."""
    feedback: bool = True
    """False where the usage headers on this route's answers are wrong."""


class Default(Route, frozen=True, kw_only=True):
    """What a call costs that no route knows. A guess on the safe side."""


class RouteRule(Route, frozen=True, kw_only=True):
    """A known route, or several that cost the same."""

    match: Texts
    """``METHOD /path``, ``{id}`` for one segment, a last ``*`` for the rest. WS-CONNECT, WS-SEND, WS-SUBSCRIBE and
    WS (a WS-API method) are the methods of websockets."""
    where: dict[str, Scalar | list[Scalar] | Condition] = {}
    """Conditions on references. Of several routes with one `match`, the first that holds is taken."""


class Retry(Rule, frozen=True, kw_only=True):
    """Where a refusal says when to come back. Exactly one of `header`, `body`, `text`."""

    header: str = ""
    body: str = ""
    text: str = ""
    """Regular expression over the body; its first group is the instant."""
    format: TimeFormat


class Refusal(Rule, frozen=True, kw_only=True):
    """How the provider says no. All fields that are set must match; the first refusal that does is taken."""

    status: list[int] = []
    body: dict[str, list[Scalar]] = {}
    """Dotted path in the JSON body -> accepted values, compared as text (so 429 and "429" are one)."""
    text: str = ""
    """Regular expression searched in the body."""
    close: list[int] = []
    """Websocket close codes. *Later*: comes with the sessions."""
    routes: list[str] = []
    """Shell patterns over ``METHOD /template``; empty for all."""
    outcome: Literal["throttled", "banned", "overloaded", "quota gone", "money gone", "bad request", "failed", "ok"]
    limits: list[str] = []
    """Limits, or units of them, that it names as used up. A ``throttled`` that names neither `limits` nor `block` means
    what the call was charged beyond `every`: of each unit, the (first) limit with the shortest window."""
    interval: str = ""
    """Regular expression with groups (number, word) that tells which window of a unit; else the shortest."""
    block: str = ""
    """The kind of owner to hold: ``ip``, ``account``, ``endpoint``..., ``class``, or ``provider`` for all of it."""
    hold: str = ""
    """A duration for `block` and `limits` when no hint names an end; for a ban, a fixed length instead of the ladder. An
    ``overloaded`` or ``failed`` holds for so long at most (at first an eighth, twice as long each time in a row), without
    `block` what the call was charged on."""
    retry: list[Retry] | None = None
    """Instead of the file's hints; ``[]`` where hints are known to be wrong."""
    charged: bool = True
    """False where the provider does not count a call that it refuses so."""
    note: str = ""
    """Why it is classed so, above all a `bad request` that looks like something else."""


class Merge(Rule, frozen=True, kw_only=True):
    """Single calls that can be made as one: the answer to many holds a row for each."""

    match: str
    """The single call, ``GET /path``."""
    by: str
    """Its parameter that names the one, such as ``symbol``."""
    to: str = ""
    """Path of the call for many; empty: the same. Places in it are filled from the single call's path."""
    list_param: str = ""
    """The parameter that names the many; empty: the call for many gives all there are."""
    list_form: Literal["json", "comma"] = "json"
    most: Annotated[int, Meta(ge=2, title="a whole number from 2")] = 100
    """Names in one call at most, where it names them."""
    rows: str = ""
    """Dotted path of the list of rows in the answer; empty if the answer is the list."""
    field: str = ""
    """Field of a row that holds the name; empty: as `by`."""
    single: Literal["row", "list"] = "row"
    """In place of the list, an answer to the single call holds its row, or a list of that row."""
    source: Texts = ""
    note: str = ""


class Lookup(Rule, frozen=True, kw_only=True):
    """How to find out what became of a call that must not be made twice."""

    match: Texts
    """The call, as in a route."""
    route: str
    """The call that tells: ``GET /path``."""
    params: dict[str, str]
    """Its parameters -> references into the first call, or ``'a constant'``. Without all those that are `needed` it
    cannot be asked. One that stands in the path of `route` is put there; other places there are taken from the first
    call's path."""
    needed: list[str] = []
    """Those of `params` without which it cannot be asked; empty: all."""
    once: str = ""
    """A reference: where it is present the provider promises to carry out one such call only, whatever became of it, so
    that it may be made again."""
    source: Texts = ""
    note: str = ""


class Hints(Rule, frozen=True):
    """Retry hints common to all refusals, and the bounds within which any is believed."""

    retry: list[Retry] = []
    shortest: str = "1s"
    longest: str = "7d"


class Ban(Rule, frozen=True):
    """The ladder of bans that state no end: `first`, then `factor` times the last, up to `longest`."""

    first: str = "2m"
    factor: Factor = 2.0
    longest: str = "3d"
    prolonged: bool = True
    """Calls made while banned make it worse."""
    source: Texts = ""


class Learn(Rule, frozen=True, kw_only=True):
    """A route whose answer states limits, usage or the server's time."""

    route: str
    """``METHOD /template`` or, with shell wildcards, several."""
    rows: str | None = None
    """Dotted path of the list of limits; ``""`` if the answer itself is the list. None: only the clock."""
    type: str = ""
    """Field that tells the unit, read through `units`."""
    units: dict[str, str] = {}
    limit_name: str = ""
    """The limit meant, where rows have no type."""
    interval: str = ""
    number: str = ""
    limit: str = ""
    used: str = ""
    clock: str = ""
    """Dotted path of the server's time."""
    clock_format: TimeFormat = "epoch-ms"


class Signing(Rule, frozen=True, kw_only=True):
    """How long signed requests stay valid, and in which order they must leave. `timestamp`, `signature`, `window`, `nonce`
    and `key` are references; `window` is in milliseconds. `timestamp` needs `signature`, and `nonce` needs `key`."""

    timestamp: str = ""
    signature: str = ""
    timestamp_format: TimeFormat = "epoch-ms"
    window: str = ""
    default: str = "5s"
    longest: str = "60s"
    nonce: Texts = ""
    """The number that must rise from call to call of one key; of several references the first that is present counts."""
    key: Texts = ""
    """The API key, likewise; only its keyed digest is used."""
    source: Texts = ""
    note: str = ""


class Socket(Rule, frozen=True):
    """Habits of the provider's websockets. *Later*: used by the sessions; ignoring it breaks no limit."""

    lifetime: str = ""
    ping_from: Literal["", "server", "client"] = ""
    ping_every: str = ""
    drop_after: str = ""
    note: str = ""


class Ramp(Rule, frozen=True, kw_only=True):
    """Demand may grow only so fast. *Later*: comes with the LLM providers."""

    factor: Annotated[float, Meta(gt=1, title="a number above 1")]
    every: str


class Credit(Rule, frozen=True, kw_only=True):
    """An outside event gives units back. *Later*; ignoring it is safe, for it only ever frees."""

    event: str
    unit: str
    amount: Whole
    note: str = ""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The keys before the first table: what must be known of a file before it is needed."""

    name: Name
    hosts: list[str] = []
    paths: list[str] = []


class File(Rule, frozen=True, kw_only=True):
    """One provider."""

    format: Literal[1]
    name: Name
    title: str
    hosts: list[str] = []
    """Lower case, without port; a leading ``*.`` stands for any names in front."""
    paths: list[str] = []
    """Path prefixes on these hosts that are meant; empty for all."""
    source: Texts = ""
    confidence: Grade | None = None
    sources: dict[str, Source] = {}
    owners: dict[Name, Owner] = {}
    limits: dict[Name, LimitRule]
    every: Costs = {}
    """Charged by every HTTP call on top, such as raw requests."""
    default: Default
    routes: list[RouteRule] = []
    hints: Hints = Hints()
    ban: Ban = Ban()
    refusals: list[Refusal] = []
    errors_under: list[int] = []
    """Statuses below 400 under which errors come as well, beside those that `refusals` name (and 200, where `good` tells
    errors): such answers are read for refusals that nobody listed."""
    learn: list[Learn] = []
    signing: Signing | None = None
    socket: dict[str, Socket] = {}
    ramp: Ramp | None = None
    credits: list[Credit] = []
    keep: dict[str, str] = {}
    """Shell patterns over ``METHOD /template`` -> how long an answer is as good as a new one (``1h``; ``0s``: never), for
    those who switch the cache on. The longest pattern that fits holds; reads of market data that no pattern names are
    kept as the user says, and others not at all. What is named here only reads, whatever its method, so that it may be
    made again."""
    good: dict[str, list[Scalar]] = {}
    """Dotted path in a JSON answer -> values (compared as text). One with another value there is an error, whatever its
    status, and is not kept."""
    apart: list[str] = []
    """Request headers (lower case) that lead to another world behind the same hosts, such as demo trading: answers from
    there are kept and merged apart."""
    merges: list[Merge] = []
    lookups: list[Lookup] = []


def schema_json() -> bytes:
    """The JSON schema of a rule file, for editors; ``docs/reference/rules.schema.json`` holds a copy."""
    schema: dict[str, Any] = msgspec.json.schema(File)
    schema["title"] = "Ratekeeper rule file"
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"
