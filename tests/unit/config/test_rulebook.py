"""Where a configuration does not fit the rules: every mistake, with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ratekeeper import Gate, RuleError
from ratekeeper.config.resolution import configure
from ratekeeper.config.rulebook import mistakes, rulebook, unchecked

Config = Callable[[str], Path]


def test_every_mistake_is_found(config: Config) -> None:
    """For who checks a file: all that does not fit, not only the first."""
    said = configure(config('[providers.kraken]\ntier = "x"\n[providers.nobody]\n[priorities]\n"okx GET /x" = "low"\n'))
    assert [(error.line, error.key) for error in mistakes(said, unchecked(said))] == [
        (2, "$.providers.kraken.tier"),
        (3, "$.providers.nobody"),
        (5, "$.priorities.okx GET /x"),
    ]


def test_providers_of_ccxt_are_judged_on_wish(config: Config) -> None:
    """A gate does not load ccxt for a name in the file; who checks the file does."""
    pytest.importorskip("ccxt")
    said = configure(config("[providers.ccxt-nobody]\n"))
    book = rulebook(said)
    assert [error.line for error in mistakes(said, book, derived=True)] == [1]


def test_headroom_is_said_once(tmp_path: Path) -> None:
    """The older table and the newer one may not speak of the same limit."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text("[providers.binance-usdm]\nlimits.weight-1m.headroom = 5\n[headroom.binance-usdm]\nweight-1m = 6\n")
    with pytest.raises(RuleError, match=r"toml:4: headroom.binance-usdm.weight-1m: line 2 says it too. Remove one."):
        Gate("memory://", config=file)
