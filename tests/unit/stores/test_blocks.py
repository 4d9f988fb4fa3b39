"""Blocks: who is shut out, until when, whatever the clocks do, and the file that outlives everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.limit import SECOND, Charge, Limit
from ratekeeper.stores.blocks import Blocks, BlockState, PauseRecord, read_blocks, write_blocks

WALL = 1_800_000_000 * SECOND
WEEK = 7 * 86_400 * SECOND


@pytest.fixture
def blocks() -> Blocks:
    """No blocks yet, in a boot called b1."""
    return Blocks("b1")


def ban(blocks: Blocks, seconds: float, at: int = 0, scope: str = "shop", kind: str = "ban") -> BlockState:
    """A block that begins `at` seconds after the start."""
    return blocks.add(scope, int(seconds * SECOND), kind, "said so", at * SECOND, WALL + at * SECOND)


def shut(blocks: Blocks, at: float, *scopes: str) -> bool:
    """Whether a call of these scopes is held at that second."""
    return blocks.against(scopes or ("shop",), (), int(at * SECOND)) is not None


def test_a_ban_holds_to_the_nanosecond(blocks: Blocks) -> None:
    """It is in force until just before its end, and gone at it."""
    ban(blocks, 10)
    no = blocks.against(("shop",), (), 10 * SECOND - 1)
    assert no is not None
    assert (no.key, no.available_at, no.kind, no.reason, no.unknown) == ("shop", 10 * SECOND, "ban", "said so", False)
    assert not shut(blocks, 10)
    assert not blocks


def test_only_its_scope(blocks: Blocks) -> None:
    """Other owners pass; a block on a ledger's key holds the calls that charge it."""
    ban(blocks, 10, scope="shop/weight/ip:a")
    charge = Charge("shop/weight/ip:a", Limit("weight", "weight", 1, SECOND), 0)
    assert not shut(blocks, 1, "shop", "other")
    assert blocks.against((), (charge,), SECOND) is not None


def test_the_longest_of_several_tells(blocks: Blocks) -> None:
    """Of several blocks that hold a call the one that ends last is named."""
    ban(blocks, 10)
    ban(blocks, 30, kind="throttle")
    ban(blocks, 20, scope="account")
    no = blocks.against(("account", "shop"), (), 0)
    assert no is not None
    assert (no.kind, no.available_at) == ("throttle", 30 * SECOND)


@pytest.mark.parametrize(("second", "end"), [(5, 10), (9, 11), (0, 10), (-3, 10)])
def test_a_later_ban_only_prolongs(blocks: Blocks, second: int, end: int) -> None:
    """A second ban of that kind two seconds later never ends the first one sooner."""
    ban(blocks, 10)
    assert ban(blocks, second, at=2).ends() == end * SECOND
    assert len(blocks.states()) == 1


@pytest.mark.parametrize(("seconds", "length"), [(10**9, WEEK), (-5, 0)])
def test_absurd_lengths_are_clamped(blocks: Blocks, seconds: int, length: int) -> None:
    """No ban is believed to last above a week, or to have ended before it began."""
    assert ban(blocks, seconds).length == length


def test_a_pause_ends_when_it_is_taken_away(blocks: Blocks) -> None:
    """A pause without an end holds for ever, names no instant, and goes without taking bans along."""
    blocks.add("shop", None, "pause", "by hand", 0, WALL)
    ban(blocks, 10)
    no = blocks.against(("shop",), (), 10**6 * SECOND)
    assert no is not None
    assert no.unknown
    ban(blocks, 10, at=10**6)
    assert blocks.remove("shop", "pause")
    assert shut(blocks, 10**6)
    assert blocks.remove("shop")
    assert not blocks.remove("shop")
    assert not shut(blocks, 10**6)


@pytest.mark.parametrize("wall", [-(10**6), 0, 10**6])
def test_in_one_boot_only_steady_time_counts(blocks: Blocks, wall: int) -> None:
    """A wall clock that steps neither opens nor prolongs a ban that another process wrote in this boot."""
    ban(blocks, 10)
    other = Blocks("b1")
    other.load(blocks.states(), 4 * SECOND, WALL + wall * SECOND)
    assert shut(other, 9)
    assert not shut(other, 10)


@pytest.mark.parametrize(("passed", "left"), [(4, 6), (10, 0), (10**6, 0), (-(10**6), 10)])
def test_over_a_reboot_wall_time_counts(blocks: Blocks, passed: int, left: int) -> None:
    """After a reboot what is left is told by the wall clock, and is never more than the ban's own length."""
    ban(blocks, 10)
    other = Blocks("b2")
    other.load(blocks.states(), 77 * SECOND, WALL + passed * SECOND)
    ends = [state.ends() for state in other.states()]
    assert ends == ([(77 + left) * SECOND] if left else [])


