"""ratekeeper.adapters.requests and the urllib3 pools below it, against a real server."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3
from urllib3.util import Retry

from ratekeeper import Blocked, DeadlineExceeded, Rejected, SignatureWouldExpire
from ratekeeper.adapters.requests import Adapter


@pytest.fixture
def session(gate: Any) -> Iterator[requests.Session]:
    """A session with our adapter."""
    with requests.Session() as made:
        made.trust_env = False
        made.mount("http://", Adapter(gate=gate))
        yield made


def test_each_request_is_charged(session: Any, origin: Any, spent: Any) -> None:
    """Requests are charged by what their query, form and JSON say."""
    assert session.get(f"{origin.url}/a").json()["ok"]
    session.get(f"{origin.url}/priced", params={"limit": 50})
    session.post(f"{origin.url}/form", data={"amount": 50})
    session.post(f"{origin.url}/json", json={"amount": 50})
    assert origin.paths() == ["/a", "/priced", "/form", "/json"]
    assert spent() == (28, 0)


def test_redirects_and_inner_retries_are_charged(gate: Any, origin: Any, spent: Any) -> None:
    """Redirects that the session follows, and retries that urllib3 makes out of sight, are charged one by one."""
    retries = Retry(3, status_forcelist=[503], backoff_factor=0, allowed_methods=None)
    with requests.Session() as session:
        session.mount("http://", Adapter(gate=gate, max_retries=retries))
        assert session.get(f"{origin.url}/a?do=redirect").status_code == 200
        assert spent() == (2, 0)
        assert session.get(f"{origin.url}/a?do=fail-once").json()["seen"] == 2
        assert spent() == (4, 0)
        assert session.get(f"{origin.url}/a?do=reset-once").json()["ok"]
        assert sum(spent()) == 6
    assert len(origin.arrivals) == 6


def test_refusal_is_a_request_exception(session: Any, origin: Any) -> None:
    """A rejected call raises what existing except clauses catch, and what Ratekeeper's users catch; it pickles."""
    for _ in range(2):
        session.get(f"{origin.url}/few")
    with pytest.raises(requests.RequestException) as caught:
        session.get(f"{origin.url}/few")
    error = caught.value
    assert isinstance(error, Rejected) and isinstance(error, DeadlineExceeded | Blocked)
    assert not isinstance(error, requests.ConnectionError)
    assert error.request.url.endswith("/few") and error.retry_at > time.time()
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and copy.limit == error.limit and str(copy) == str(error)
    assert len(origin.arrivals) == 2


def test_signed_request_fails_fast(session: Any, origin: Any) -> None:
    """A signed request that would have to wait beyond its window is refused at once."""
    signed = {"timestamp": int(time.time() * 1000), "signature": "s"}
    for _ in range(2):
        session.post(f"{origin.url}/few", data=signed)
    with pytest.raises(SignatureWouldExpire, match="already signed"):
        session.post(f"{origin.url}/few", data=signed)


def test_an_inner_retry_after_the_signature_has_expired_is_what_came_before(gate: Any, origin: Any) -> None:
    """A retry of urllib3's own is not sent then: the program's timeout is still a timeout."""
    retries = Retry(3, backoff_factor=0.9, status_forcelist=[503], allowed_methods=None)

    def url(do: str) -> str:
        return f"{origin.url}/rate?do={do}&timestamp={int(time.time() * 1000)}&recvWindow=500&signature=s"

    with requests.Session() as session:
        session.mount("http://", Adapter(gate=gate, max_retries=retries))
        with pytest.raises(requests.ReadTimeout):
            session.get(url("hang"), timeout=0.8)
        with pytest.raises(requests.exceptions.RetryError, match="too many 503"):
            session.get(url("trouble"), timeout=0.8)
    assert len(origin.paths()) == 3  # the backoff of urllib3 begins with the second retry


def test_error_bodies_stay_unread(session: Any, origin: Any) -> None:
    """The body of a refusal is read for the rules, and the caller can still read it in any way."""
    url = f"{origin.url}/a?do=zipped-refusal"
    assert session.get(url).json()["code"] == -1102
    with session.get(url, stream=True) as response:
        assert response.raw.read(2) == b"\x1f\x8b"
    with session.get(url, stream=True) as response:
        assert b"-1102" in b"".join(response.iter_content(7))
    assert session.head(url).status_code == 400
    assert session.get(f"{origin.url}/a").ok  # the connection is in order


