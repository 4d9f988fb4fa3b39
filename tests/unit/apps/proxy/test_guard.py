"""ratekeeper.apps.proxy.guard: no web page comes in, and no path leads out of an upstream's base."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from ratekeeper import RuleError
from ratekeeper.apps.proxy.guard import Guard, crooked, straight
from ratekeeper.apps.proxy.upstreams import Upstream

PAGES = ["https://evil.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:1", "http://evil.example@127.0.0.1:{port}",
         "file://", "http://127.0.0.1.evil.example:{port}", "HTTPS://EVIL.example", "http://[::1", "*"]  # fmt: skip


def told(found: tuple[int, bytes]) -> tuple[int, str]:
    """Status, and what kind of refusal of the proxy's own it is."""
    return found[0], json.loads(found[1])["error"]["kind"]


@pytest.mark.parametrize("page", PAGES)
def test_a_web_page_is_refused(page: str, raw: Any, proxied: Any) -> None:
    """Whatever it does: nothing is sent, and it reads nothing but the refusal."""

    async def use(here: Any) -> None:
        origin = f"Origin: {page.replace('{port}', str(here.port))}"
        host = f"Host: 127.0.0.1:{here.port}"
        for method in ("GET", "POST", "OPTIONS", "DELETE", "HEAD"):
            request = f"{method} /testland/a HTTP/1.1\r\n{host}\r\n{origin}\r\n\r\n"
            head, _ = await here.ask(request.encode())
            assert head.startswith(b"HTTP/1.1 403 "), method
            assert b"access-control" not in head.lower()
        for path in ("/", "/healthz", "/t/x/testland/a", "http://evil.example/"):
            assert told(await here.get(path, origin)) == (403, "Origin")

    proxied(use)
    assert raw.requests == []


def test_a_page_without_an_origin_is_known_by_its_site(raw: Any, proxied: Any) -> None:
    """Images, links and forms of a page ask without ``Origin``; browsers add where the page is from."""

    async def use(here: Any) -> None:
        for site in ("cross-site", "same-site"):
            assert told(await here.get("/testland/a", f"Sec-Fetch-Site: {site}")) == (403, "Origin")
        for site in ("none", "same-origin"):
            assert (await here.get("/testland/a", f"Sec-Fetch-Site: {site}"))[0] == 200

    proxied(use)
    assert len(raw.requests) == 2


def test_a_websocket_of_a_page_is_refused(raw: Any, proxied: Any) -> None:
    """No same-origin policy holds browsers back there; a program's own client may name the proxy itself."""

    async def use(here: Any) -> None:
        async with aiohttp.ClientSession() as session:
            for origin in ("https://evil.example", "null"):
                with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                    await session.ws_connect(f"http://127.0.0.1:{here.port}/testland/ws", origin=origin)
                assert caught.value.status == 403
            own = f"http://127.0.0.1:{here.port}"
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"{own}/testland/ws", origin=own)
            assert caught.value.status != 403

    proxied(use)
    assert len(raw.requests) == 1


