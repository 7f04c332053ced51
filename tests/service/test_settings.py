from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, unknown_variables

HASH = hashlib.sha256(b"key").hexdigest()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("LLGBM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_lists_come_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLGBM_CORS_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("LLGBM_ADAPTER_ROOTS", '["/srv/a", "/srv/b"]')
    monkeypatch.setenv("LLGBM_API_KEY_HASHES", HASH.upper())
    settings = Settings()
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.adapter_roots == (Path("/srv/a"), Path("/srv/b"))
    assert settings.api_key_hashes == (HASH,)


def test_addresses_of_servers_are_taken_as_they_are_usually_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLGBM_VLLM_URL", "http://gpu-1:8000/v1, http://gpu-2:8000/, http://gpu-1:8000")
    assert Settings().vllm_url == ("http://gpu-1:8000", "http://gpu-2:8000")


def test_the_environment_goes_before_the_file_and_empty_means_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("LLGBM_PORT=9000\nLLGBM_HOST=0.0.0.0\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("LLGBM_PORT", "9100")
    monkeypatch.setenv("LLGBM_REDIS_URL", "")
    settings = Settings()
    assert (settings.port, settings.host, settings.redis_url) == (9100, "0.0.0.0", None)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("API_KEY_HASHES", "my-plain-key", "sha256sum"),
        ("RATE_LIMIT", "often", "not a rate"),
        ("PORT", "70000", "65535"),
        ("BASE_STORAGE", "float8", "int8"),
        ("MAX_BATCH", "0", "greater than"),
        ("ENGINE", "vllm", "needs LLGBM_VLLM_URL"),
        ("VLLM_URL", "gpu-1:8000", "'gpu-1:8000' is not a vLLM server's address, such as http://host:8000"),
        ("VLLM_URL", "http://me:secret@gpu-1:8000", "'http://gpu-1:8000' has a user or a password"),
        ("API_KEY_HASHES", ",", "it has only commas"),
        ("VLLM_MAX_LORAS", "100", "set the second to at least the first"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_right(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(f"LLGBM_{name}", value)
    with pytest.raises(ValidationError, match=told):
        Settings()


@pytest.mark.parametrize("rate", ["60/minute", "5 per second", "1000/2 hours", ""])
def test_rates_are_those_of_limits(monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    from limits import parse

    monkeypatch.setenv("LLGBM_RATE_LIMIT", rate)
    settings = Settings()
    assert settings.rate_limit == rate
    if rate:
        parse(settings.rate_limit)


def test_a_password_does_not_show() -> None:
    settings = Settings(redis_url="redis://:secret@host:1/0")
    assert "secret" not in repr(settings)
    assert "secret" not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [("API_KEY_HASHES", "the-key-itself"), ("VLLM_URL", "ftp://me:the-key-itself@gpu"), ("PORT", "the-key-itself")],
)
def test_what_is_refused_does_not_show(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"LLGBM_{name}", value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "the-key-itself" not in str(refused.value)


def test_a_misspelt_variable_in_the_file_is_noticed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LLGBM_API_KEY_HASH=x\nLLGBM_PORT=1\nOTHER=1\n")
    assert unknown_variables({}) == ["LLGBM_API_KEY_HASH"]


def test_a_misspelt_variable_is_noticed_and_those_of_others_are_not() -> None:
    environment = {
        "LLGBM_PORT": "1",
        "LLGBM_API_KEY_HASH": "x",
        "LLGBM_URL": "u",
        "LLGBM_TEST_REQUIRE": "",
        "HOME": "/",
    }
    assert unknown_variables(environment) == ["LLGBM_API_KEY_HASH"]
