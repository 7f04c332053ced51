"""`python -m service.openapi` prints the OpenAPI document; `--write` puts it into openapi.json of the repository.

A test holds the committed file to the code.
"""

from __future__ import annotations

import argparse
import sys

from service.app import create_app
from service.routes.openapi_document import text
from service.settings import ROOT, Settings

DOCUMENT = ROOT / "openapi.json"


def main(arguments: list[str] | None = None) -> None:
    """Print the document, or write it into openapi.json."""
    parser = argparse.ArgumentParser(prog="python -m service.openapi", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help=f"update {DOCUMENT.name}")
    document = text(create_app(Settings()).openapi())  # the same under all settings
    if parser.parse_args(arguments).write:
        DOCUMENT.write_text(document, "utf-8")
    else:
        sys.stdout.write(document)


if __name__ == "__main__":
    main()
