"""Fingerprints: everything that a command's product depends on, to check whether an existing product is still valid.

A path does not tell the content of a file. So a fingerprint contains the settings that influence the product, without
paths, and a digest of each file or folder that the settings name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgbm.errors import ConfigError
from llgbm.training import FREE
from training.cli.config import json_digest, to_dict
from training.runs.artefacts import replace_text

SETTINGS_FILE = "settings.json"
RESUMABLE = tuple(f"training.{name}" for name in FREE)
"""Settings that may change when a fit is resumed."""


@dataclass(frozen=True)
class Fingerprint:
    """Settings and digests by name, as JSON values; nested settings have dotted names."""

    values: Mapping[str, Any]

    @staticmethod
    def of(config: object = None, *, without: Collection[str] = (), **contents: Any) -> Fingerprint:
        """The fingerprint of a configuration.

        Args:
            config: a dataclass; None for no settings.
            without: dotted names of settings that do not influence the product; a section's name excludes the section.
            contents: digests by name, and other values that influence the product.
        """
        settings = {} if config is None else flat(to_dict(config))
        kept = {n: v for n, v in settings.items() if not any(n == w or n.startswith(f"{w}.") for w in without)}
        return Fingerprint(kept | contents)

    @property
    def digest(self) -> str:
        """16 hex digits; equal for equal fingerprints, on every machine."""
        return json_digest(self.values)

    def require_same(self, recorded: Mapping[str, Any], product: str) -> None:
        """Check that a product was made with these values.

        Args:
            recorded: the values of its fingerprint.
            product: its name in the error message.

        Raises:
            ConfigError: values differ; the message names them.
        """
        names = sorted(n for n in self.values.keys() | recorded.keys() if self.values.get(n) != recorded.get(n))
        if names:
            different = ", ".join(f"{n} {recorded.get(n)} instead of {self.values.get(n)}" for n in names)
            raise ConfigError(
                f"{product} was made with other settings ({different}); use them again or another workdir"
            )

    def require_same_run(self, workdir: Path, products: Sequence[str]) -> None:
        """Check that a resumed run has this fingerprint; record the fingerprint of a new run.

        A training state does not contain the tasks. Resuming it with other tasks would mix two different fits.

        Args:
            products: names of the files that a run resumes from; without any of them the run is new.

        Raises:
            ConfigError: values differ (the message names them), or a product exists without a record of its settings.
        """
        path = workdir / SETTINGS_FILE
        if not any((workdir / name).exists() for name in products):
            replace_text(path, json.dumps(self.values, indent=1, ensure_ascii=False) + "\n")
            return
        if not path.exists():
            raise ConfigError(f"{workdir} has a state but no record of its settings; use another workdir")
        self.require_same(json.loads(path.read_text("utf-8")), f"the state in {workdir}")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by dotted name; an empty mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return leaves
