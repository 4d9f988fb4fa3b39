"""What one program may spend of a limit: all processes of its name together, and no other program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.server import Server

from ratekeeper import CannotFit, DeadlineExceeded, Gate, RuleError
from ratekeeper.apps.cli import main
from ratekeeper.config.resolution import configure
from ratekeeper.config.rulebook import rulebook
from ratekeeper.rules.call import Answer, Request
from ratekeeper.stores.memory import MemoryStore

RULES = """
format = 1
name = "shop"
title = "A small provider"
hosts = ["shop.test"]
source = "T"

[sources]
T = { title = "made for these tests", read = 2026-11-20, confidence = "D" }

[owners]
account.header = "x-key"

[limits.weight-1h]
unit = "weight"
capacity = 1000
period = "1h"
scope = "account"
headers.used = "x-used"

[limits.tokens-1h]
unit = "tokens"
capacity = 1000
period = "1h"
window = "bucket"
scope = "ip"
headers.cost = "x-cost"

[limits.slots]
unit = "slots"
capacity = 9
window = "slots"
scope = "ip"

[default]
class = "market"
cost = { weight = 10 }

[[routes]]
match = "GET /big"
class = "market"
cost = { weight = 61 }

[[routes]]
match = "GET /tokens"
class = "market"
cost = { tokens = 20 }

[[routes]]
match = "GET /slot"
class = "market"
cost = { slots = 1 }
"""
CAPS = """
[programs.collector]
weight = 2
limits = { "shop/weight-1h" = 60, "shop/tokens-1h" = 60, "shop/slots" = 2 }
"""
Gates = Callable[..., Gate]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with caps."""
    (tmp_path / "shop.toml").write_text(RULES)
    path = tmp_path / "ratekeeper.toml"
    path.write_text('rules = ["shop.toml"]\n' + CAPS)
    return path


@pytest.fixture(params=["memory", "host", "redis"])
def gates(request: pytest.FixtureRequest, config: Path, tmp_path: Path) -> Iterator[Gates]:
    """Makes gates over one store, each as a process of its own would have it."""
    with ExitStack() as stack:
        shared: MemoryStore | str = MemoryStore() if request.param == "memory" else "host://"
        if request.param == "redis":
            shared = stack.enter_context(Server(tmp_path / "server")).url
        yield lambda name: stack.enter_context(
            Gate(shared, config=config, home=tmp_path / "home", name=name, priority="critical")
        )


def fit(gate: Gate, path: str = "/", account: str = "") -> int:
    """How many calls fit now."""
    for done in range(200):
        try:
            with gate.permit("shop", "GET", path, timeout=0, account=account) as permit:
                permit.settle(200, {})
        except DeadlineExceeded:
            return done
    return 200


def test_all_processes_of_a_program_share_its_part(gates: Gates) -> None:
    """Two processes of one name spend 60 together, of whatever account; another program spends the rest."""
    one, two, other = gates("collector"), gates("collector"), gates("trader")
    for _ in range(3):
        with one.permit("shop", "GET", "/", timeout=0, account="a") as permit:
            permit.settle(200, {})
    assert fit(two, account="b") == 3
    assert fit(one, account="a") == 0
    assert fit(other, account="a") == 97
    found = {view.key: (view.used, view.limit.capacity) for view in one.read().ledgers}
    assert found["shop/weight-1h~cap/program:collector"] == (60, 60)


def test_a_refusal_takes_nothing(gates: Gates) -> None:
    """All or nothing: what the program's part refuses is not spent of the limit either."""
    gate = gates("collector")
    assert fit(gate, account="a") == 6
    found = {view.key: view.used + view.inflight for view in gate.read().ledgers}
    assert found["shop/weight-1h/account:a"] == 60


