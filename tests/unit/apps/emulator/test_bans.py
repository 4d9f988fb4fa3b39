"""Who is banned, and for how long."""

from __future__ import annotations

from ratekeeper.apps.emulator.bans import LONGEST, Bans

SECOND = 1_000_000_000


def test_an_address_is_banned_at_the_threshold_and_longer_each_time() -> None:
    """Two minutes, then four, then eight."""
    bans = Bans(after=3, first=120 * SECOND, calm=60 * SECOND)
    address = bans.address("127.0.0.1")
    now = 0
    for length in (120, 240, 480):
        now += 10_000 * SECOND
        assert [bans.strike(address, now) for _ in range(3)] == [False, False, True]
        assert address.banned_until == now + length * SECOND


def test_a_ban_never_lasts_more_than_three_days() -> None:
    """The doubling ends at the longest ban that Binance states."""
    bans = Bans(after=1, first=120 * SECOND, calm=60 * SECOND)
    address = bans.address("127.0.0.1")
    for number in range(60):
        assert bans.strike(address, number)
    assert address.bans[-1][1] - address.bans[-1][0] == LONGEST


def test_a_calm_time_forgets_the_strikes() -> None:
    """Single refusals that lie far apart are no defiance."""
    bans = Bans(after=2, first=SECOND, calm=60 * SECOND)
    address = bans.address("127.0.0.1")
    assert not any(bans.strike(address, number * 61 * SECOND) for number in range(10))


def test_zero_never_bans_and_addresses_are_apart() -> None:
    """With a threshold of 0 nobody is banned; one address's strikes are not another's."""
    bans = Bans(after=0, first=SECOND, calm=SECOND)
    assert not any(bans.strike(bans.address("a"), 0) for _ in range(100))
    assert bans.address("b").strikes == 0
    assert {address.ip for address in bans.all()} == {"a", "b"}
