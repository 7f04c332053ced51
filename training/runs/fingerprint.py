"""What a product of a command depends on, and whether the one that is there was made with the same.

A path says nothing of the content that lies there. So a fingerprint has the settings that decide the product, without
those that only say where things stand, and a digest of each file or folder that the settings name.
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
"""Settings of a fit that may change when it goes on."""


@dataclass(frozen=True)
class Fingerprint:
    """Settings and digests by name, as JSON knows them; a nested setting has a dotted name."""

    values: Mapping[str, Any]

    @staticmethod
    def of(config: object = None, *, without: Collection[str] = (), **contents: Any) -> Fingerprint:
        """The fingerprint of a configuration.

        Args:
            config: a dataclass; None for no settings.
            without: settings that do not decide the product, by dotted name; a section's name leaves out all of it.
            contents: digests by name, and whatever else decides the product.
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
            product: what it is, for the message.

        Raises:
            ConfigError: names the values that differ.
        """
        names = sorted(n for n in self.values.keys() | recorded.keys() if self.values.get(n) != recorded.get(n))
        if names:
            different = ", ".join(f"{n} {recorded.get(n)} instead of {self.values.get(n)}" for n in names)
            raise ConfigError(
                f"{product} was made with other settings ({different}); use them again or another workdir"
            )

    def require_same_run(self, workdir: Path, products: Sequence[str]) -> None:
        """Check that a run goes on from its own products, or record the fingerprint where there are none.

        A state does not say what it was trained on; going on from it with other tasks would give a generator that is
        neither one nor the other.

        Args:
            products: names of the files that a run goes on from.

        Raises:
            ConfigError: names the values that differ; or there is a product, but no record of its settings.
        """
        path = workdir / SETTINGS_FILE
        if not any((workdir / name).exists() for name in products):
            replace_text(path, json.dumps(self.values, indent=1, ensure_ascii=False) + "\n")
            return
        if not path.exists():
            raise ConfigError(f"{workdir} has a state, but no record of its settings; use another workdir")
        self.require_same(json.loads(path.read_text("utf-8")), f"the state in {workdir}")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by dotted name; an empty mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return leaves
