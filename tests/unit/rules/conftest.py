"""Small rule files for tests."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ratekeeper.rules.checks import check
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.schema import File


def whole(fragment: dict[str, Any]) -> dict[str, Any]:
    """A fragment of a rule file, made whole with the least that is required."""
    source = {"title": "test", "read": "2026-11-20", "confidence": "D"}
    least = {
        "format": 1,
        "name": "test",
        "title": "Test",
        "source": "S",
        "sources": {"S": source},
        "limits": {"calls-1m": {"unit": "calls", "capacity": 100, "period": "1m"}},
        "default": {},
    }
    return {**least, **fragment, "sources": {"S": source, **fragment.get("sources", {})}}


@pytest.fixture(scope="session")
def file_of() -> Callable[[str], File]:
    """A rule file from a fragment of TOML, checked."""

    def make(fragment: str) -> File:
        file = msgspec.convert(whole(tomllib.loads(fragment)), File)
        check(file, "test.toml")
        return file

    return make


@pytest.fixture(scope="session")
def provider_of(file_of: Callable[[str], File]) -> Callable[[str], Provider]:
    """A provider from a fragment of TOML."""
    return lambda fragment: Provider(file_of(fragment))
