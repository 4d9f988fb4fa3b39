"""Who of the waiting calls goes next."""

from __future__ import annotations

import random

from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Limit
from ratekeeper.waiting.queue import AGEING, Lane, Queue, Waiter

LIMIT = Limit("l", "w", 100, SECOND)
FAR = 1 << 60


def wants(*costs: tuple[str, int], priority: int = 2, arrived: int = 0, deadline: int = FAR) -> Waiter:
    """A call that needs so much on those ledgers."""
    return Waiter(tuple(Charge(key, LIMIT, cost) for key, cost in costs), priority, arrived, deadline)


def serve(queue: Queue, now: int = 0, room: dict[str, int] | None = None) -> list[Waiter]:
    """Try what is due: grants while there is room (by default without end), and lets the others wait until the next ns."""
    served = []
    for lane in queue.due(now):
        head = lane.head()
        assert head is not None
        if room is None or all(room.get(c.key, FAR) >= c.cost for c in head.charges):
            for c in head.charges:
                if room is not None and c.key in room:
                    room[c.key] -= c.cost
            queue.served(head, now)
            served.append(head)
        else:
            lane.available_at = now + 1
    return served


def test_first_come_first_served() -> None:
    """In a class the oldest goes first, whatever it costs."""
    queue = Queue()
    calls = [wants(("a", cost)) for cost in (5, 1, 90, 1, 33)]
    for call in calls:
        queue.add(call)
    assert queue.count == 5
    assert serve(queue) == calls
    assert queue.count == 0
    assert queue.next_instant() is None


def test_classes() -> None:
    """A higher class goes before an older call of a lower one."""
    queue = Queue()
    low, high = wants(("a", 1), priority=4), wants(("a", 1), priority=0)
    queue.add(low)
    queue.add(high)
    assert serve(queue) == [high, low]


def test_no_blocking_between_ledgers() -> None:
    """A call whose ledger is empty keeps no other from a ledger that is not."""
    queue = Queue()
    stuck, free, both = wants(("a", 1)), wants(("b", 1)), wants(("a", 1), ("b", 1))
    for call in (stuck, both, free):
        queue.add(call)
    assert serve(queue, room={"a": 0, "b": 5}) == [free]
    assert queue.count == 2


def test_small_ones_pass_a_big_one_that_does_not_fit() -> None:
    """What is too little for the oldest serves smaller ones; when there is enough again, the oldest is first."""
    queue = Queue()
    big, small = wants(("a", 60)), [wants(("a", 5)) for _ in range(3)]
    for call in (big, *small):
        queue.add(call)
    assert serve(queue, 0, {"a": 10}) == small[:2]
    assert serve(queue, 1, {"a": 100}) == [big, small[2]]


def test_many_waiters_are_one_lane() -> None:
    """Calls alike stand in one lane: only its head is tried."""
    queue = Queue()
    for _ in range(5000):
        queue.add(wants(("a", 1)))
    tried: list[Lane] = []
    for lane in queue.due(0):
        tried.append(lane)
        lane.available_at = 1
    assert len(tried) == 1


def test_backlog_counts_a_class() -> None:
    """What a class waits for on a ledger, over all lanes of this process; who left is not counted any more."""
    queue = Queue()
    one, two, three = wants(("a", 3)), wants(("a", 50), ("b", 1)), wants(("a", 7), priority=3)
    lane = queue.add(one)
    queue.add(two)
    queue.add(three)
    assert queue.backlog(lane) == {"a": 53}
    queue.remove(two)
    assert queue.backlog(lane) == {"a": 3}
    queue.remove(two)
    queue.remove(one)
    assert queue.backlog(lane) == {"a": 0}


def test_ahead_is_what_older_heads_wait_for_here() -> None:
    """Older and higher heads are ahead on a ledger, unless they wait for another one."""
    queue = Queue()
    old, other, young = queue.add(wants(("a", 50))), queue.add(wants(("a", 9), ("b", 1))), queue.add(wants(("a", 1)))
    assert queue.ahead(young, 0) == {"a": 59}
    assert queue.ahead(old, 0) == {}
    other.why = Refusal("b", 5)
    old.why = Refusal("a", 5)
    assert queue.ahead(young, 0) == {"a": 50}
    queue.add(wants(("a", 4), priority=0))
    assert queue.ahead(old, 0) == {"a": 4}


def test_newcomers_queue_only_behind_those_who_need_the_same() -> None:
    """A newcomer may go at once where nobody waits."""
    queue = Queue()
    queue.add(wants(("a", 1)))
    assert queue.busy(wants(("a", 1), ("b", 1)).charges)
    assert not queue.busy(wants(("b", 1)).charges)


