"""The format of adapter ids."""

from __future__ import annotations

import re

ADAPTER_ID = re.compile(r"lora-[0-9a-f]{24}")
"""`llgbm.prompting.adapter_id` makes the id of a generated adapter from the request and the generator."""


def id_of_content(digest: str) -> str:
    """The id of an adapter that was loaded or combined: the start of its content's sha256 in hexadecimal."""
    return f"lora-{digest[:24]}"
