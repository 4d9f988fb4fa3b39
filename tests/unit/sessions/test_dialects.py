"""How providers are asked for topics, and what of their messages is no data."""

from __future__ import annotations

import json

import pytest

from ratekeeper import Gate
from ratekeeper.sessions.dialects import Habits, dialect_of, habits_of


def test_many_topics_in_few_messages() -> None:
    """Where the dialect allows, topics are packed."""
    texts = dialect_of("binance-spot").wanting([f"s{number}@trade" for number in range(120)], 7)
    bodies = [json.loads(text) for text in texts]
    assert [len(body["params"]) for body in bodies] == [50, 50, 20]
    assert [body["id"] for body in bodies] == [7, 8, 9]
    assert {body["method"] for body in bodies} == {"SUBSCRIBE"}


def test_one_topic_a_message() -> None:
    """Orderly takes one topic a message."""
    (first, second) = dialect_of("orderly").wanting(["a@trade", "b@trade"], 1, gone=True)
    assert json.loads(first) == {"id": 1, "event": "unsubscribe", "topic": "a@trade"}
    assert json.loads(second)["topic"] == "b@trade"


def test_topics_that_are_objects() -> None:
    """Bitget's topics are objects."""
    topic = {"instType": "SPOT", "channel": "ticker", "instId": "BTCUSDT"}
    assert json.loads(dialect_of("bitget").wanting([topic], 1)[0]) == {"op": "subscribe", "args": [topic]}


@pytest.mark.parametrize(
    ("provider", "message", "expected"),
    [
        ("orderly", '{"event":"ping","ts":1}', (True, '{"event":"pong"}')),
        ("orderly", '{"topic":"a@trade","data":{}}', (False, "")),
        ("bitget", "pong", (True, "")),
        ("bitget", '{"event":"subscribe","arg":{}}', (True, "")),
        ("bitget", '{"event":"error","code":30006}', (False, "")),
        ("binance-usdm", '{"result":null,"id":1}', (True, "")),
        ("binance-usdm", '{"e":"trade"}', (False, "")),
        ("unknown", '{"event":"subscribe"}', (False, "")),
    ],
)
def test_what_is_no_data(provider: str, message: str, expected: tuple[bool, str]) -> None:
    """Acknowledgements, pings and pongs are not handed on; a ping that comes as text is answered."""
    assert dialect_of(provider).reply(message) == expected


def test_habits_come_from_the_rules() -> None:
    """Lifetimes and pings are the rule file's."""
    with Gate("memory://") as gate:
        assert habits_of(gate.provider("bitget"), "/v2/ws/public") == Habits(86_400, 30, client_pings=True)
        assert habits_of(gate.provider("binance-spot"), "/stream") == Habits(86_400, 20, client_pings=False)
    assert habits_of(None, "/") == Habits()
