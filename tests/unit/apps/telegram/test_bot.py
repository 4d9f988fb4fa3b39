"""The Bot API over real HTTP: what is obeyed, and that the token is told to nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Event
from typing import Any

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
    "answer",
    [
        b"", b"<html>sign in</html>", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b'"ok"', b"7", b"{}", b'{"ok": 1}',
        b'{"ok": true}', b'{"ok": true, "result": {}}', b'{"ok": true, "result": [1, null, {}, {"update_id": "x"}]}',
        b'{"ok": true, "result": [{"update_id": 1e300}, {"update_id": true}, {"update_id": -4}]}',
        b'{"ok": true, "result": [{"update_id": 99999999999999999999}]}',
        b'{"ok": false}', b'{"ok": false, "error_code": "x"}', b'{"ok": false, "error_code": null}',
        b'{"ok": false, "error_code": 500, "parameters": 7}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_malformed_answer_is_trouble_that_passes(
    api: Api, telegram: FakeTelegram, answer: bytes, status: int
) -> None:
    """Whatever comes back, the bot asks again later; it takes nobody's word but Telegram's that its token is wrong."""
    telegram.troubles.append(("getUpdates", (status, answer)))
    with pytest.raises(TelegramDown):
        api.updates(0, 0)
    telegram.write(1, "/one")
    assert [each["message"]["text"] for each in api.updates(0, 0)] == ["/one"]


@pytest.mark.parametrize(
    ("hints", "seconds"),
    [({}, 1), (7, 1), ({"retry_after": "x"}, 1), ({"retry_after": -3}, 1), ({"retry_after": 1e99}, 3600)],
)
def test_a_malformed_hint_is_no_hint(
    api: Api, telegram: FakeTelegram, waits: Waits, hints: object, seconds: float
) -> None:
    """A refusal that does not say how long to wait is waited for a second; one that says for ever, for an hour."""
    refusal = {"ok": False, "error_code": 429, "description": "Too Many Requests", "parameters": hints}
    telegram.troubles.append(("sendMessage", (429, refusal)))
    api.send(5, "hello")
    assert waits == [seconds]
    assert telegram.sent == [(5, "hello")]


class Telegram:
    """Telegram's side as the bot sees it, without HTTP: keeps updates until they are confirmed.

    Attributes:
        kept: the updates.
        asked: the offsets of all questions.
        troubles: how many of the next questions reach Telegram, but whose answers are lost.
        ends: whether the bot ends at the next question.
    """

    def __init__(self, stop: Event, *texts: object) -> None:
        self.stop = stop
        self.kept = [{"update_id": 7 + nth, "message": _message(text)} for nth, text in enumerate(texts)]
        self.asked: list[int] = []
        self.sent: list[str] = []
        self.troubles = 0
        self.ends = False

    def updates(self, offset: int, seconds: float) -> list[dict[str, Any]]:
        """As `Api.updates`; ends the bot when it would wait for more."""
        self.asked.append(offset)
        self.kept = [each for each in self.kept if each["update_id"] >= offset]
        if self.troubles:
            self.troubles -= 1
            raise TelegramDown("on purpose")
        if self.ends or (not self.kept and seconds):
            self.stop.set()
        return list(self.kept)

    def send(self, chat: int, text: str) -> None:
        """As `Api.send`."""
        self.sent.append(text)


def _message(text: object) -> object:
    return {"chat": {"id": 1}, "date": 1000, "text": text} if isinstance(text, str) else text


class Said:
    """Replies that note what they are asked."""

    def __init__(self, telegram: Telegram) -> None:
        self.done: list[tuple[str, int]] = []
        self._telegram = telegram

    def answer(self, chat: int, text: str) -> str:
        """Note the command, and the last offset that was confirmed."""
        self.done.append((text, self._telegram.asked[-1]))
        return "done"

    def stopped(self) -> str:
        """What is shown after a stop."""
        return "positions"


class Hurry(Event):
    """Waits for nothing."""

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is set."""
        return self.is_set()


def bot(*texts: object) -> tuple[Bot, Telegram, Said]:
    """One to whom this was written."""
    stop = Hurry()
    telegram = Telegram(stop, *texts)
    said = Said(telegram)
    return Bot(telegram, said, frozenset({1}), stop, lambda: 1000.0), telegram, said  # type: ignore[arg-type]


def test_a_command_is_confirmed_before_it_is_carried_out() -> None:
    """Telegram would send it again to a bot that ends in between; after the confirmation it does not."""
    made, telegram, said = bot("/pause", "/resume")
    made.run()
    assert said.done == [("/pause", 9), ("/resume", 9)]
    assert telegram.asked == [0, 9, 9]


def test_a_command_is_not_done_twice_where_a_confirmation_is_lost() -> None:
    """The question arrived, its answer did not: the bot asks again and acts once; a bot that ends instead has not acted."""
    made, telegram, said = bot("/resume")
    whole = telegram.updates

    def lossy(offset: int, seconds: float) -> list[dict[str, Any]]:
        telegram.troubles = 2 if len(telegram.asked) == 1 else telegram.troubles
        return whole(offset, seconds)

    telegram.updates = lossy  # type: ignore[method-assign]
    made.run()
    assert said.done == [("/resume", 8)]
    made, telegram, said = bot("/resume")
    telegram.ends = True
    made.run()
    assert (said.done, len(telegram.kept)) == ([], 1)


def test_malformed_messages_are_passed_over() -> None:
    """None of them ends the bot, or keeps it from the next; one without a date is of unknown age."""
    strange = [None, 7, "", [], {"chat": 1}, {"chat": {"id": True}, "text": "/pause"}, {"chat": {"id": "1"}, "text": "/x"},
               {"chat": {"id": 1}, "text": 7}, {"chat": {"id": 1}, "text": "/pause", "date": "x"},
               {"chat": {"id": 1}, "text": "/resume", "date": float("nan")}, {"chat": {"id": [1]}, "text": "/y"}]  # fmt: skip
    made, telegram, said = bot(*strange, "/status")
    made.run()
    assert [text for text, _ in said.done] == ["/status"]
    assert [text for text in telegram.sent if "came late" in text] == [
        f"{word} came late and was not carried out. Send it again if you still want it."
        for word in ("/pause", "/resume")
    ]


def test_a_stop_shows_the_positions_afterwards() -> None:
    """First that it is done, then what is open."""
    made, telegram, said = bot("/stop")
    made.run()
    assert [text for text, _ in said.done] == ["/stop"]
    assert telegram.sent[0] == "done"
    assert telegram.sent[1:] in ([], ["positions"])  # the bot may have ended before