def test_refusals_are_understood(session: Any, origin: Any, gate: Any) -> None:
    """A 429 whose body names the limit reaches the gate as throttled."""
    kinds: list[str] = []
    gate.on(lambda event: kinds.append(event.kind))
    assert session.get(f"{origin.url}/priced?do=refuse").json()["code"] == -1003
    assert "throttled" in kinds


def test_unsent_is_refunded(session: Any, origin: Any, spent: Any) -> None:
    """A request that never got a connection costs nothing."""
    origin.server.shutdown()
    origin.server.server_close()
    with pytest.raises(requests.ConnectionError):
        session.get(f"{origin.url}/a")
    assert spent() == (0, 0)


@pytest.mark.parametrize("do", ["reset", "hang"])
def test_unanswered_stays_charged(do: str, session: Any, origin: Any, spent: Any) -> None:
    """A request that was sent and never answered stays in flight."""
    with pytest.raises(requests.RequestException):
        session.get(f"{origin.url}/a?do={do}", timeout=0.2)
    assert sum(spent()) == 1


def test_stream_holds_its_slot(session: Any, origin: Any, spent: Any) -> None:
    """A slot is held until the last byte, or until the reader leaves."""
    with session.get(f"{origin.url}/stream?do=stream", stream=True) as response:
        assert spent("streams")[1] == 1
        origin.more.release(3)
        assert list(response.iter_lines()) == [b"part0", b"part1", b"part2"]
        assert spent("streams") == (0, 0)
    with session.get(f"{origin.url}/stream?do=stall", stream=True):
        assert spent("streams")[1] == 1
    assert spent("streams") == (0, 0)
    origin.more.release(3)
    assert session.get(f"{origin.url}/stream?do=stream").text == "part0\npart1\npart2\n"
    assert spent("streams") == (0, 0)
    assert session.get(f"{origin.url}/a").ok


def test_waits_outside_the_timeout(session: Any, origin: Any, gate: Any) -> None:
    """The request's own timeout does not count the wait for a permit."""
    with gate.permit("testland", "GET", "/stream"), gate.permit("testland", "GET", "/stream") as second:
        threading.Timer(0.4, second.refund).start()
        origin.more.release(3)
        assert session.get(f"{origin.url}/stream?do=stream", timeout=0.3).ok


def test_proxies_are_governed(gate: Any, origin: Any, spent: Any) -> None:
    """A plain-HTTP proxy gets whole URLs; the charge goes to the host they name."""
    with requests.Session() as session:
        session.mount("http://", Adapter(gate=gate))
        session.get("http://testland.invalid/priced?limit=50", proxies={"http": origin.url})
    assert origin.arrivals[0].path == "http://testland.invalid/priced"
    assert spent() == (7, 0)


def test_pickled_adapter_asks_the_shared_gate() -> None:
    """Sessions with our adapter can still be sent to other processes."""
    copy = pickle.loads(pickle.dumps(Adapter(pool_maxsize=3)))
    assert copy._pool_maxsize == 3
    assert copy.poolmanager.pool_classes_by_scheme["https"].ratekeeper is copy._governor


def test_hooks_are_where_we_think(origin: Any) -> None:
    """What we replace in urllib3 exists and is what every request goes through; an upgrade that moves it fails here."""
    calls: list[str] = []

    class Pool(urllib3.HTTPConnectionPool):
        def urlopen(self, method: str, url: str, body: Any = None, headers: Any = None, *a: Any, **k: Any) -> Any:
            calls.append("urlopen")
            return super().urlopen(method, url, body, headers, *a, **k)

        def _make_request(self, conn: Any, method: str, url: str, *a: Any, **k: Any) -> Any:
            calls.append("_make_request")
            assert "preload_content" in k
            response = super()._make_request(conn, method, url, *a, **k)
            assert response._original_response is not None and response._request_url
            assert response._pool is self
            return response

    manager = urllib3.PoolManager()
    manager.pool_classes_by_scheme = {"http": Pool}
    manager.request("GET", f"{origin.url}/a?do=redirect")
    assert calls == ["urlopen", "_make_request"] * 2
