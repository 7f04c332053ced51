"""The environment as operators' tools fill it: Kubernetes' service links, and quotes that belong to no value.

Kubernetes gives every container variables for each Service of its namespace. Those of a Service called `llgbm`, or
`llgbm-redis`, begin as the settings do, and one of them, LLGBM_PORT, has the very name of a setting.
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
    """Whether Kubernetes wrote this variable, to say where a Service is."""
    name = name.upper()
    by_value = _PORT_NAME.fullmatch(name) is not None and _LINK_VALUE.match(value) is not None
    return by_value or _LINK_NAME.fullmatch(name) is not None


def service_links(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that Kubernetes wrote and that begin as the settings do."""
    return sorted(name for name, value in environment.items() if is_service_link(name, value))


class EnvironmentSource(EnvSettingsSource):
    """The settings of the environment, without Kubernetes' service links and without quotes around a value."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """As the base class has it: the value, its key, and whether it is JSON."""
        value, key, is_json = super().get_field_value(field, field_name)
        if isinstance(value, str):
            value = None if is_service_link(f"LLGBM_{field_name}", value) else unquoted(value)
        return value, key, is_json
