"""A working directory belongs to one configuration: a run that goes on there has to be the one that was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llgbm.errors import ConfigError
from llgbm.training import FREE
from training.cli.config import to_dict
from training.runs.artefacts import replace_text

SETTINGS_FILE = "settings.json"


def settings_of(config: object, *, without: Sequence[str]) -> dict[str, Any]:
    """The values of a configuration with a section `training` that a state depends on.

    Args:
        without: values that say where things stand and how a run is watched; what the files that they name contain
            has to be added by its digest.
    """
    here = {name: value for name, value in to_dict(config).items() if name not in without}
    training = {name: value for name, value in here["training"].items() if name not in FREE}
    return here | {"training": training}


def claim_workdir(workdir: Path, products: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Write down what the products in a working directory depend on, or check that it was the same before.

    A state does not say what it was trained on; going on from it with other tasks would give a generator that is
    neither one nor the other.

    Args:
        products: names of the files that a run goes on from.

    Raises:
        ConfigError: names the settings that differ; or there is a product, but no record of its settings.
    """
    path = workdir / SETTINGS_FILE
    if any((workdir / name).exists() for name in products):
        if not path.exists():
            raise ConfigError(f"{workdir} has a state, but no record of its settings; use another workdir")
        before = json.loads(path.read_text("utf-8"))
        different = sorted(n for n in settings.keys() | before.keys() if settings.get(n) != before.get(n))
        if different:
            raise ConfigError(
                f"{workdir} has the state of a run with other settings ({', '.join(different)}); "
                "use them again or another workdir"
            )
    else:
        replace_text(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
