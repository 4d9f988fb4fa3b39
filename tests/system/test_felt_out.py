"""A limit that nobody publishes, felt out against an emulator that allows less than the rule file guesses."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from tests.support.stood import Stood

from ratekeeper import Gate
from ratekeeper.adapters.httpx import AsyncTransport
from ratekeeper.testing import Emulator

pytestmark = pytest.mark.alone

GUESS, TRUTH = 100, 60
RULES = f"""
format = 1
name = "felt"
title = "A provider that does not say its limit"
hosts = ["felt.test"]
source = "T"

[sources]
T = {{ title = "made for this test", read = 2026-11-20, confidence = "D" }}

[limits.calls-1s]
unit = "calls"
capacity = {GUESS}
period = "1s"
window = "sliding"
scope = "ip"
adaptive = true

[default]
cost = {{ calls = 1 }}
"""


def test_it_is_found_and_used(tmp_path: Path) -> None:
    """After a few cuts nearly all that is really allowed is used, and refusals have become rare."""
    rules = tmp_path / "felt.toml"
    rules.write_text(RULES)

    async def saturate(gate: Gate, url: str) -> tuple[int, int]:
        ok = refused = 0
        begin = time.monotonic()

        async def work(client: httpx.AsyncClient) -> None:
            nonlocal ok, refused
            while (now := time.monotonic() - begin) < 18:
                answer = await client.get(f"{url}/x")
                if now > 8:
                    ok += answer.status_code == 200
                    refused += answer.status_code == 429

        async with httpx.AsyncClient(transport=AsyncTransport(gate=gate)) as client:
            await asyncio.gather(*[work(client) for _ in range(8)])
        return ok, refused

    with (
        Emulator(str(rules), capacity=TRUTH) as emulator,
        Gate("host://", rules=[rules], hosts=emulator.hosts, home=tmp_path / "home", learn=False) as gate,
    ):
        with Stood() as stood:
            ok, refused = asyncio.run(saturate(gate, emulator.url))
        now = time.time()
        assert ok > 0.8 * TRUTH * 10 * (1 - stood.share(now - 10, now))
        assert refused < 0.05 * ok
