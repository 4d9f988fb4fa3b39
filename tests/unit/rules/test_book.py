"""The rule book: hosts, namespaces, files of the user."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ratekeeper.errors import RuleError, UnknownProvider
from ratekeeper.rules.book import Rulebook, normal_host
from ratekeeper.rules.call import Request
from ratekeeper.rules.numbers import Adjustments
from ratekeeper.rules.provider import Provider

OWN = """
format = 1
name = "{name}"
title = "Mine"
hosts = {hosts}
paths = {paths}
source = "S"
[sources]
S = {{ title = "t", read = 2026-11-20, confidence = "D" }}
[limits.calls-1s]
unit = "calls"
capacity = 7
period = "1s"
[default]
cost = {{ calls = 1 }}
"""


def own(folder: Path, name: str, hosts: list[str], paths: list[str] | None = None) -> Path:
    """A rule file of the user."""
    path = folder / f"{name}-{len(list(folder.iterdir()))}.toml"
    path.write_text(OWN.format(name=name, hosts=hosts, paths=paths or []), encoding="utf-8")
    return path


def test_bundled() -> None:
    """The bundled providers are there and good."""
    book = Rulebook.load()
    assert {"binance-spot", "binance-usdm"} <= set(book.names())
    assert all(isinstance(book.provider(name), Provider) for name in book.names())


def test_unknown() -> None:
    """An unknown name, also in a mapping of hosts, is an error that lists the known ones."""
    with pytest.raises(UnknownProvider, match="binance-usdm"):
        Rulebook.load().provider("kraken-of-the-deep")
    with pytest.raises(UnknownProvider, match="RATEKEEPER_HOSTS"):
        Rulebook.load(hosts={"localhost": "nobody"})


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("fapi.binance.com", "binance-usdm"),
        ("FAPI.binance.com:443", "binance-usdm"),
        ("fapi.binance.com.", "binance-usdm"),
        ("fapi.binance.com.:80", "binance-usdm"),
        ("api.binance.com", "binance-spot"),
        ("stream.binance.com:9443", "binance-spot"),
        ("binance.com", None),
        ("evil-fapi.binance.com.example", None),
        ("[::1]:80", None),
        ("", None),
    ],
)
def test_hosts(host: str, name: str | None) -> None:
    """Hosts are matched whole, in any case, with any port; everything else has no rules."""
    found = Rulebook.load().for_host(host, "/x")
    assert (found.name if found else None) == name


def test_mapped_hosts() -> None:
    """Hosts that the user maps make a namespace of their own; the same host with another port is not meant."""
    book = Rulebook.load(hosts={"127.0.0.1:9300": "binance-usdm", "LOCALHOST:1": "binance-usdm", "box": "binance-spot"})
    mapped = book.for_host("127.0.0.1:9300", "/fapi/v1/time")
    assert mapped is not None
    assert mapped.namespace == "binance-usdm@127.0.0.1:9300+localhost:1"
    assert mapped is book.provider("binance-usdm") is book.for_host("localhost:1")
    assert book.for_host("127.0.0.1:9301") is None
    assert book.for_host("127.0.0.1") is None
    assert [charge.key for charge in mapped.plan(Request("GET", "/fapi/v1/time")).charges] == [
        "binance-usdm@127.0.0.1:9300+localhost:1/weight-1m/ip:default"
    ]
    anywhere = book.for_host("box:8080")
    assert anywhere is not None
    assert anywhere.namespace == "binance-spot@box"


@pytest.mark.parametrize("stated", ["box.example", "BOX.example.", "box.example:443", "Box.Example.:80"])
def test_a_mapped_host_in_every_spelling(stated: str) -> None:
    """It is one host with one namespace; only one that is mapped without a port stands for its other ports, too."""
    book = Rulebook.load(hosts={stated: "binance-usdm"})
    for asked in ("box.example", "box.example.", "BOX.EXAMPLE:443", "box.example:80"):
        found = book.for_host(asked)
        assert found is not None
        assert found.namespace == "binance-usdm@box.example"
    assert (book.for_host("box.example:9300") is None) is (":" in stated)


def test_one_host_is_mapped_to_one_provider() -> None:
    """Two spellings of a host that name two providers are an error."""
    with pytest.raises(RuleError, match=r"box\.example is mapped to 'binance-usdm' and to 'binance-spot'"):
        Rulebook.load(hosts={"box.example.": "binance-usdm", "BOX.example:443": "binance-spot"})


def test_a_host_of_a_file_with_its_final_dot(tmp_path: Path) -> None:
    """It is that host."""
    book = Rulebook.load(extra=[own(tmp_path, "mine", ["h.example.", "*.wide.example."])])
    assert book.for_host("h.example") is book.for_host("a.wide.example.") is book.provider("mine")


def test_own_file(tmp_path: Path) -> None:
    """A file of the user adds a provider, or replaces a bundled one."""
    book = Rulebook.load(
        extra=[own(tmp_path, "mine", ["*.mine.example"]), own(tmp_path, "binance-usdm", ["f.example"])]
    )
    assert book.for_host("eu.api.mine.example") is book.provider("mine")
    assert book.for_host("mine.example") is None
    assert book.for_host("fapi.binance.com") is None
    assert book.provider("binance-usdm").limits["calls-1s"].capacity == 7


def test_paths(tmp_path: Path) -> None:
    """Where one host serves several providers the longest path prefix decides."""
    files = [own(tmp_path, "all", ["h.example"]), own(tmp_path, "deep", ["h.example"], ["/v1/deep/"])]
    book = Rulebook.load(extra=files)
    assert book.for_host("h.example", "/v1/deep/x") is book.provider("deep")
    assert book.for_host("h.example", "/v1/x") is book.provider("all")


def test_conflicts(tmp_path: Path) -> None:
    """Two files may claim neither one name nor one place."""
    with pytest.raises(RuleError, match="is also defined by"):
        Rulebook.load(extra=[own(tmp_path, "a", []), own(tmp_path, "a", [])])
    with pytest.raises(RuleError, match="belongs to") as caught:
        Rulebook.load(extra=[own(tmp_path, "a", ["h.example"]), own(tmp_path, "b", ["h.example"])])
    assert caught.value.key == "$.hosts"


def test_own_files_are_checked_at_once(tmp_path: Path) -> None:
    """A mistake in a file of the user shows when it is loaded, not at the first call."""
    path = own(tmp_path, "a", [])
    path.write_text(path.read_text("utf-8").replace("calls = 1", "call = 1"), encoding="utf-8")
    with pytest.raises(RuleError) as caught:
        Rulebook.load(extra=[path])
    assert (caught.value.file, caught.value.key) == (str(path), "$.default.cost.call")


def test_one_provider_for_all_threads() -> None:
    """Threads that ask at once get the same provider, or their plans would not be shared."""
    book = Rulebook.load()
    found: list[Provider] = []
    threads = [threading.Thread(target=lambda: found.append(book.provider("binance-usdm"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_wishes_follow_the_name() -> None:
    """Headroom, tiers and own numbers are by provider, also where the user's hosts stand for it."""
    book = Rulebook.load(
        {"127.0.0.1:9300": "bitget"},
        adjustments={"bitget": Adjustments({"*": "leader"}, {"user-20-1s": (15, 0)}, {"ip-1m": "10%"})},
    )
    for found in book.provider("bitget"), book.for_host("api.bitget.com", "/api/v2/public/time"):
        assert found is not None
        assert [found.limits[name].usable for name in ("ip-1m", "order-1s", "user-20-1s")] == [5400, 1, 15]
    assert book.provider("okx").limits["ip-20-2s"].usable == 20


