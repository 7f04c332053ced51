from pathlib import Path

import pytest

from llgbm.errors import ConfigError
from llgbm.export import export_adapter
from llgbm.prompting import AdapterMaker, AdapterRequest


def test_an_adapter_is_replaced_and_other_files_are_not(tiny_maker: AdapterMaker, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for text in ("Write it in capitals.", "Write it in small letters."):
        export_adapter(tiny_maker, AdapterRequest((text,)), folder)
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    kept = folder / "notes.txt"
    kept.write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files \(notes.txt\)"):
        export_adapter(tiny_maker, AdapterRequest(("a task",)), folder)
    with pytest.raises(ConfigError, match="is a file"):
        export_adapter(tiny_maker, AdapterRequest(("a task",)), kept)
    assert kept.read_text() == "mine"
