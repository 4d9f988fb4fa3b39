"""What a governed call costs: function calls of ours and files crossed, for each client, store and set of policies.

`budgets.toml` has the numbers that hold today. Whoever makes a call longer sees here by what; whoever makes it shorter, or
means the difference, writes the file anew: ``python -m tests.test_budgets``. Counts are exact where times are not.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from tests.support.raw import Raw

from ratekeeper import Gate

TABLE = Path(__file__).with_name("budgets.toml")
SOURCE = f"{Path(__file__).parents[1] / 'src' / 'ratekeeper'}{os.sep}"
PYTHON = f"python-{sys.version_info[0]}-{sys.version_info[1]}"
RULES = """
format = 1
name = "budget"
title = "A provider whose window ends in no test"
hosts = ["budget.test"]
source = "T"
[sources]
T = { title = "made for these tests", read = 2026-11-27, confidence = "D" }
[limits.weight-10y]
unit = "weight"
capacity = 1000000000
period = "520w"
window = "fixed"
headers.used = "x-used"
[default]
class = "market"
cost = { weight = 1 }
[[routes]]
match = "GET /kept"
class = "market"
cost = { weight = 1 }
[keep]
"GET /kept" = "1h"
"""
WARM, MOST = 5, 30
"""Calls that are made first, and calls of which one must be good: on a busy machine some look at the clock once more."""
PAUSE = 0.03
"""Seconds between two calls: programs without a pause take another way, whose steps depend on how fast they are."""
CLIENTS = ("httpx", "httpx async", "requests", "aiohttp")
CASES = [
    *(f"{form}, {store}" for form in ("permit", "permit async") for store in ("memory", "host")),
    *(
        f"{client}, {store}{more}"
        for client in CLIENTS
        for store in ("memory", "host")
        for more in ("", ", retry+cache")
    ),
    *(f"{client}, memory, kept answer" for client in CLIENTS),
]
"""What is counted: by whom a call is made, over which store, with which policies."""
Step = Callable[[], Any]


class Count:
    """Counts calls of our own functions in this thread, as a context manager."""

    def __init__(self) -> None:
        self.codes: Counter[CodeType] = Counter()

    def __enter__(self) -> Count:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE):
            self.codes[frame.f_code] += 1

    def functions(self) -> Counter[str]:
        """By file and name. Comprehensions are left out: later versions of Python call none."""
        found: Counter[str] = Counter()
        for code, times in self.codes.items():
            if not code.co_name.endswith("comp>"):
                found[f"{code.co_filename.removeprefix(SOURCE).replace(os.sep, '/')} {code.co_qualname}"] += times
        return found


def size(functions: Counter[str]) -> tuple[int, int]:
    """How many calls, and in how many files."""
    return functions.total(), len({name.partition(" ")[0] for name in functions})


async def counted(step: Step, enough: tuple[int, int]) -> list[Counter[str]]:
    """The functions that single steady calls need, up to a call with as few calls and files as `enough`."""
    found = []
    for at in range(WARM + MOST):
        await asyncio.sleep(PAUSE)
        with Count() as count:
            made = step()
            if isinstance(made, Awaitable):
                await made
        if at >= WARM:
            found.append(count.functions())
            if size(found[-1])[0] <= enough[0] and size(found[-1])[1] <= enough[1]:
                break
    return found


@contextmanager
def server() -> Iterator[Raw]:
    """Answers every call in one piece, with its time and a used-counter."""
    with Raw() as raw:

        def act(connection: Any) -> bool:
            head = f"Date: {formatdate(usegmt=True)}\r\nX-Used: {len(raw.requests)}\r\nContent-Type: application/json"
            connection.sendall(f"HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: 11\r\n\r\n".encode() + b'{"ok":true}')
            return True

        raw.acts["/kept"] = act
        yield raw


async def asked(client: str, gate: Gate, url: Callable[[], str], enough: tuple[int, int]) -> list[Counter[str]]:
    """Calls of one client."""
    if client == "httpx":
        import httpx

        from ratekeeper.adapters.httpx import Transport

        with httpx.Client(transport=Transport(gate=gate)) as plain:
            return await counted(lambda: plain.get(url()), enough)
    if client == "httpx async":
        import httpx

        from ratekeeper.adapters.httpx import AsyncTransport

        async with httpx.AsyncClient(transport=AsyncTransport(gate=gate)) as tasks:
            return await counted(lambda: tasks.get(url()), enough)
    if client == "requests":
        import requests

        from ratekeeper.adapters.requests import Adapter

        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", Adapter(gate=gate))
            return await counted(lambda: session.get(url()), enough)
    import aiohttp

    from ratekeeper.adapters.aiohttp import Middleware

    async with aiohttp.ClientSession(middlewares=(Middleware(gate),)) as pool:

        async def get() -> None:
            async with pool.get(url()) as answer:
                await answer.read()

        return await counted(get, enough)


async def permitted(form: str, gate: Gate, enough: tuple[int, int]) -> list[Counter[str]]:
    """Permits of a user's own."""

    def plain() -> None:
        with gate.permit("budget", "GET", "/"):
            pass

    async def task() -> None:
        async with gate.permit("budget", "GET", "/"):
            pass

    return await counted(plain if form == "permit" else task, enough)


