"""`python -m service.documents` writes the generated files: openapi.json, and two tables in docs/OPERATIONS.md.

One table has the settings, the other one the treatment of each field of a chat completion. Tests compare the files with
the code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.schemas.chat_completion import fields_table
from service.settings import ROOT, Settings

OPENAPI = ROOT / "openapi.json"
OPERATIONS = ROOT / "docs" / "OPERATIONS.md"


def settings_table() -> str:
    """All settings as a Markdown table."""
    lines = ["| variable | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        description = (field.description or "").replace("|", "\\|")
        lines.append(f"| `LLGBM_{name.upper()}` | {_default_text(name, field.default)} | {description} |")
    return "\n".join(lines) + "\n"


def _default_text(name: str, default: Any) -> str:
    if Settings.model_fields[name].default_factory is not None:
        return "see text"
    if default is None or default == () or default == "":
        return "empty"
    if isinstance(default, Path):
        return f"`{default.relative_to(ROOT)}`"
    if isinstance(default, tuple):
        return f"`{','.join(str(part) for part in default)}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def with_section(document: str, name: str, text: str) -> str:
    """`document` with `text` between the two marks of a generated section.

    Raises:
        ValueError: the marks are missing.
    """
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, found, rest = document.partition(start)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the document must hold the lines {start} and {end}")
    return f"{before}{start}\n{text}{end}{after}"


def with_tables(document: str) -> str:
    """`document` with the current tables. Raises ValueError as `with_section`."""
    return with_section(with_section(document, "settings", settings_table()), "chat completion", fields_table())


def main() -> None:
    """Write the files."""
    # only here: with_section serves programs that need no service
    from service.app import create_app
    from service.routes.openapi_document import text

    document = create_app(Settings()).openapi()  # does not depend on the settings
    OPENAPI.write_text(text(document), "utf-8")
    OPERATIONS.write_text(with_tables(OPERATIONS.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