def test_a_pause_outlives_a_reboot(blocks: Blocks) -> None:
    """What has no end has none in the next boot either."""
    blocks.add("shop", None, "pause", "by hand", 0, WALL)
    other = Blocks("b2")
    other.load(blocks.states(), 0, WALL + 10**6 * SECOND)
    assert shut(other, 10**6)


def test_the_file_keeps_everything(blocks: Blocks, tmp_path: Path) -> None:
    """What is written is read back, and no draft is left beside it."""
    ban(blocks, 10)
    blocks.add("other", None, "pause", "by hand", 0, WALL)
    path = tmp_path / "blocks.json"
    write_blocks(path, [])
    write_blocks(path, blocks.states())
    assert read_blocks(path) == blocks.states()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("raw", [b"", b"[", b"{}", b'[{"scope": 1}]', b"\xff\xfe"])
def test_an_unreadable_file_is_no_file(tmp_path: Path, raw: bytes) -> None:
    """A file that is missing or garbled holds no blocks, and is not an error."""
    path = tmp_path / "blocks.json"
    assert read_blocks(path) == []
    path.write_bytes(raw)
    assert read_blocks(path) == []


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    """No folder, no file: an error that names it."""
    with pytest.raises(StoreUnavailable, match=r"gone/blocks\.json"):
        write_blocks(tmp_path / "gone" / "blocks.json", [])


def test_everywhere_asks_only_for_what_holds_for_all_providers(blocks: Blocks) -> None:
    """Where each provider's blocks lie by themselves, those of all are looked at apart; also when nothing is named."""
    ban(blocks, 10, scope="shop")
    assert blocks.against(("shop", "shop/class:order"), (), 0, everywhere=True) is None
    ban(blocks, 10, scope="*/class:order")
    no = blocks.against(("shop", "shop/class:order"), (), 0, everywhere=True)
    assert no is not None
    assert no.key == "*/class:order"
    assert not shut(blocks, 1, "mall", "mall/class:market")
    ban(blocks, 10, scope="*")
    assert shut(blocks, 1, "mall")
    assert blocks.against((), (), 0) is not None


def record(scope: str, at: int, *, resumed: bool = False, seconds: int | None = None) -> PauseRecord:
    """A pause that was ordered on this machine at that second, or the end of one."""
    length = None if seconds is None else seconds * SECOND
    return PauseRecord(scope, "pause", "here", length, at * SECOND, WALL, "b1", resumed)


def test_pauses_of_this_machine_lie_on_top(blocks: Blocks) -> None:
    """They hold whatever the store says, and are gone when they are taken away; the store's own remain."""
    ban(blocks, 10, scope="mall")
    blocks.obey([record("shop", 1)])
    assert shut(blocks, 99)
    blocks.load(blocks.stored(), 2 * SECOND, WALL)  # news of the store
    assert shut(blocks, 99)
    assert [state.scope for state in blocks.stored()] == []  # the ban is over
    blocks.obey([record("shop", 1, seconds=5)])
    assert shut(blocks, 5)
    assert not shut(blocks, 6)
    blocks.obey([])
    assert not blocks


def test_a_pause_of_the_store_is_taken_back_here(blocks: Blocks) -> None:
    """One that is older; one that somebody made later holds, and so does a ban."""
    blocks.add("shop", None, "pause", "there", 10 * SECOND, WALL)
    blocks.obey([record("shop", 9, resumed=True)])
    assert shut(blocks, 20)
    assert not blocks.take_back(record("shop", 9, resumed=True))
    blocks.obey([record("shop", 11, resumed=True)])
    assert not shut(blocks, 20)
    ban(blocks, 60, at=11)
    assert shut(blocks, 20)
    assert blocks.take_back(record("shop", 11, resumed=True))
    assert [state.kind for state in blocks.stored()] == ["ban"]


def test_a_pause_of_this_machine_is_checked_without_the_server(blocks: Blocks) -> None:
    """Where each provider's blocks lie by themselves, those ordered here are known here."""
    blocks.obey([record("shop/class:order", 1)])
    assert blocks.against(("shop", "shop/class:order"), (), SECOND, everywhere=True) is not None
    assert blocks.against(("shop", "shop/class:market"), (), SECOND, everywhere=True) is None
