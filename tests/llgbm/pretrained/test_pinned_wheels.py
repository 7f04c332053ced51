import re

import pytest

from llgbm.pretrained.find import BASE_0_5B, BASE_1_5B, TEXT_ENCODER
from llgbm.pretrained.pinned_wheels import PINNED, GGUFParts, Wheel

WHEELS = [wheel for pinned in PINNED.values() for wheel in pinned.wheels]
SHA256 = re.compile(r"[0-9a-f]{64}")


def test_every_model_that_llgbm_names_is_pinned() -> None:
    assert set(PINNED) == {BASE_0_5B, BASE_1_5B, TEXT_ENCODER}


def test_no_wheel_and_no_hash_is_there_twice() -> None:
    assert len({wheel.filename for wheel in WHEELS}) == len(WHEELS)
    assert len({wheel.sha256 for wheel in WHEELS}) == len(WHEELS)


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.project)
def test_a_requirement_accepts_one_file_only(wheel: Wheel) -> None:
    assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", wheel.requirement)
    assert wheel.size > 0
    assert "-" not in wheel.filename.removesuffix("-py3-none-any.whl").rsplit("-", 1)[0]


@pytest.mark.parametrize("name", PINNED)
def test_the_content_is_pinned_too(name: str) -> None:
    pinned = PINNED[name]
    hashes = [pinned.sha256] if isinstance(pinned, GGUFParts) else list(pinned.files.values())
    assert hashes
    assert all(SHA256.fullmatch(found) for found in hashes)


@pytest.mark.parametrize("name", [name for name, pinned in PINNED.items() if isinstance(pinned, GGUFParts)])
def test_parts_are_numbered_without_a_gap(name: str) -> None:
    numbers = [int(re.findall(r"\d+$", wheel.project)[0]) for wheel in PINNED[name].wheels]
    assert numbers == list(range(1, len(numbers) + 1))
