"""Which account is meant, where its keys come from, and that they are told to nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ccxt
import pytest
from click.testing import CliRunner

from ratekeeper import RuleError
from ratekeeper.apps.config import command as config
from ratekeeper.apps.exchange.accounts import Account, chosen, connected, without_secrets
from ratekeeper.config.file import SettingsFile, read_settings

KEY, SECRET = "kk" + "11", "ss" + "22"
TABLES = """
[exchanges.main]
exchange = "binanceusdm"
key = "MAIN_KEY"
secret = "MAIN_SECRET"

[exchanges.other]
exchange = "binanceusdm"
keys = "other.keys"
url = "http://127.0.0.1:9/"

[exchanges.okx]
market = "swap"
"""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the surroundings."""
    for name in ("KEY", "SECRET", "PASSWORD", "UID"):
        monkeypatch.delenv(f"RATEKEEPER_EXCHANGE_{name}", raising=False)
    monkeypatch.setenv("RATEKEEPER_HOME", str(tmp_path))
    monkeypatch.setenv("RATEKEEPER_HOSTS", "")


def written(folder: Path, text: str = TABLES) -> SettingsFile:
    """A configuration file."""
    path = folder / "ratekeeper.toml"
    path.write_text(text)
    return read_settings(path)


def connect(account: Account, file: SettingsFile) -> Any:
    """The exchange object; nothing is sent."""
    exchange, gate = connected(account, file=file)
    gate.close()
    exchange.session.close()
    return exchange


def test_the_account_that_is_meant(tmp_path: Path) -> None:
    """By name, by exchange, or the only one; a ccxt name without a table stands for itself."""
    file = written(tmp_path)
    assert chosen("", "other", file).name == "other"
    assert chosen("okx", "", file)[:2] == ("okx", "okx")
    assert chosen("bybit", "", file)[:2] == ("", "bybit")
    assert chosen("binanceusdm", "main", file).name == "main"
    only = written(tmp_path, '[exchanges.main]\nexchange = "binanceusdm"\n')
    assert chosen("", "", only)[:2] == ("main", "binanceusdm")


@pytest.mark.parametrize(
    ("exchange", "account", "said"),
    [
        ("", "", "several accounts fit. Say --account NAME, one of: main, other, okx"),
        ("binanceusdm", "", "one of: main, other"),
        ("", "third", "There are: main, other, okx"),
        ("okx", "main", "no account is called 'main' at okx"),
    ],
)
def test_who_else(tmp_path: Path, exchange: str, account: str, said: str) -> None:
    """Where it is not plain, nothing is guessed: money is at stake."""
    with pytest.raises(RuleError, match=said):
        chosen(exchange, account, written(tmp_path))


def test_without_any_configuration(tmp_path: Path) -> None:
    """The exchange must be named."""
    with pytest.raises(RuleError, match="Say --exchange ID"):
        chosen("", "", SettingsFile())


def test_keys_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names that the table says, or under our own."""
    file = written(tmp_path)
    monkeypatch.setenv("MAIN_KEY", KEY)
    monkeypatch.setenv("MAIN_SECRET", SECRET)
    exchange = connect(chosen("", "main", file), file)
    assert (exchange.apiKey, exchange.secret) == (KEY, SECRET)
    monkeypatch.setenv("RATEKEEPER_EXCHANGE_KEY", "k3")
    monkeypatch.setenv("RATEKEEPER_EXCHANGE_SECRET", "s3")
    with pytest.raises(RuleError, match="okx needs keys: set RATEKEEPER_EXCHANGE_PASSWORD"):
        connected(chosen("okx", "", file), file=file)
    monkeypatch.setenv("RATEKEEPER_EXCHANGE_PASSWORD", "p3")
    exchange = connect(chosen("okx", "", file), file)
    assert (exchange.apiKey, exchange.secret, exchange.password) == ("k3", "s3", "p3")
    assert exchange.options["defaultType"] == "swap"


def test_keys_from_a_file_of_their_own(tmp_path: Path) -> None:
    """Beside the configuration; only its owner may read it; what is in it is never repeated. Its url is where calls go."""
    file, keys = written(tmp_path), tmp_path / "other.keys"
    account = chosen("", "other", file)
    with pytest.raises(RuleError, match=r"other\.keys cannot be read"):
        connected(account, file=file)
    keys.write_text(f'key = "{KEY}"\nsecret = "{SECRET}"\n')
    keys.chmod(0o644)
    with pytest.raises(RuleError, match="chmod 600"):
        connected(account, file=file)
    keys.chmod(0o600)
    for wrong in ("key = " + "[" * 1000, "key = 1" + "0" * 5000):
        keys.write_text(wrong)
        with pytest.raises(RuleError, match="is not TOML"):
            connected(account, file=file)
    keys.write_text(f'key = "{KEY}"\nsecret = "{SECRET}"\n')
    exchange = connect(account, file)
    assert (exchange.apiKey, exchange.secret) == (KEY, SECRET)
    assert exchange.urls["api"]["fapiPrivate"] == "http://127.0.0.1:9/fapi/v1"
    for wrong in (f'key = "{KEY}"\nsecrt = "{SECRET}"\n', f"key = {KEY}\n"):
        keys.write_text(wrong)
        with pytest.raises(RuleError) as told:
            connected(account, file=file)
        assert KEY not in str(told.value)
        assert SECRET not in str(told.value)


def test_a_key_in_the_configuration_is_refused_and_not_repeated(tmp_path: Path) -> None:
    """Whoever writes the key itself where its variable belongs is told so without it."""
    file = written(tmp_path, f'[exchanges.main]\nexchange = "binanceusdm"\nkey = "{KEY}"\n')
    with pytest.raises(RuleError, match="not the name of an environment variable") as told:
        connected(chosen("", "main", file), file=file)
    assert KEY not in str(told.value)


def test_a_wrong_url_has_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and line."""
    monkeypatch.setenv("RATEKEEPER_EXCHANGE_KEY", "k3")
    monkeypatch.setenv("RATEKEEPER_EXCHANGE_SECRET", "s3")
    file = written(tmp_path, '[exchanges.binanceusdm]\nurl = "ftp://a"\n')
    with pytest.raises(RuleError, match=r"ratekeeper.toml:2: .*write http"):
        connected(chosen("", "", file), file=file)


def test_messages_without_secrets() -> None:
    """Queries hold signatures; keys are taken out wherever they stand; one line."""
    exchange = ccxt.binanceusdm({"apiKey": KEY, "secret": SECRET})
    text = f"binanceusdm GET https://a/b?timestamp=1&signature=abc\n key {KEY} is wrong"
    assert without_secrets(text, exchange) == "binanceusdm GET https://a/b?… key … is wrong"


def test_a_key_in_the_configuration_is_not_shown(tmp_path: Path) -> None:
    """``ratekeeper config show`` lists names of variables, and nothing that may be a key."""
    file = written(tmp_path, f'[exchanges.main]\nkey = "{KEY}"\nsecret = "MAIN_SECRET"\n')
    shown = CliRunner().invoke(config, ["show", str(file.path)])
    assert shown.exit_code == 0
    assert KEY not in shown.output
    assert "MAIN_SECRET" in shown.output