def measured(case: str, folder: Path, enough: tuple[int, int] = (0, 0)) -> list[Counter[str]]:
    """How often each function is called for one call, or one permit, of a case. `enough`: as for `counted`."""
    who, store, *more = case.split(", ")
    policies = "none" if not more else "cache" if more == ["kept answer"] else "retry,cache"
    rules = folder / "budget.toml"
    rules.write_text(RULES)
    numbers = itertools.count()
    with (
        server() as raw,
        Gate(
            f"{store}://", home=folder / "home", hosts={raw.place: "budget"}, rules=[rules], policies=policies
        ) as gate,
    ):

        def url() -> str:
            return f"{raw.url}/kept" + ("" if more == ["kept answer"] else f"?n={next(numbers)}")

        if who.startswith("permit"):
            return asyncio.run(permitted(who, gate, enough))
        return asyncio.run(asked(who, gate, url, enough))


def imported() -> dict[str, list[str]]:
    """Modules that ``from ratekeeper import Gate`` loads above asyncio, Python's own public ones apart."""
    code = (
        "import asyncio, sys; before = set(sys.modules); from ratekeeper import Gate\n"
        "print(*sorted(sys.modules.keys() - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    names = done.stdout.split()
    standard = {name for name in names if name.partition(".")[0] in sys.stdlib_module_names}
    own = sorted(name for name in standard if not name.startswith("_"))
    return {"imported": [name for name in names if name not in standard], PYTHON: own}


@pytest.mark.parametrize("case", CASES)
def test_a_call_costs_no_more(case: str, tmp_path: Path) -> None:
    """As many function calls and files as the table has, at most; what is new is named."""
    table = tomllib.loads(TABLE.read_text("utf-8"))
    calls, files = table["cases"][case]
    found = min(measured(case, tmp_path, (calls, files)), key=size)
    used, crossed = size(found)
    if used > calls or crossed > files:
        before = {name: int(row.split()[CASES.index(case)]) for name, row in table["functions"].items()}
        rows = [(name, times, before.get(name, 0)) for name, times in sorted(found.items())]
        more = [f"{name}: {times}, was {was}" for name, times, was in rows if times > was]
        told = f"{used} calls in {crossed} files; {calls} in {files} are allowed. New or more often:"
        pytest.fail("\n  ".join([told, *more]), pytrace=False)


def test_an_import_costs_no_more() -> None:
    """No module is loaded with the gate that was not loaded with it before, unless another one went."""
    table = tomllib.loads(TABLE.read_text("utf-8"))
    for part, found in imported().items():
        allowed = table.get(part, found)  # another Python brings other modules
        assert len(found) <= len(allowed), sorted(set(found) - set(allowed))


def main() -> None:
    """Write the table anew."""
    for name in [name for name in os.environ if name.startswith("RATEKEEPER_")]:
        del os.environ[name]
    found: dict[str, Counter[str]] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            several = measured(case, Path(folder))
        # What only once or twice happened was chance: a slot that another call had used before.
        found[case] = min((each for each in several if several.count(each) > 2), key=size)
        print("{}: {} calls in {} files".format(case, *size(found[case])))
    names = sorted({name for each in found.values() for name in each})
    lines = [
        "# Written by `python -m tests.test_budgets`. By case: function calls of ours, and files that they cross.",
        "[cases]",
        *(f'"{case}" = {list(size(each))}' for case, each in found.items()),
        "",
        "# What is called, and how often in each case, in their order.",
        "[functions]",
        *(f'"{name}" = "{" ".join(str(found[case][name]) for case in CASES)}"' for name in names),
    ]
    modules = ["# What `from ratekeeper import Gate` loads above asyncio; of Python's own modules the public ones."]
    for part, found_modules in imported().items():
        modules += [f"{part} = [", *(f'    "{name}",' for name in found_modules), "]"]
    TABLE.write_text("\n".join([*modules, "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