def test_a_page_that_may(raw: Any, proxied: Any) -> None:
    """The user may state origins; all others stay out."""
    guard = Guard(origins=["HTTP://App.test:80/", "http://localhost:3000"])

    async def use(here: Any) -> None:
        for origin in ("http://app.test", "http://localhost:3000"):
            headers = (f"Origin: {origin}", "Sec-Fetch-Site: cross-site")
            assert (await here.get("/testland/a", *headers))[0] == 200
        assert (await here.get("/testland/a", "Origin: http://localhost:3001"))[0] == 403
        both = ("Origin: http://app.test", "Origin: http://evil.example")
        assert (await here.get("/testland/a", *both))[0] in (400, 403)

    proxied(use, guard=guard)
    assert len(raw.requests) == 2
    for wrong in ("*", "app.test", "http://app.test/x", "null"):
        with pytest.raises(RuleError, match="--allow-origin"):
            Guard(origins=[wrong])


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:1", "LOCALHOST", "localhost.:9200", "[::1]:9200", "127.8.8.8"]
)
def test_names_of_the_loopback(host: str) -> None:
    """By whatever port: it may be forwarded."""
    assert Guard().is_own(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9200", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.5:9200", "0.0.0.0",
     "127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.0.0.1, evil.example", "", "127.0.0.1/", "[::1"],
)  # fmt: skip
def test_a_foreign_host_is_refused(host: str, raw: Any, proxied: Any) -> None:
    """A page that has given its own name our address reads nothing, with a token or without."""

    async def use(here: Any) -> None:
        for path in ("/testland/a", "/", "/healthz", "/t/t-1/testland/a"):
            head, _ = await here.ask(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Ratekeeper-Token: t-1\r\n\r\n".encode())
            assert head.split(b" ")[1] in (b"421", b"400"), path

    proxied(use)
    proxied(use, token="t-1")
    assert raw.requests == []


def test_names_that_are_listened_on_or_stated() -> None:
    """On one address that one; on all of them any address as a number, since pages need a name; and what the user states."""
    assert Guard("10.0.0.5").is_own("10.0.0.5:9200")
    assert not Guard("10.0.0.5").is_own("10.0.0.6:9200")
    for anywhere in ("0.0.0.0", "::", ""):
        assert Guard(anywhere).is_own("10.0.0.6:9200") and Guard(anywhere).is_own("[fd00::1]")
        assert not Guard(anywhere).is_own("evil.example")
    assert Guard("0.0.0.0", hosts=["Proxy.lan"]).is_own("proxy.lan.:9200")
    assert Guard("box.lan").is_own("BOX.lan:9200")


def test_the_token_stays_here(raw: Any, proxied: Any) -> None:
    """A Referer of the proxy's own does not go on, and no header that holds the token's path; another Referer does."""

    async def use(here: Any) -> None:
        own = f"http://127.0.0.1:{here.port}/t/t-1/testland/page?x=1"
        for header in (f"Referer: {own}", "Referer: http://x.test/?u=%2Ft%2Ft-1%2Fa", "X-Forwarded-Uri: /t/t-1/testland/a",
                       "Referer: http://LOCALHOST/", "Referer: http://x.test/%252ft%252Ft-1"):  # fmt: skip
            assert (await here.get("/t/t-1/testland/a", header))[0] == 200
        assert (await here.get("/t/t-1/testland/a", "Referer: https://x.test/t/"))[0] == 200

    proxied(use, token="t-1")
    assert [b"t-1" in request or b"localhost" in request.lower() for request in raw.requests] == [False] * 6
    assert [b"\r\nReferer: " in request for request in raw.requests] == [False] * 5 + [True]


CROOKED = [
    "/../a", "/..", "/a/../../b", "/%2e%2e/a", "/%2E%2e/", "/.%2e/a", "/%252e%252e/a", "/%25252e./a", "/..%2fa", "/..%5ca",
    "/..\\a", "/a\\..\\..\\b", "/..;/a", "/..;x=1/a", "/%2e%2e;/a", "/..%3b/a", "/a/..;/..;/b", "//../a", "/a//../../b",
    "/a%2fb/../../c", "/a%2fb/%2e%2e/%2e%2e", "/./../a", "/;/../a", "/..%20/a", "/%20../a", "/%00/a", "/a%0d%0aHost:x",
    "/..%00/", "/a%09b", "/%c0%ae%c0%ae/a", "/..%c0%afa", "/..%252f..%252fa", "/a/%2e/../..", "/..#", "/..%23", "/..%3f",
    "/%" + "25" * 9 + "2e", "/%2525252525252e.",
]  # fmt: skip


@pytest.mark.parametrize("path", CROOKED)
def test_a_path_that_leaves_its_base(path: str, raw: Any, proxied: Any) -> None:
    """It is refused, whatever the server would make of it."""
    assert crooked(path)

    async def use(here: Any) -> None:
        assert told(await here.get(f"/mine{path}?q=1")) == (400, "Path")

    proxied(use, wanted={"mine": Upstream("http", f"localhost:{raw.port}", "/v1")})
    assert raw.requests == []


@pytest.mark.parametrize(
    "path",
    ["/", "/a/../b", "/a/./b//c", "/a..b/...", "/%2F%zz;x|y", "/BTC%2FUSDT", "/a%20b", "/x/%2e%2e/y", "/~a-b_c.d",
     "/%e2%82%ac", "/a/b;v=1/../c", "//host/a", "/..a", "/a%25b"],
)  # fmt: skip
def test_what_stays_goes_on_byte_for_byte(path: str, raw: Any, proxied: Any) -> None:
    """Path and query, since both may be signed; a query may hold what it likes."""
    assert crooked(path) == ""
    query = "?to=/../%2e%2e/..\\&sig=A%3d%3D&b=%00"
    wanted = {"mine": Upstream("http", f"localhost:{raw.port}", "/v1")}
    assert proxied(lambda here: here.get(f"/mine{path}{query}"), wanted=wanted)[0] == 200
    assert raw.requests[0].split(b" ")[1].decode() == f"/v1{path}{query}"


@pytest.mark.parametrize(
    "target", ["//evil.example/a", "/\\evil.example/a", "/%2e%2e/testland/a", "/testland%2fa", "/.", "/;/testland"]
)
def test_what_is_no_upstream(target: str, raw: Any, proxied: Any) -> None:
    """The first segment is a name and nothing else."""
    assert proxied(lambda here: here.get(target))[0] in (400, 404)
    assert raw.requests == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/fapi/v1/klines", "/fapi/v1/klines"),
        ("/fapi//v1/./x/../klines", "/fapi/v1/klines"),
        ("/fapi/v1/%6blines", "/fapi/v1/klines"),
        ("/fapi/v1/%6B%6Cines#x", "/fapi/v1/klines"),
        ("/fapi/v1/x/%2e%2E/klines", "/fapi/v1/klines"),
        ("/a/b/..", "/a/"),
        ("/a//", "/a/"),
        ("/BTC%2FUSDT", "/BTC%2FUSDT"),
        ("/a%", "/a%"),
    ],
)
def test_the_rules_see_the_path_that_is_meant(written: str, meant: str) -> None:
    """A route does not cost less because it is spelled otherwise."""
    assert straight(written) == meant


def test_a_crooked_spelling_costs_what_the_route_costs(raw: Any, proxied: Any, spent: Any) -> None:
    """The provider may resolve it."""

    async def use(here: Any) -> None:
        for path in ("/x/../few", "/%66ew"):
            assert (await here.get(f"/testland{path}"))[0] == 200
        assert told(await here.get("/testland//few", "X-Ratekeeper-Timeout: 0")) == (429, "DeadlineExceeded")

    proxied(use)
    assert [request.split(b" ")[1] for request in raw.requests] == [b"/x/../few", b"/%66ew"]
    assert spent("few-1d") == (2, 0)


def test_the_loop_is_not_blocked_by_long_paths() -> None:
    """Reading a path of the greatest length takes no noticeable time."""
    longest = "/" + "%25" * 20_000

    async def timed() -> float:
        begun = asyncio.get_running_loop().time()
        crooked(longest), straight(longest), crooked("/.." * 20_000), straight("/a/.." * 12_000)
        return asyncio.get_running_loop().time() - begun

    assert asyncio.run(timed()) < 2