def test_deadlines() -> None:
    """Calls are taken out when their deadline passes, wherever they stand, and the next instant is told."""
    queue = Queue()
    calls = [wants(("a", 1), deadline=deadline) for deadline in (30, 10, 20)]
    for call in calls:
        queue.add(call).available_at = 100
    assert queue.next_instant() == 10
    assert queue.expired(9) == []
    assert queue.expired(20) == [calls[1], calls[2]]
    assert queue.next_instant() == 30
    assert serve(queue, 100) == [calls[0]]
    assert queue.expired(200) == []


def test_a_far_deadline_keeps_no_memory() -> None:
    """One call that waits for long does not hold on to all that were served meanwhile."""
    queue = Queue()
    queue.add(wants(("z", 1), deadline=5)).available_at = FAR
    for _ in range(5000):
        queue.add(wants(("a", 1)))
        assert len(serve(queue)) == 1
    assert len(queue._deadlines) < 200


def test_freed_and_look() -> None:
    """Units that came back make the lanes of that ledger due; `look` makes all due."""
    queue = Queue()
    one, two = queue.add(wants(("a", 1))), queue.add(wants(("b", 1)))
    one.available_at = two.available_at = FAR
    assert not queue.released(["c"])
    assert queue.released(["a", "c"])
    assert (one.available_at, two.available_at) == (0, FAR)
    queue.look()
    assert two.available_at == 0


def test_ageing() -> None:
    """A lane unserved for long is lifted class by class, never to the highest, and begins anew when it was served."""
    queue = Queue()
    low = [wants(("a", 1), priority=4) for _ in range(2)]
    for call in low:
        queue.add(call)
    high = wants(("a", 1), priority=2, arrived=2 * AGEING)
    queue.add(high)
    assert serve(queue, 2 * AGEING) == [low[0], high, low[1]]
    old = wants(("a", 1), priority=4)
    lane = queue.add(old)
    assert lane.rank(100 * AGEING)[0] == 1
    first = wants(("a", 1), priority=0)
    queue.add(first)
    assert serve(queue, 100 * AGEING) == [first, old]


def test_restore() -> None:
    """A call whose permit came to nothing is the first of its lane again."""
    queue = Queue()
    calls = [wants(("a", 1)) for _ in range(3)]
    for call in calls:
        queue.add(call)
    first = next(iter(queue.due(0))).head()
    assert first is calls[0]
    queue.served(first, 0)
    queue.restore(first)
    assert queue.count == 3
    assert serve(queue) == calls


def test_earliest_counts_those_before() -> None:
    """A newcomer's soonest instant lies as many windows ahead as those before it fill."""
    queue = Queue()
    for _ in range(250):
        queue.add(wants(("a", 1)))
    last = wants(("a", 1))
    queue.add(last)
    assert queue.earliest(last, 7 * SECOND) == 8 * SECOND
    alone = wants(("b", 0))
    queue.add(alone)
    assert queue.earliest(alone, 7) == 7


def test_drain() -> None:
    """Everybody leaves at once."""
    queue = Queue()
    calls = [wants((key, 1)) for key in "aab"]
    for call in calls:
        queue.add(call)
    assert set(queue.drain()) == set(calls)
    assert queue.count == 0
    assert list(queue.due(0)) == []


def test_any_order_of_coming_and_going() -> None:
    """Whatever comes, goes, is served or expires: counts and demands end at nothing."""
    for seed in range(60):
        r, queue, here = random.Random(seed), Queue(), []
        for now in range(200):
            what = r.random()
            if what < 0.5:
                keys = r.sample("abc", r.randint(1, 3))
                here.append(
                    wants(
                        *((k, r.randrange(20)) for k in keys), priority=r.randrange(5), deadline=now + r.randrange(90)
                    )
                )
                queue.add(here[-1])
            elif what < 0.7 and here:
                queue.remove(r.choice(here))
            elif what < 0.9:
                serve(queue, now, {key: r.randrange(30) for key in "abc"})
            else:
                queue.expired(now)
            assert queue.count == sum(call.waiting for call in here)
        queue.expired(10_000)
        assert (queue.count, queue._demand, queue._lanes, queue._by_key) == (0, {}, {}, {})


def test_scopes_have_lanes_of_their_own() -> None:
    """A call never stands behind one that a block of another scope may hold, though both need the same ledger."""
    queue = Queue()
    charges = (Charge("a", LIMIT, 1),)
    order, cancel = (Waiter(charges, 2, 0, FAR, (kind,)) for kind in ("order", "cancel"))
    behind = Waiter(charges, 2, 0, FAR, ("order",))
    lane = queue.add(order)
    assert queue.add(cancel) is not lane
    assert queue.add(behind) is lane
    lane.available_at, lane.why = FAR, Refusal("order", FAR, kind="pause")
    assert serve(queue) == [cancel]
    assert queue.ahead(lane, 0) == {}
