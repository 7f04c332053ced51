"""Parses and checks the values of settings."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from redis import ConnectionPool

_QUOTES = "\"'"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RATE = re.compile(r"\d+\s*(/|per)\s*(\d+\s*)?(second|minute|hour|day)s?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@]+)/?", re.ASCII | re.IGNORECASE)
_OWN_PORT = {"http": ":80", "https": ":443"}
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*", re.ASCII)
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", re.ASCII)


def unquoted(value: str) -> str:
    """`value` without surrounding blanks and quotes.

    `docker run --env-file` keeps quotes. A secret made with `echo` ends in a line break, and lines of a file from
    Windows end in a carriage return.
    """
    text = value.strip()
    around = len(text) >= 2 and text[0] in _QUOTES and text[0] == text[-1] and text[0] not in text[1:-1]
    return text[1:-1].strip() if around else text


def without_password(address: str) -> str:
    """`address` without user and password, for the log."""
    scheme, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}" if separator else address


def split_list(value: Any) -> Any:
    """The items of a JSON list or of a comma-separated string; other values unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    words = [unquoted(part.strip()) for part in text.split(",") if part.strip()]
    values = json.loads(text) if text.startswith("[") else words
    if text and not values and text != "[]":  # an empty list of keys would give everyone access
        raise ValueError("it has only commas; leave the variable unset for an empty list")
    return values


def key_hashes(values: tuple[str, ...]) -> tuple[str, ...]:
    """Hashes of API keys, in lower case."""
    values = tuple(value.lower() for value in values)
    for value in values:
        if _SHA256.fullmatch(value) is None:
            raise ValueError(
                "an API key is given as the 64 hexadecimal digits of its sha256; make them with: "
                'printf %s "$KEY" | sha256sum'
            )
    return values


def rate(value: str) -> str:
    """A rate in the format of the package `limits`."""
    if value and _RATE.fullmatch(value.strip()) is None:
        raise ValueError(f"{value!r} is not a rate such as 60/minute or 1000/2 hours")
    return value.strip()


def server_urls(values: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses without a trailing slash or /v1, without duplicates."""
    values = tuple(value.rstrip("/").removesuffix("/v1").rstrip("/") for value in values)
    for value in values:
        if not _is_server(value):
            raise ValueError(f"{without_password(value)!r} is not a vLLM server's address, such as http://host:8000")
        if "@" in urlsplit(value).netloc:
            raise ValueError(
                f"{without_password(value)!r} has a user or a password, which the log would show; set the key of "
                "the servers in LLGBM_VLLM_API_KEY"
            )
    return tuple(dict.fromkeys(values))


def _is_server(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # an invalid port
        return False


def origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Normalised origins, without duplicates."""
    return tuple(dict.fromkeys(checked_origin(value) for value in values))


def host_names(values: tuple[str, ...]) -> tuple[str, ...]:
    """Normalised host names and addresses, or *."""
    return tuple(dict.fromkeys(_host_name(value) for value in values))


def _host_name(value: str) -> str:
    name = value.lower().removeprefix("[").removesuffix("]")
    try:
        ip_address(name)
    except ValueError:
        if name != "*" and _HOST_NAME.fullmatch(name) is None:
            raise ValueError(
                f"{value!r} is not a host name; give it without scheme, port, path and wildcard, such as page.example"
            ) from None
    return name


def paths(values: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of this service, or *."""
    for value in values:
        if not value.startswith("/") and value != "*":
            raise ValueError(f"{value!r} is not a path; it must start with a slash, such as /metrics or /static/*")
    return values


def redis_address(value: SecretStr | None) -> SecretStr | None:
    """The address of a Redis server. Errors do not show it, because it may have a password."""
    try:
        if value is not None:
            # parses the whole address; opens no connection
            ConnectionPool.from_url(value.get_secret_value()).make_connection()
    except (ValueError, TypeError):
        raise ValueError(
            "it is not the address of a Redis server such as redis://:password@host:6379/0 or "
            "rediss://host:6379/0?ssl_cert_reqs=none; special characters of a password are percent-encoded, "
            "%2F for a slash"
        ) from None
    return value


def networks(values: tuple[str, ...]) -> tuple[str, ...]:
    """Addresses and networks of proxies, or *."""
    for value in values:
        try:
            if value != "*":
                ip_network(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is not a proxy's address or network, such as 10.0.0.0/8: {error}") from error
    return values


def checked_origin(value: str) -> str:
    """An origin as a browser sends it: in lower case, without a trailing slash and the scheme's default port.

    Raises:
        ValueError: it is not an origin.
    """
    if value in ("*", "null"):
        return value
    parts = _ORIGIN.fullmatch(value)
    if parts is None:
        raise ValueError(
            f"{value!r} is not an origin: give a scheme and a host, with a port if needed and without a path, such as "
            "https://page.example or http://localhost:3000"
        )
    scheme, host = parts[1].lower(), parts[2].lower()
    return f"{scheme}://{host.removesuffix(_OWN_PORT.get(scheme, '/'))}"


def checked_path(value: str) -> str:
    """A path prefix with a leading slash and no trailing one; empty for none.

    Raises:
        ValueError: it is not a valid prefix.
    """
    path = value.strip().rstrip("/")
    path = path if path.startswith("/") or not path else f"/{path}"
    if _ROOT_PATH.fullmatch(path) is None or {".", ".."} & set(path.split("/")):
        raise ValueError(f"{value!r} is not a path such as /llgbm")
    return path
