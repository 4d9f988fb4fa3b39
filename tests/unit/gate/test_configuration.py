"""What is in force, by whom, and that every key of the file has its effect on a gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ratekeeper import (
    Batch,
    Breaker,
    CannotFit,
    DeadlineExceeded,
    Gate,
    Policies,
    Priority,
    Rejected,
    Retry,
    RuleError,
)
from ratekeeper.ledger.limit import SECOND

Config = Callable[[str], Path]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "ratekeeper.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("RATEKEEPER_WEIGHT", "many", "RATEKEEPER_WEIGHT: expected a whole number from 1, got 'many'"),
        ("RATEKEEPER_PRIORITY", "urgent", "RATEKEEPER_PRIORITY: no priority is called 'urgent'"),
        ("RATEKEEPER_HOSTS", "127.0.0.1:1=nobody", "RATEKEEPER_HOSTS: no rules for 'nobody'"),
        ("RATEKEEPER_CONFIG", "/no/such/file", "/no/such/file: cannot be read"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, told: str) -> None:
    """What is wrong in the environment is told with the name of the variable."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(RuleError) as caught:
        Gate("memory://")
    assert told in str(caught.value)


def test_the_file_in_the_state_folder_holds(own_home: Path) -> None:
    """Nothing must be named: a file in the state folder is found."""
    own_home.mkdir()
    (own_home / "ratekeeper.toml").write_text("max_wait = 3")
    with Gate("memory://") as gate:
        assert gate.max_wait == 3


