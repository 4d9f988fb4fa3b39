"""The part of Telegram's Bot API that the bot uses, over real HTTP on the loopback: polls, messages, refusals, trouble."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any

from tests.support.tidy import TidyServer

__all__ = ["FakeTelegram"]


class FakeTelegram:
    """One bot's side of Telegram.

    Args:
        token: the one that is taken.

    Attributes:
        url: what to give as ``RATEKEEPER_TELEGRAM_URL``.
        sent: (chat, text) of every message that the bot wrote.
        arrivals: (instant, method) of every call; steady seconds.
        troubles: what to do with the next calls: a status with a body (bytes are sent as they are), or None to hang up
            without an answer.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.sent: list[tuple[int, str]] = []
        self.arrivals: list[tuple[float, str]] = []
        self.troubles: deque[tuple[str, tuple[int, Any] | None]] = deque()
        self._updates: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._closed = False
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                params = json.loads(self.rfile.read(length) or b"{}")
                token, _, method = self.path.removeprefix("/bot").partition("/")
                answer = fake._answer(token, method, params)
                if answer is None:
                    self.close_connection = True
                    return
                status, body = answer
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = TidyServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def write(self, chat: int, text: str, *, age: float = 0.0) -> None:
        """Somebody writes to the bot; `age`: so many seconds ago."""
        with self._news:
            number = 500 + len(self._updates)
            message = {
                "message_id": number,
                "date": int(time.time() - age),
                "chat": {"id": chat, "type": "private"},
                "from": {"id": chat, "is_bot": False},
                "text": text,
            }
            self._updates.append({"update_id": number, "message": message})
            self._news.notify_all()

    def ask(self, chat: int, text: str, *, age: float = 0.0, seconds: float = 30.0) -> str:
        """Write, and wait for the next answer to that chat."""
        with self._news:
            known = sum(to == chat for to, _ in self.sent)
        self.write(chat, text, age=age)
        with self._news:
            assert self._news.wait_for(lambda: sum(to == chat for to, _ in self.sent) > known, seconds), "no answer"
            return [said for to, said in self.sent if to == chat][known]

    def _answer(self, token: str, method: str, params: dict[str, Any]) -> tuple[int, Any] | None:
        with self._news:
            self.arrivals.append((time.monotonic(), method))
            if self.troubles and self.troubles[0][0] == method:
                return self.troubles.popleft()[1]
            if token != self.token:
                return 401, {"ok": False, "error_code": 401, "description": "Unauthorized"}
            if method == "sendMessage":
                self.sent.append((params["chat_id"], params["text"]))
                self._news.notify_all()
                return 200, {"ok": True, "result": {"message_id": len(self.sent)}}
            if method != "getUpdates":
                return 404, {"ok": False, "error_code": 404, "description": "Not Found"}
            offset = params.get("offset", 0)

            def fresh() -> list[dict[str, Any]]:
                return [each for each in self._updates if each["update_id"] >= offset]

            self._news.wait_for(lambda: fresh() or self._closed, params.get("timeout", 0))
            return 200, {"ok": True, "result": fresh()}

    def __enter__(self) -> FakeTelegram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
