"""Variables as operators and their tools write them are understood or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.environment import service_links
from service.models.loading import LoadModels
from service.setting_values import unquoted
from service.settings import Settings, refused, unknown_variables
from tests.service.support.harness import make_settings, running

LINKS = {  # variables that a container gets for Services called llgbm, llgbm-redis and llgbm-vllm
    "LLGBM_SERVICE_HOST": "10.0.0.7",
    "LLGBM_SERVICE_PORT": "8000",
    "LLGBM_SERVICE_PORT_HTTP": "8000",
    "LLGBM_PORT": "tcp://10.0.0.7:8000",
    "LLGBM_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    "LLGBM_PORT_8000_TCP_PROTO": "tcp",
    "LLGBM_PORT_8000_TCP_PORT": "8000",
    "LLGBM_PORT_8000_TCP_ADDR": "10.0.0.7",
    "LLGBM_REDIS_SERVICE_HOST": "fd00::1",
    "LLGBM_REDIS_PORT": "tcp://[fd00::1]:6379",
    "LLGBM_VLLM_PORT_53_UDP_ADDR": "10.0.0.9",
}


def test_service_links_of_kubernetes_are_told_apart_from_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)
    assert settings.port == 8000
    assert service_links({**LINKS, "LLGBM_HOST": "0.0.0.0", "HOME": "/"}) == sorted(LINKS)
    assert unknown_variables(LINKS) == []


async def test_a_service_beside_a_service_of_its_name_starts_with_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: Settings, load_dummy: LoadModels
) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    async with running(make_settings(settings.cache_dir.parent, log_level="info"), load_dummy) as (_, client):
        assert (await client.get("/readyz")).status_code == 200
    logs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["event"] for entry in logs] == ["kubernetes_service_links_left_aside", "ready"]
    assert logs[0]["names"] == sorted(LINKS)


def test_a_port_in_the_file_holds_when_the_environment_has_a_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "env"
    file.write_text("LLGBM_PORT=9000\n")
    monkeypatch.setenv("LLGBM_PORT", "tcp://10.0.0.7:8000")
    assert Settings(_env_file=file).port == 9000
    monkeypatch.setenv("LLGBM_PORT", "7000")
    assert Settings(_env_file=file).port == 7000


@pytest.mark.parametrize("name", ["LLGBM_PORT", "LLGBM_STORE_URL", "LLGBM_PORTS"])
def test_what_is_no_link_is_not_taken_for_one(name: str) -> None:
    assert service_links({name: "http://10.0.0.7:8000"}) == []


@pytest.mark.parametrize(
    ("value", "bare"),
    [('"a"', "a"), ("'a b'", "a b"), (' "a" ', "a"), ('"a","b"', '"a","b"'), ("\"a'", "\"a'"), ("'", "'"), ("", ""),
     ("a\n", "a"), ("a\r", "a"), ('"a"\r\n', "a")],
)  # fmt: skip
def test_quotes_and_blanks_around_a_whole_value_are_taken_off(value: str, bare: str) -> None:
    assert unquoted(value) == bare


def test_a_file_for_docker_with_quotes_means_the_same_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "PORT": '"9000"',
        "STORE_URL": "'s3://bucket/adapters'",
        "RATE_LIMIT": '"60/minute"',
        "ALLOWED_HOSTS": '"a.example","b.example"',
        "OTEL": '"true"',
    }
    for name, value in values.items():
        monkeypatch.setenv(f"LLGBM_{name}", value)
    settings = Settings(_env_file=None)
    assert (settings.port, settings.store_url, settings.rate_limit, settings.otel) == (
        9000,
        "s3://bucket/adapters",
        "60/minute",
        True,
    )
    assert settings.allowed_hosts == ("a.example", "b.example")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://page.example/", ("https://page.example",)),
        ("'https://page.example'", ("https://page.example",)),
        ('"https://a.example", "https://b.example/"', ("https://a.example", "https://b.example")),
        ('["https://a.example/"]', ("https://a.example",)),
        ("HTTPS://Page.Example:443", ("https://page.example",)),
        ("http://page.example:80,http://page.example", ("http://page.example",)),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("https://page.example:80", ("https://page.example:80",)),
        ("chrome-extension://abcdef", ("chrome-extension://abcdef",)),
        ("*", ("*",)),
    ],
)
def test_origins_are_kept_as_browsers_send_them(
    monkeypatch: pytest.MonkeyPatch, given: str, kept: tuple[str, ...]
) -> None:
    monkeypatch.setenv("LLGBM_CORS_ORIGINS", given)
    assert Settings(_env_file=None).cors_origins == kept


@pytest.mark.parametrize(
    "given", ["https://page.example/app", "page.example", "https://", "https://me@page.example", "https://a/?q", "//a"]
)
def test_what_can_match_no_origin_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="not an origin: give a scheme and a host"):
        Settings(_env_file=None, cors_origins=(given,))


def test_a_line_break_at_the_end_of_a_secret_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLGBM_REDIS_URL", "redis://:pw@host:6379/0\n")
    monkeypatch.setenv("LLGBM_VLLM_API_KEY", "key\r\n")
    monkeypatch.setenv("LLGBM_LOG_FORMAT", "console\n")
    settings = Settings(_env_file=None)
    assert settings.redis_url is not None
    assert settings.vllm_api_key is not None
    assert settings.redis_url.get_secret_value() == "redis://:pw@host:6379/0"
    assert (settings.vllm_api_key.get_secret_value(), settings.log_format) == ("key", "console")


@pytest.mark.parametrize(
    "address",
    ["host:6379", "redis://:secret/x@host:6379/0", "redis://:secret@host:x/0", "redis://:secret@host:70000",
     "redis+sentinel://:secret@host", "redis://:secret@host/0?ssl_cert_reqs=none", "https://:secret@host"],
)  # fmt: skip
def test_what_redis_cannot_be_reached_by_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(ValidationError, match="not the address of a Redis server") as refused_with:
        Settings(_env_file=None, redis_url=SecretStr(address))
    assert "secret" not in "".join(refused(refused_with.value)) + str(refused_with.value)


@pytest.mark.parametrize(
    "address", ["redis://host", "rediss://u:p%2Fw@host:6379/1?ssl_cert_reqs=none", "unix:///r.sock"]
)
def test_addresses_of_redis(address: str) -> None:
    assert Settings(_env_file=None, redis_url=SecretStr(address)).redis_url == SecretStr(address)


@pytest.mark.parametrize(
    ("given", "kept"), [("Page.Example", "page.example"), ("[::1]", "::1"), ("10.0.0.7", "10.0.0.7"), ("*", "*")]
)
def test_host_names_are_kept_as_requests_are_compared_with_them(given: str, kept: str) -> None:
    assert Settings(_env_file=None, allowed_hosts=(given, kept)).allowed_hosts == (kept,)


@pytest.mark.parametrize(
    "given", ["https://page.example", "page.example:8000", "page.example/", "*.example", "a b", ""]
)
def test_what_no_host_name_can_equal_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="not a host name; give it without scheme, port, path and wildcard"):
        Settings(_env_file=None, allowed_hosts=(given,))


def test_public_paths_start_with_a_slash() -> None:
    assert Settings(_env_file=None, public_paths=("/metrics", "*")).public_paths == ("/metrics", "*")
    with pytest.raises(ValidationError, match="'metrics' is not a path; it must start with a slash"):
        Settings(_env_file=None, public_paths=("metrics",))


@pytest.mark.parametrize(("given", "kept"), [("/llgbm/", "/llgbm"), ("llgbm", "/llgbm"), ("/a/b", "/a/b"), ("/", "")])
def test_root_paths_have_one_form(given: str, kept: str) -> None:
    assert Settings(_env_file=None, root_path=given).root_path == kept


@pytest.mark.parametrize("given", ["/a b", "https://page.example/llgbm", "/a//b", "/a?b", "/../a"])
def test_other_root_paths_are_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="not a path such as /llgbm"):
        Settings(_env_file=None, root_path=given)


def test_proxies_are_addresses_or_networks() -> None:
    assert Settings(_env_file=None, trusted_proxies=("10.0.0.0/8", "*", "::1")).trusted_proxies[0] == "10.0.0.0/8"
    with pytest.raises(ValidationError, match="not a proxy's address or network"):
        Settings(_env_file=None, trusted_proxies=("10.0.0.1/8",))