def test_home_and_store(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers lie where the file says."""
    monkeypatch.delenv("RATEKEEPER_HOME")
    with (
        Gate(config=config('home = "there"\nstore = "host://"')) as gate,
        gate.permit("okx", "GET", "/api/v5/public/time"),
    ):
        assert (tmp_path / "there" / "ledgers").is_dir()


def test_limits_of_the_users_own(config: Config, new_gate: Callable[..., Gate]) -> None:
    """A number, a period and headroom take effect on what may be spent."""
    file = config(
        '[providers.shop]\nlimits.weight-1h = { capacity = 5, period = "2h", headroom = 2 }\n'
        'headroom = "25%"\nlimits.slots.headroom = 1'
    )
    gate = new_gate(config=file)
    limits = gate.provider("shop").limits
    hour = limits["weight-1h"]
    assert (hour.capacity, hour.period, hour.headroom) == (5, 7200 * SECOND, 2)
    assert (limits["slots"].usable, limits["burst"].usable) == (1, 3)
    for _ in range(3):
        with gate.permit("shop", "GET", "/any", timeout=0):
            pass
    with pytest.raises(DeadlineExceeded), gate.permit("shop", "GET", "/any", timeout=0):
        pass
    with pytest.raises(CannotFit), gate.permit("shop", "GET", "/big", timeout=0):
        pass


def test_a_tier(config: Config, new_gate: Callable[..., Gate]) -> None:
    """The customer's tier takes the place of the usual numbers, for all limits or for some."""
    every = new_gate(config=config('[providers.kraken]\ntier = "pro"')).provider("kraken")
    assert (every.limits["calls"].capacity, every.limits["orders"].capacity) == (20, 180)
    some = new_gate(config=config('[providers.kraken]\ntier = { orders = "pro" }')).provider("kraken")
    assert (some.limits["calls"].capacity, some.limits["orders"].capacity) == (15, 180)


def test_programs(config: Config, new_gate: Callable[..., Gate]) -> None:
    """A program has the weight and the class that the file gives to its name; others have not."""
    file = config('[programs."trader.py"]\nweight = 4\npriority = "critical"\n')
    gate, other = new_gate(config=file, name="trader.py"), new_gate(config=file, name="other.py")
    assert (gate.weight, gate.permit("shop", "GET", "/any")._priority) == (4, Priority.CRITICAL)
    assert (other.weight, other.permit("shop", "GET", "/any")._priority) == (1, Priority.LOW)


def test_waiting_learning_and_rules(config: Config, rules: Path) -> None:
    """`max_wait`, `learn` and `rules` take effect; a rule file is found beside the configuration."""
    file = config(f'max_wait = 0\nlearn = false\nrules = ["{rules.name}"]\npriority = "high"')
    with Gate("memory://", config=file) as gate:
        for _ in range(10):
            with gate.permit("shop", "GET", "/any") as permit:
                assert permit._priority == Priority.HIGH
        with pytest.raises(DeadlineExceeded), gate.permit("shop", "GET", "/any"):
            pass
        asked = gate.provider("binance-usdm")
        gate.first_contact(asked, "http://127.0.0.1:9")
        assert not gate.contact.made(asked)  # nobody tried: a contact that fails is not made again for a while


def test_addresses(config: Config, new_gate: Callable[..., Gate]) -> None:
    """A permit leaves from the pool's address, and from the next when that one's limit is spent."""
    file = config(
        '[egress.addresses]\na = "127.0.0.2"\nb = "127.0.0.3"\n[egress.pools.shop]\nprimary = "a"\nbackups = ["b"]\n'
    )
    gate = new_gate(config=file)
    left = []
    for _ in range(20):
        with gate.permit("shop", "GET", "/any", timeout=0) as permit:
            left.append(permit.egress.name)
    assert left == ["a"] * 10 + ["b"] * 10


def test_one_address_by_name(config: Config, new_gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    """``egress = "name"`` names the ledgers; the environment's name goes before it."""
    file = config('egress = "office"')
    assert new_gate(config=file).permit("shop", "GET", "/any").plan.charges[0].key == "shop/weight-1h/ip:office"
    monkeypatch.setenv("RATEKEEPER_EGRESS", "home")
    assert new_gate(config=file).permit("shop", "GET", "/any").plan.charges[0].key == "shop/weight-1h/ip:home"


@pytest.mark.parametrize(
    ("policies", "told"),
    [
        (Policies(retry=Retry(attempts=0)), "retry.attempts"),
        (Policies(breaker=Breaker(scope="nothing")), "breaker.scope"),  # type: ignore[arg-type]
        (Policies(batch=Batch(window=-1)), "batch.window"),
        (Policies(retry="yes"), "retry"),  # type: ignore[arg-type]
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_policies_made_in_code_are_checked_too(policies: Policies, told: str) -> None:
    """With the name of what is wrong."""
    with pytest.raises(RuleError, match=rf"Policies\({told}\): "):
        Gate("memory://", policies=policies)


def spend(gate: Gate, provider: str, call: str, most: int = 2000) -> tuple[int, str]:
    """How many calls of a kind go at once, and why the next does not."""
    method, path = call.split()
    for made in range(most):
        try:
            with gate.permit(provider, method, path, timeout=0):
                pass
        except Rejected as error:
            return made, str(error)
    return most, ""


FURTHER = """
[providers.orderly]
limits.my-minute = { unit = "requests", capacity = 80, period = "1m", scope = "account", use = 0.7 }
limits.my-second = { unit = "requests", capacity = 8, period = "1s", scope = "account", headroom = "30%" }

[providers.binance-usdm]
limits.my-requests = { unit = "requests", capacity = 1200, period = "1m" }
limits.my-orders = { unit = "orders", capacity = 10, period = "1s", scope = "ip", headroom = 0.3 }

[providers.shop]
use = "50%"
limits.reads = { unit = "requests", capacity = 3, period = "1h", routes = "GET /bi*", headroom = 1 }
"""


def test_further_limits(config: Config, new_gate: Callable[..., Gate]) -> None:
    """Two lines a provider; what is not used is stated as a share, per cent or units, and is never less than stated."""
    gate = new_gate(config=config(FURTHER))
    limits = gate.provider("orderly").limits
    assert (limits["my-minute"].usable, limits["my-second"].usable) == (56, 5)
    made, why = spend(gate, "orderly", "GET /v1/positions")
    assert (made, why.partition(" has no room")[0]) == (5, "orderly/my-second/account:anonymous")
    made, why = spend(gate, "binance-usdm", "POST /fapi/v1/order")
    assert (made, why.partition(" has no room")[0]) == (7, "binance-usdm/my-orders/ip:default")
    made, why = spend(gate, "binance-usdm", "GET /fapi/v1/time")
    assert 900 < made <= 1193, "some are kept for orders"
    assert why.startswith("binance-usdm/my-requests/ip:default has no room")
    limits = gate.provider("shop").limits
    assert {name: limit.usable for name, limit in limits.items()} == {
        "weight-1h": 5,
        "slots": 1,
        "burst": 2,
        "reads": 2,
    }
    with pytest.raises(CannotFit), gate.permit("shop", "GET", "/big", timeout=0):
        pass


@pytest.mark.parametrize("store", ["memory://", "host://"])
def test_a_period_that_the_user_set_is_told(config: Config, new_gate: Callable[..., Gate], store: str) -> None:
    """The name of the limit tells another one, so every error tells the real one."""
    file = config('[providers.shop]\nlimits.weight-1h = { capacity = 5, period = "10s" }\n')
    gate = new_gate(store, config=file)
    made, why = spend(gate, "shop", "GET /any")
    assert (made, why.partition(" has no")[0]) == (5, "shop/weight-1h/ip:default (now per 10s)")
    _, why = spend(gate, "shop", "GET /big")
    assert "more than shop/weight-1h/ip:default (now per 10s) ever allows (5)" in why
    assert "burst/ip:default has no room for" in spend(gate, "shop", "GET /burst")[1]
