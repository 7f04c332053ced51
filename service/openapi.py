"""`python -m service.openapi` prints the OpenAPI document; `--write` updates the generated files.

They are openapi.json, and the table in docs/OPERATIONS.md of the treatment of each field of a chat completion. Tests
compare both with the code.
"""

from __future__ import annotations

import argparse
import sys

from service.app import create_app
from service.routes.openapi_document import text
from service.schemas.chat_completion import fields_table
from service.settings import ROOT, TABLE_DOCUMENT, Settings, with_section

DOCUMENT = ROOT / "openapi.json"


def with_fields(document: str) -> str:
    """`document` with the current table of the fields. Raises ValueError as `with_section`."""
    return with_section(document, "chat completion", fields_table())


def main(arguments: list[str] | None = None) -> None:
    """Print the document, or write it into openapi.json and its table into docs/OPERATIONS.md."""
    parser = argparse.ArgumentParser(prog="python -m service.openapi", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help=f"update {DOCUMENT.name} and docs/{TABLE_DOCUMENT.name}")
    document = text(create_app(Settings()).openapi())  # does not depend on the settings
    if parser.parse_args(arguments).write:
        DOCUMENT.write_text(document, "utf-8")
        TABLE_DOCUMENT.write_text(with_fields(TABLE_DOCUMENT.read_text("utf-8")), "utf-8")
    else:
        sys.stdout.write(document)


if __name__ == "__main__":
    main()
