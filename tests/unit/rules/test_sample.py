"""Texts made up for regular expressions."""

from __future__ import annotations

import re

import pytest

from ratekeeper.rules.book import DATA
from ratekeeper.rules.files import read
from ratekeeper.rules.sample import sample


@pytest.mark.parametrize(
    "pattern",
    [
        "plain",
        r"(?i)too many requests",
        r"until (\d{13})",
        r"(\d*)\s*(SECOND|MINUTE)",
        r"(?i)<html|<!doctype|waf",
        r"\bIP\b",
        r"[^a-z]x[A-C]+",
        r"a(?!b)c",
        r"^a.c\w{2,3}?$",
    ],
)
def test_the_text_is_found(pattern: str) -> None:
    """Whatever is made up matches its own expression."""
    assert re.search(pattern, sample(pattern))


def test_the_first_group_reads_as_asked() -> None:
    """That is where a text names an instant."""
    assert sample(r"banned until (\d{13})\.", "1763694000000") == "banned until 1763694000000."


@pytest.mark.parametrize("pattern", ["(?=ahead)x", r"(a)\1", "a(?!b)b"])
def test_what_is_not_understood_is_said(pattern: str) -> None:
    """No wrong text goes out."""
    with pytest.raises(ValueError, match=r"not understood|found no text"):
        sample(pattern)


@pytest.mark.parametrize("path", sorted(DATA.glob("*.toml")), ids=lambda path: path.stem)
def test_every_refusal_of_the_rule_files_can_be_said(path: object) -> None:
    """The expressions that are in use are all understood."""
    for rule in read(path).refusals:  # type: ignore[arg-type]
        if rule.text:
            assert re.search(rule.text, sample(rule.text))