def test_import_is_light() -> None:
    """What plans calls and reads answers comes with the rules; what checks, explains, denies and derives with its use."""
    code = """if True:
        import sys, ratekeeper.rules.book as book
        def tell(): print(*[name for name in sys.modules if name.startswith("ratekeeper.rules.")])
        tell(), book.Rulebook.load().provider("okx"), tell()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    before, loaded = ({name.rpartition(".")[2] for name in line.split()} for line in done.stdout.splitlines())
    assert before == {"book"}
    assert "provider" in loaded
    assert loaded.isdisjoint({"ccxt_costs", "ccxt_tables", "checks", "denial", "explanation", "handling"})


@pytest.mark.parametrize(
    ("written", "scheme", "expected"),
    [
        ("fapi.binance.com", None, "fapi.binance.com"),
        (" FAPI.Binance.COM. ", None, "fapi.binance.com"),
        ("fapi.binance.com.:443", None, "fapi.binance.com"),
        ("fapi.binance.com:0080", None, "fapi.binance.com"),
        ("fapi.binance.com:80", "https", "fapi.binance.com:80"),
        ("fapi.binance.com:443", "wss", "fapi.binance.com"),
        ("fapi.binance.com:443", "http", "fapi.binance.com:443"),
        ("fapi.binance.com:443", "", "fapi.binance.com:443"),
        ("fapi.binance.com:", None, "fapi.binance.com"),
        ("b\u00fccher.example", None, "xn--bcher-kva.example"),
        ("B\u00dcCHER.example.:9300", None, "xn--bcher-kva.example:9300"),
        ("fapi\u3002binance\uff0ecom", None, "fapi.binance.com"),
        ("XN--BCHER-KVA.example", None, "xn--bcher-kva.example"),
        ("[0:0::1]:443", None, "[::1]"),
        ("::1", None, "[::1]"),
        ("[FE80::1]:8080", "https", "[fe80::1]:8080"),
        ("a:b:c", None, "a:b:c"),
        ("\ud800.example", None, "\ud800.example"),
        ("", None, ""),
        (".", None, ""),
    ],
)
def test_one_host_has_one_form(written: str, scheme: str | None, expected: str) -> None:
    """Whatever the case, the final dot, the alphabet and a default port; a form is its own form."""
    assert normal_host(written, scheme) == expected
    assert normal_host(expected, scheme) == expected
