"""Cleans the environment: ignores Kubernetes' service links, and removes quotes around values.

Kubernetes sets variables in every container for each Service of its namespace. Those of a Service called `llgbm` or
`llgbm-redis` have the prefix of the settings, and one of them, LLGBM_PORT, has the name of a setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource

from service.setting_values import unquoted

_LINK_NAME = re.compile(
    r"LLGBM(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", re.ASCII
)
_PORT_NAME = re.compile(r"LLGBM(_\w+)?_PORT", re.ASCII)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://", re.ASCII)


def is_service_link(name: str, value: str) -> bool:
    """Whether this variable is a Kubernetes service link."""
    name = name.upper()
    by_value = _PORT_NAME.fullmatch(name) is not None and _LINK_VALUE.match(value) is not None
    return by_value or _LINK_NAME.fullmatch(name) is not None


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Names of the service links with the prefix of the settings."""
    return sorted(name for name, value in environment.items() if is_service_link(name, value))


class EnvironmentSource(EnvSettingsSource):
    """Settings from the environment, without Kubernetes' service links and without quotes around values."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """As in the base class: the value, its key, and whether it is JSON."""
        value, key, is_json = super().get_field_value(field, field_name)
        if isinstance(value, str):
            value = None if is_service_link(f"LLGBM_{field_name}", value) else unquoted(value)
        return value, key, is_json
