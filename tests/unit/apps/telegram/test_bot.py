"""The Bot API over real HTTP: what is obeyed, and that the token is told to nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Event

import pytest
from tests.support.telegram import FakeTelegram

from ratekeeper.apps.telegram import Api, Bot, TelegramDown, TelegramRefused

TOKEN = "77:" + "t" * 4


@pytest.fixture
def telegram() -> Iterator[FakeTelegram]:
    """Telegram."""
    with FakeTelegram(TOKEN) as made:
        yield made


class Waits(list[float]):
    """Notes waits instead of waiting."""

    over = False

    def __call__(self, seconds: float) -> bool:
        self.append(seconds)
        return self.over


@pytest.fixture
def waits() -> Waits:
    """None yet."""
    return Waits()


@pytest.fixture
def api(telegram: FakeTelegram, waits: Waits) -> Iterator[Api]:
    """A bot of Telegram's."""
    made = Api(TOKEN, telegram.url + "/", waits)
    yield made
    made.close()


def test_updates_are_fetched_once(api: Api, telegram: FakeTelegram) -> None:
    """The offset confirms what came before it."""
    telegram.write(1, "/one")
    telegram.write(1, "/two")
    found = api.updates(0, 0)
    assert [each["message"]["text"] for each in found] == ["/one", "/two"]
    assert api.updates(found[-1]["update_id"] + 1, 0) == []


def test_too_many_requests(api: Api, telegram: FakeTelegram, waits: Waits) -> None:
    """The refusal says how long to wait; that long is waited, and the call made again."""
    hint = {"ok": False, "error_code": 429, "description": "Too Many Requests", "parameters": {"retry_after": 7}}
    telegram.troubles += [("sendMessage", (429, hint)), ("sendMessage", (429, hint))]
    api.send(5, "hello")
    assert waits == [7, 7]
    assert telegram.sent == [(5, "hello")]
    waits.over = True
    telegram.troubles.append(("sendMessage", (429, hint)))
    with pytest.raises(TelegramDown, match="stopped"):
        api.send(5, "again")
    assert len(telegram.sent) == 1


def test_long_messages_are_cut(api: Api, telegram: FakeTelegram) -> None:
    """To what Telegram takes."""
    api.send(5, "x" * 5_000)
    assert len(telegram.sent[0][1]) == 4_096


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (None, TelegramDown),
        ((502, {}), TelegramDown),
        ((500, {"ok": False, "error_code": 500, "description": "x"}), TelegramDown),
        ((403, {"ok": False, "error_code": 403, "description": f"bot {TOKEN} was blocked"}), TelegramRefused),
        ((200, {"ok": False, "error_code": "x", "parameters": [1], "description": {}}), TelegramRefused),
        ((429, {"ok": False, "error_code": 429, "parameters": {"retry_after": "nan"}}), TelegramRefused),
        ((200, [1]), TelegramDown),
        ((409, {"ok": False, "error_code": 409, "description": "terminated by other getUpdates"}), TelegramRefused),
    ],
)
def test_errors_are_one_line_without_the_token(
    api: Api, telegram: FakeTelegram, caplog: pytest.LogCaptureFixture, answer: object, kind: type[Exception]
) -> None:
    """Whatever goes wrong; httpx's own log lines, which show the URL, do not come through either."""
    caplog.set_level(logging.DEBUG)
    telegram.troubles.append(("sendMessage", answer))  # type: ignore[arg-type]
    with pytest.raises(kind) as told:
        api.send(5, "hello")
    assert "\n" not in str(told.value)
    assert TOKEN not in str(told.value)
    assert told.value.__cause__ is None
    assert TOKEN not in caplog.text


def test_nobody_there(waits: Waits, telegram: FakeTelegram) -> None:
    """A server that cannot be reached is trouble, not the end."""
    url = telegram.url
    telegram.__exit__(None, None, None)
    api = Api(TOKEN, url, waits)
    try:
        with pytest.raises(TelegramDown, match="ConnectError") as told:
            api.updates(0, 0)
        assert TOKEN not in str(told.value)
    finally:
        api.close()


@pytest.mark.parametrize(
    "odd",
    [
        {"update_id": "x"},
        {"update_id": 1e999},
        {"message": [1]},
        {"message": {"chat": 7}},
        {"message": {"chat": {"id": True}}},
    ],
)
def test_an_odd_update_ends_nothing(odd: dict[str, object]) -> None:
    """The next command is carried out all the same."""
    stop, sent = Event(), []
    good = {"update_id": 8, "message": {"chat": {"id": 5}, "date": 1_000, "text": "/status"}}

    class Odd:
        def updates(self, offset: int, seconds: float) -> list[dict[str, object]]:
            stop.set()
            return [{"update_id": 7, "message": {"chat": {"id": 5}, "date": {}, "text": "/status"}, **odd}, good]

        def send(self, chat: int, text: str) -> None:
            sent.append((chat, text))

    class Replies:
        def answer(self, chat: int, text: str) -> str:
            return "fine"

    Bot(Odd(), Replies(), frozenset({5}), stop, wall=lambda: 1_000.0).run()  # type: ignore[arg-type]
    assert sent[-1] == (5, "fine")
