"""Orderly as the grid needs it: signed calls through the gate, with all that its policies do around them.

Nothing here retries, waits for a limit or keeps answers: `Gate.call_async` does.
"""

import base64
import json
import time
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ratekeeper import Gate, OutcomeUnknown, Permit

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
NOT_FOUND = -1006
"""Orderly's code for an order that it does not know."""


class Refused(Exception):
    """The exchange did not want what it was asked."""

    def __init__(self, status: int, told: dict[str, Any]) -> None:
        super().__init__(f"HTTP {status}: {told.get('code')} {told.get('message')}")
        self.code = told.get("code")


class Told(NamedTuple):
    """An answer: its data, where it came from (fresh, hit, stale…), and its age in seconds."""

    data: Any
    service: str
    age: float


class Key:
    """An Orderly key. It signs anew for each attempt, so no signature grows old in a queue.

    Args:
        account: the account's id.
        secret: 32 bytes in base58, with or without ``ed25519:`` before them.
    """

    def __init__(self, account: str, secret: str) -> None:
        number = 0
        for letter in secret.removeprefix("ed25519:"):
            number = number * 58 + ALPHABET.index(letter)
        self._key = Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))
        self.account = account
        self.public = "ed25519:" + base58(self._key.public_key().public_bytes_raw())
        self.names = {"orderly-account-id": account, "orderly-key": self.public}

    def sign(self, text: str) -> str:
        """The signature of a text."""
        return base64.urlsafe_b64encode(self._key.sign(text.encode())).decode()

    def headers(self, method: str, target: str, body: str) -> dict[str, str]:
        """Everything that a signed request carries."""
        now = str(int(time.time() * 1000))
        return {**self.names, "orderly-timestamp": now, "orderly-signature": self.sign(now + method + target + body)}

    def login(self) -> str:
        """The message that opens a private stream."""
        now = int(time.time() * 1000)
        params = {"orderly_key": self.public, "sign": self.sign(str(now)), "timestamp": now}
        return json.dumps({"id": "login", "event": "auth", "params": params})


class Exchange:
    """One account on Orderly.

    Args:
        gate: whose limits and policies count.
        url: of the REST API.
        key: of the account.
        patience: seconds that an answer may take, and seconds that a call may wait for leave.
    """

    def __init__(self, gate: Gate, url: str, key: Key, patience: tuple[float, float]) -> None:
        self.gate = gate
        self.key = key
        parts = urlsplit(url)
        provider = gate.match(parts.netloc)
        if provider is None:
            raise SystemExit(f"no rules for {parts.netloc}: set RATEKEEPER_HOSTS={parts.netloc}=orderly")
        self._provider = provider
        self._client = httpx.AsyncClient(base_url=url, timeout=patience[0], headers={"User-Agent": "grid_bot"})
        self._wait = patience[1]

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def call(self, method: str, path: str, query: dict[str, Any] | None = None, body: Any = None) -> Told:
        """One call.

        Raises:
            Refused: the exchange said no.
            Rejected, RetriesExhausted, OutcomeUnknown: see `ratekeeper.errors`.
        """
        target = path + ("?" + urlencode(query) if query else "")
        text = json.dumps(body) if body is not None else ""

        async def send(permit: Permit) -> tuple[int, Any, bytes]:
            headers = self.key.headers(method, target, text)
            if text:
                headers["Content-Type"] = "application/json"
            answer = await self._client.request(method, target, content=text or None, headers=headers)
            if answer.status_code == 403 and "retry-after" in answer.headers:
                self._shut_out(permit, float(answer.headers["retry-after"]))
            return answer.status_code, answer.headers, answer.content

        got = await self.gate.call_async(
            self._provider, method, path, send, params=query, body=body, headers=self.key.names, timeout=self._wait
        )
        try:
            told = json.loads(got.body)
        except ValueError:
            told = {}
        if got.status != 200 or not told.get("success"):
            raise Refused(got.status, told)
        return Told(told["data"], str(got.service), got.age)

    def _shut_out(self, permit: Permit, seconds: float) -> None:
        """Orderly documents no bans, so its rules know none. A firewall's 403 that says for how long is one: it is made
        known to every process, and to the next program."""
        for scope in permit.plan.scopes:
            if "/ip:" in scope:
                self.gate.block(scope, seconds, kind="ban", reason="HTTP 403 with Retry-After")

    # -- orders

    async def place(self, client_id: str, symbol: str, side: str, price: float, quantity: float) -> bool:
        """Place a limit order; whether the exchange has it. Whatever happens, it is sent once.

        If nobody can tell whether it arrived, the order is asked for before anything else is done.
        """
        order = {"symbol": symbol, "side": side, "order_type": "LIMIT", "client_order_id": client_id}
        try:
            await self.call("POST", "/v1/order", body={**order, "order_price": price, "order_quantity": quantity})
        except OutcomeUnknown:
            return await self.find(client_id) is not None
        return True

    async def find(self, client_id: str) -> dict[str, Any] | None:
        """The order with that client order id, in whatever state; None if there is none."""
        try:
            return dict((await self.call("GET", f"/v1/client/order/{client_id}")).data)
        except Refused as refused:
            if refused.code == NOT_FOUND:
                return None
            raise

    async def cancel(self, client_id: str, symbol: str) -> None:
        """Cancel an order, if it is still open."""
        try:
            await self.call("DELETE", "/v1/client/order", {"client_order_id": client_id, "symbol": symbol})
        except Refused as refused:
            if refused.code != NOT_FOUND:
                raise

    async def open_orders(self, symbol: str) -> dict[str, dict[str, Any]]:
        """All open orders, by client order id."""
        rows = (await self.call("GET", "/v1/orders", {"symbol": symbol, "status": "INCOMPLETE", "size": 500})).data
        return {row["client_order_id"]: row for row in rows["rows"]}

    # -- what is looked at

    async def price(self, symbol: str) -> Told:
        """The price by REST, with its age; the stream tells it sooner."""
        told = await self.call("GET", f"/v1/public/futures/{symbol}")
        return told._replace(data=float(told.data["mark_price"]))

    async def positions(self) -> Told:
        """The account's positions; kept for 30 s, and served with its age when the exchange gives no answer."""
        return await self.call("GET", "/v1/positions")


def base58(raw: bytes) -> str:
    """Bytes as text, the way Orderly writes keys."""
    number, letters = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        letters = ALPHABET[digit] + letters
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + letters