def test_slots_and_buckets(gates: Gates) -> None:
    """So many at once of slots; of what comes back steadily, so much in any span of the period."""
    gate = gates("collector")
    with gate.permit("shop", "GET", "/slot", timeout=0), gate.permit("shop", "GET", "/slot", timeout=0):
        assert fit(gate, "/slot") == 0
    assert fit(gate, "/tokens") == 3


def test_the_real_cost_counts_and_the_provider_s_counter_does_not(gates: Gates) -> None:
    """What a call really cost is what the program spent; a counter of the provider speaks of the provider's limit only."""
    gate = gates("collector")
    with gate.permit("shop", "GET", "/tokens") as permit:
        permit.settle(200, {"x-cost": "5"})
    with gate.permit("shop", "GET", "/", account="a") as permit:
        permit.settle(200, {"x-used": "700"})
    used = {view.key: view.used for view in gate.read().ledgers}
    assert used["shop/tokens-1h~cap/program:collector"] == 5
    assert used["shop/weight-1h~cap/program:collector"] == 10
    assert used["shop/weight-1h/account:a"] == 700


def test_a_call_above_the_part_says_who_says_so(gates: Gates, config: Path) -> None:
    """A call that can never fit is refused at once, with the program, its part, and the line of the file."""
    with pytest.raises(CannotFit) as caught, gates("collector").permit("shop", "GET", "/big", account="a"):
        pass
    assert f"program 'collector' may spend 60 of weight-1h, says {config}:5" in str(caught.value)
    with gates("trader").permit("shop", "GET", "/big", account="a"):
        pass


def test_the_name_may_come_from_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$RATEKEEPER_NAME` is the program's name, in lists too."""
    monkeypatch.setenv("RATEKEEPER_NAME", "collector")
    with Gate(MemoryStore(), config=config, priority="critical") as gate:
        assert fit(gate, account="a") == 6
        assert [name.partition("[")[0] for name in gate.read().members.values()] == ["collector"]
    assert configure(config).weight == 2


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (
            '"shop/weight-1m" = 6',
            "shop has no limit 'weight-1m'. Write shop/LIMIT; it has: weight-1h, tokens-1h, slots.",
        ),
        ('"weight-1h" = 6', "no provider is called 'weight-1h'"),
        ('"shop/weight-1h" = 0', "expected a whole number from 1, got 0"),
    ],
)
def test_a_wrong_part_is_one_error_with_its_line(config: Path, wish: str, told: str) -> None:
    """A limit that the rules do not know is told once, with file and line, to every program."""
    config.write_text(f'rules = ["shop.toml"]\n[programs.collector.limits]\n{wish}\n')
    with pytest.raises(RuleError) as caught:
        Gate("memory://", config=config, name="trader")
    assert str(caught.value).startswith(f"{config}:3: ")
    assert told in str(caught.value)


def test_commands_show_it(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`config check`, `config show` and `explain` tell what a program may spend."""
    monkeypatch.setenv("RATEKEEPER_CONFIG", str(config))
    told = []
    for command in (["config", "check"], ["config", "show"], ["explain", "GET", "https://shop.test/"]):
        with pytest.raises(SystemExit):
            main(command)
        told.append(capsys.readouterr().out)
    assert "program collector: 60 of shop weight-1h (1,000 weight in 1h)" in told[0]
    assert 'programs.collector.limits."shop/weight-1h"' in told[1]
    assert f"weight-1h: program collector may spend 60 of it ({config}:5)" in told[2]


def test_what_the_rules_make_of_it(config: Path) -> None:
    """The plan of a capped program has one more charge, of which no counter of the provider speaks."""
    provider = rulebook(configure(config, name="collector")).provider("shop")
    plan = provider.plan(Request("GET", "/"))
    assert [charge.key for charge in plan.charges] == [
        "shop/weight-1h/account:anonymous",
        "shop/weight-1h~cap/program:collector",
    ]
    feedback = provider.feedback(plan, Answer(200, {"x-used": "700"}), now=0)
    assert feedback.used == {"shop/weight-1h/account:anonymous": 700}
