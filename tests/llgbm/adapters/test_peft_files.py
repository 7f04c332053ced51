"""Adapter folders as people have them: each file that is not the one it should be is named, with what mends it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from llgbm.adapters.peft_io import CONFIG_FILE, WEIGHTS_FILE, content_digest, load_peft, save_peft
from llgbm.config import LoRASpec, model_spec
from llgbm.errors import AdapterFormatError
from tests.fixtures import random_lora

TINY = model_spec("tiny")
SMALL = LoRASpec.for_model(TINY, rank=1, alpha=2.0, targets=("k_proj", "v_proj"), layers=(0,))
WEIGHTS = random_lora(SMALL, 0)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_peft(WEIGHTS, tmp_path / "adapter", base_id=TINY.base_id)
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize(
    ("content", "named", "mended_by"),
    [
        (b"", "is empty", "hf download"),
        (POINTER, "git-lfs pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page", "hf download"),
        (b"\n<html>Not Found</html>", "web page", "hf download"),
        (b"\x80\x04\x95\x0b\x00\x00\x00\x00", "pickle", "safe_serialization=True"),
        (b"PK\x03\x04" + bytes(60), "zip", "safe_serialization=True"),
        (b"GGUF\x03\x00\x00\x00" + bytes(60), "GGUF", "PEFT's format"),
        (b"\x1f\x8b\x08" + bytes(60), "compressed", "gunzip"),
    ],
)
def test_what_stands_in_its_place_is_named_with_what_mends_it(
    folder: Path, name: str, content: bytes, named: str, mended_by: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(AdapterFormatError, match=f"{name} is") as refused:
        load_peft(folder)
    assert named in str(refused.value)
    assert mended_by in str(refused.value)


def test_a_file_without_numbers_is_told_from_one_that_was_cut(folder: Path) -> None:
    header = b'{"__metadata__":{"format":"pt"}}'
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(AdapterFormatError, match=r"holds no numbers.*ZeRO-3.*save_pretrained again"):
        load_peft(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_configuration_is_read_as_editors_leave_it(folder: Path, encoding: str) -> None:
    text = (folder / CONFIG_FILE).read_text("utf-8")
    (folder / CONFIG_FILE).write_bytes(text.encode(encoding))
    weights, base_id = load_peft(folder)
    assert (content_digest(weights), base_id) == (content_digest(WEIGHTS), TINY.base_id)


def into_hub_cache(folder: Path, cache: Path, *, inner: str = "", absolute: bool = False) -> Path:
    """The folder as a download of the hub's client leaves it: a snapshot of links to blobs."""
    model = cache / "models--owner--name"
    snapshot = model / "snapshots" / ("a" * 40) / inner
    (model / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, digits in ((CONFIG_FILE, 40), (WEIGHTS_FILE, 64)):
        blob = model / "blobs" / (f"{len(name):x}" * digits)[:digits]
        (folder / name).rename(blob)
        (snapshot / name).symlink_to(blob if absolute else os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize(("inner", "absolute"), [("", False), ("", True), ("adapters/french", False)])
def test_links_inside_one_hub_cache_are_read(folder: Path, tmp_path: Path, inner: str, absolute: bool) -> None:
    snapshot = into_hub_cache(folder, tmp_path / "hub", inner=inner, absolute=absolute)
    assert content_digest(load_peft(snapshot)[0]) == content_digest(WEIGHTS)
    (tmp_path / "here").symlink_to(snapshot)
    assert content_digest(load_peft(tmp_path / "here")[0]) == content_digest(WEIGHTS)


def test_a_blob_that_is_gone_or_a_pointer_is_named(folder: Path, tmp_path: Path) -> None:
    snapshot = into_hub_cache(folder, tmp_path / "hub")
    (snapshot / WEIGHTS_FILE).resolve().write_bytes(POINTER)
    with pytest.raises(AdapterFormatError, match="git lfs pull"):
        load_peft(snapshot)
    (snapshot / WEIGHTS_FILE).resolve().unlink()
    with pytest.raises(AdapterFormatError, match=r"link into the hub's cache.*hf download"):
        load_peft(snapshot)


def of_another_model(model: Path, weights: Path) -> Path:
    return Path("../../../models--other--name/blobs") / weights.name


def not_a_blob(model: Path, weights: Path) -> Path:
    (model / "blobs" / "passwd").write_bytes(weights.read_bytes())
    return Path("../../blobs/passwd")


def outside(model: Path, weights: Path) -> Path:
    return weights


def link_behind_a_link(model: Path, weights: Path) -> Path:
    (model / "blobs" / ("b" * 40)).symlink_to(weights)
    return Path("../../blobs") / ("b" * 40)


@pytest.mark.parametrize("target", [of_another_model, not_a_blob, outside, link_behind_a_link])
def test_other_links_are_not_followed(folder: Path, tmp_path: Path, target: Callable[[Path, Path], Path]) -> None:
    snapshot = into_hub_cache(folder, tmp_path / "hub")
    secret = tmp_path / "hub" / "models--other--name" / "blobs" / ("c" * 64)
    secret.parent.mkdir(parents=True)
    (snapshot / WEIGHTS_FILE).resolve().rename(secret)
    (snapshot / WEIGHTS_FILE).unlink()
    (snapshot / WEIGHTS_FILE).symlink_to(target(tmp_path / "hub" / "models--owner--name", secret))
    with pytest.raises(AdapterFormatError, match=r"symbolic link|cannot be read"):
        load_peft(snapshot)


def whole_model(folder: Path) -> None:
    (folder / CONFIG_FILE).rename(folder / "config.json")


def one_level_too_high(folder: Path) -> None:
    inner = folder / "checkpoint-100"
    inner.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / name).rename(inner / name)


def in_parts(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [(whole_model, "a whole model"), (one_level_too_high, "'checkpoint-100'"), (in_parts, "several parts")],
)
def test_a_missing_file_is_explained_by_what_is_there(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    change(folder)
    with pytest.raises(AdapterFormatError, match=f"is missing; .*{message}"):
        load_peft(folder)


def test_a_cut_file_whose_header_length_looks_like_another_kind_is_called_cut(folder: Path) -> None:
    header = json.dumps({"__metadata__": {"x": "y" * 600}}).encode()
    header += b" " * (0x0280 - len(header))  # a length that begins as a pickle does
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header[:100])
    with pytest.raises(AdapterFormatError, match="cut short"):
        load_peft(folder)
