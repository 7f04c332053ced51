import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llgbm.pretrained.folder import SOURCE_FILE, folder_problem, pretrained_revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_folder(path: Path, seed: int = 0) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "qwen2"}')
    (path / "tokenizer.json").write_text("{}")
    values = np.random.default_rng(seed).normal(size=(64, 32)).astype(np.float32)
    save_file({"a": values, "b": values[:3]}, path / "model.safetensors")
    return path


def shard(path: Path) -> Path:
    """Split the weight file of `path` into two with an index, as in big models."""
    for number, name in enumerate(("a", "b"), start=1):
        save_file({name: np.ones(5, dtype=np.float32)}, path / f"model-0000{number}-of-00002.safetensors")
    (path / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(("a", "b"), start=1)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_a_whole_folder_has_no_problem(tmp_path: Path) -> None:
    assert folder_problem(make_folder(tmp_path / "one")) is None
    assert folder_problem(shard(make_folder(tmp_path / "sharded"))) is None


@pytest.mark.parametrize("files", [("vocab.json", "merges.txt"), ("vocab.txt",), ("tokenizer.model",)])
def test_every_kind_of_tokenizer_will_do(tmp_path: Path, files: tuple[str, ...]) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in (folder_problem(folder) or "")
    for file in files:
        (folder / file).write_text("{}")
    assert folder_problem(folder) is None


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def cut_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


def other_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"[[[[")


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_shard(folder: Path) -> None:
    (shard(folder) / "model-00002-of-00002.safetensors").unlink()


def empty_index(folder: Path) -> None:
    (shard(folder) / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "does not name a model_type"),
        (cut_weights, "cut off or changed"),
        (cut_header, "not a safetensors file or was cut off"),
        (other_header, "damaged safetensors header"),
        (pickled_weights, "no model.safetensors"),
        (lose_shard, "misses 1 of 2 weight files: model-00002-of-00002.safetensors"),
        (empty_index, "has no weight_map"),
    ],
)
def test_every_kind_of_damage_is_named(tmp_path: Path, break_it: Callable[[Path], object], problem: str) -> None:
    folder = make_folder(tmp_path / "m")
    break_it(folder)
    assert problem in (folder_problem(folder) or "")
    with pytest.raises(ValueError, match="not a whole model"):
        pretrained_revision(folder)


def test_the_revision_is_that_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    revision = pretrained_revision(folder)
    assert len(revision) == 16
    assert int(revision, 16) >= 0
    assert pretrained_revision(Path(shutil.copytree(folder, tmp_path / "elsewhere"))) == revision


def test_other_weights_of_the_same_shape_or_another_config_change_the_revision(tmp_path: Path) -> None:
    one, two = make_folder(tmp_path / "one", seed=1), make_folder(tmp_path / "two", seed=2)
    assert pretrained_revision(one) != pretrained_revision(two)
    before = pretrained_revision(one)
    (one / "config.json").write_text('{"model_type": "qwen2", "rope_theta": 1}')
    assert pretrained_revision(one) != before


def test_the_revision_covers_every_shard(tmp_path: Path) -> None:
    folder = shard(make_folder(tmp_path / "m"))
    before = pretrained_revision(folder)
    save_file({"b": np.zeros(5, dtype=np.float32)}, folder / "model-00002-of-00002.safetensors")
    assert pretrained_revision(folder) != before


def test_a_hub_snapshot_has_the_revision_of_its_commit(tmp_path: Path) -> None:
    assert pretrained_revision(make_folder(tmp_path / "snapshots" / COMMIT)) == COMMIT[:16]


def test_weights_made_here_have_the_revision_of_their_source(tmp_path: Path) -> None:
    one, two = make_folder(tmp_path / "one", seed=1), make_folder(tmp_path / "two", seed=2)
    (one / SOURCE_FILE).write_text('{"source": "gguf", "sha256": "ab"}')
    (two / SOURCE_FILE).write_text('{"sha256": "ab",   "source": "gguf"}')
    assert pretrained_revision(one) == pretrained_revision(two)
    (two / SOURCE_FILE).write_text('{"source": "gguf", "sha256": "ac"}')
    assert pretrained_revision(one) != pretrained_revision(two)


def test_a_folder_without_weights_is_whole_for_who_wants_none(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "one")
    with_weights = pretrained_revision(folder)
    (folder / "model.safetensors").unlink()
    assert folder_problem(folder) is not None
    assert folder_problem(folder, weights=False) is None
    revision = pretrained_revision(folder, weights=False)
    assert revision != with_weights
    (folder / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 7}')
    assert pretrained_revision(folder, weights=False) != revision
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in (folder_problem(folder, weights=False) or "")
