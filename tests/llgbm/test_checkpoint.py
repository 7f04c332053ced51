import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from llgbm import checkpoint
from llgbm.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    GeneratorManifest,
    TrainingTask,
    load_generator,
    save_generator,
    saved_in,
    write_calibration,
)
from llgbm.conditioning.context_choice import ContextChoice
from llgbm.conditioning.task_detector import TaskDetector
from llgbm.config import GeneratorConfig, LoRASpec, lora_spec, model_spec
from llgbm.errors import CheckpointError
from llgbm.files.synced import write_synced
from llgbm.generator import LoRAGenerator, create_generator
from tests.small_generator import IRREGULAR, SMALL, SPECS, active_generator, conditions

MANIFEST, WEIGHTS = "manifest.json", "generator.safetensors"
MEGABYTE = 2**20


def task(name: str, count: int) -> TrainingTask:
    return TrainingTask(name, "case", "own", "CC0-1.0", tuple(f"{name}, wording {i}" for i in range(count)))


def manifest_of(generator: LoRAGenerator, counts: tuple[int, ...] = (3, 1, 2)) -> GeneratorManifest:
    return GeneratorManifest(
        base_id=generator.model.base_id,
        base_revision="abc",
        encoder_id="some/encoder",
        model=generator.model,
        lora=generator.lora,
        generator=generator.config,
        tasks=tuple(task(f"task_{i}", count) for i, count in enumerate(counts)),
    )


def embeddings_of(manifest: GeneratorManifest) -> list[Tensor]:
    return [conditions(len(t.descriptions), seed=i) for i, t in enumerate(manifest.tasks)]


def saved(folder: Path, generator: LoRAGenerator) -> GeneratorManifest:
    manifest = manifest_of(generator)
    return save_generator(folder, generator, manifest, embeddings_of(manifest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "generator", active_generator())
    return tmp_path / "generator"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_a_reloaded_generator_makes_nearly_the_same_adapters(spec: LoRASpec, tmp_path: Path) -> None:
    generator = active_generator(spec)
    saved(tmp_path, generator)
    reloaded = load_generator(tmp_path).generator
    condition = conditions(3, seed=9)
    for before, after in zip(generator(condition), reloaded(condition), strict=True):
        assert before.spec == after.spec
        for name in spec.names:
            product = before.delta_weight(name)
            assert (after.delta_weight(name) - product).norm() < 0.02 * product.norm(), name


def test_what_is_loaded_is_what_was_saved(folder: Path) -> None:
    generator = active_generator()
    manifest = manifest_of(generator)
    loaded = load_generator(folder)
    assert replace(loaded.manifest, digest="") == manifest
    assert loaded.manifest.digest == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert not loaded.generator.training
    assert not any(p.requires_grad for p in loaded.generator.parameters())
    assert {p.dtype for p in loaded.generator.parameters()} == {torch.float32}
    index = loaded.prompt_index
    assert index.task.tolist() == [0, 0, 0, 1, 2, 2]
    torch.testing.assert_close(index.embeddings, torch.cat(embeddings_of(manifest)), atol=1e-3, rtol=0)
    torch.testing.assert_close(index.embeddings.norm(dim=-1), torch.ones(6))


def test_a_spec_that_cannot_be_written_leaves_what_was_there(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="same targets in every one of its layers"):
        saved(folder, active_generator(IRREGULAR))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_bases_are_the_same_however_often_they_are_stored(folder: Path, tmp_path: Path) -> None:
    once = load_generator(folder).generator
    with torch.no_grad():
        once.gate.bias.add_(1)  # another trunk with the same bases
    saved(tmp_path / "again", once)
    again = load_generator(tmp_path / "again").generator
    for bases, stored in ((once.a0, again.a0), (once.b0, again.b0)):
        assert all(torch.equal(bases[size], stored[size]) for size in bases)


def test_saving_twice_gives_the_same_digest(tmp_path: Path) -> None:
    generator = active_generator()
    assert saved(tmp_path / "one", generator).digest == saved(tmp_path / "two", generator).digest
    assert saved(tmp_path / "one", generator).digest == load_generator(tmp_path / "one").manifest.digest
    assert saved(tmp_path / "three", active_generator(seed=1)).digest != saved(tmp_path / "one", generator).digest


CHOICE = ContextChoice.of_scales(0.6, 0.5, 1.0)
DETECTOR = TaskDetector(torch.linspace(-1, 1, 384), torch.tensor(0.5))


def test_a_calibration_adds_a_detector_and_a_curve_and_changes_nothing_else(folder: Path) -> None:
    before, tensors = load_generator(folder), load((folder / WEIGHTS).read_bytes())
    assert before.detector is None
    curve, scale = {"similarity": [0.5], "confidence": [0.3], "threshold": 0.25}, CHOICE
    for bias in (0.1, 0.5):
        manifest = write_calibration(folder, replace(DETECTOR, bias=torch.tensor(bias)), curve, scale)
    after = load_generator(folder)
    assert (
        after.manifest
        == manifest
        == replace(before.manifest, confidence=curve, context_choice=scale, digest=manifest.digest)
    )
    assert manifest.digest != before.manifest.digest
    written = load((folder / WEIGHTS).read_bytes())
    assert written.keys() - tensors.keys() == {"detector.weight", "detector.bias"}
    assert all(torch.equal(tensor, written[name]) for name, tensor in tensors.items())
    assert after.detector is not None
    assert torch.equal(after.detector(conditions(3)), DETECTOR(conditions(3)))


def test_a_generator_is_known_again_however_it_was_made_and_calibrated(folder: Path) -> None:
    generator = active_generator()
    manifest = manifest_of(generator)
    said = load_generator(folder).manifest
    assert saved_in(folder, generator, replace(manifest, made_by={"command": "another"})) == said
    said = write_calibration(folder, DETECTOR, {}, CHOICE)
    assert saved_in(folder, generator, manifest) == said
    assert saved_in(folder, active_generator(seed=1), manifest) is None
    assert saved_in(folder, generator, replace(manifest, tasks=manifest.tasks[:1])) is None
    (folder / MANIFEST).unlink()
    assert saved_in(folder, generator, manifest) is None


def test_a_detector_of_another_size_leaves_what_was_there(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="for conditions of size 5"):
        write_calibration(folder, TaskDetector(torch.zeros(5), torch.tensor(0.0)), {}, CHOICE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_generator_without_tasks_knows_no_neighbours(tmp_path: Path) -> None:
    generator = active_generator()
    save_generator(tmp_path, generator, manifest_of(generator, ()), [])
    assert load_generator(tmp_path).prompt_index.nearest(conditions(1)[0]) == []


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_generator(folder)
    assert torch.equal(torch.get_rng_state(), before)


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))


def with_tensors(change: Callable[[dict[str, Tensor]], bytes]) -> Callable[[Path], None]:
    """Write another tensors file and its digest into the manifest."""

    def damage(folder: Path) -> None:
        data = change(load((folder / WEIGHTS).read_bytes()))
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / WEIGHTS).write_bytes(data)
        (folder / MANIFEST).write_text(json.dumps(manifest | {"digest": hashlib.sha256(data).hexdigest()}))

    return damage


def without(name: str) -> Callable[[dict[str, Tensor]], bytes]:
    return lambda tensors: save({k: t for k, t in tensors.items() if k != name})


def edit(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / MANIFEST).unlink(), "no generator in .*manifest.json"),
        (lambda f: (f / WEIGHTS).unlink(), "no generator in .*generator.safetensors"),
        (cut(MANIFEST, 0.5), "not a valid generator manifest"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe{}"), "not a text in UTF-8"),
        (cut(WEIGHTS, 0.99), "has sha256 .* its manifest says .*copy both files again"),
        (cut(WEIGHTS, 0), "has sha256"),
        (flip, "has sha256"),
        (edit(digest="0" * 64), "its manifest says 000000000000"),
        (edit(format_version=FORMAT_VERSION + 1), f"format version {FORMAT_VERSION + 1}"),
        (edit(surprise=1), "surprise"),
        (edit(generator=SMALL.to_dict() | {"hidden_size": 48}), "do not fit its manifest"),
        (edit(generator=SMALL.to_dict() | {"num_blocks": 2}), "do not fit its manifest"),
        (edit(model=model_spec("qwen2.5-0.5b").to_dict()), "do not fit its manifest"),
        (edit(tasks=[]), "prompt index .* does not fit the 0 tasks"),
        (with_tensors(lambda tensors: b"PK\x03\x04 something else"), "not a safetensors file"),
        (with_tensors(without("q0")), "do not fit its manifest.*q0"),
        (with_tensors(without("b0.64:scale")), "do not fit its manifest.*scale"),
        (with_tensors(without("prompt_index.task")), "do not fit its manifest.*prompt_index"),
        (with_tensors(lambda tensors: save({**tensors, "more": torch.zeros(1)})), "do not fit its manifest.*more"),
    ],
)
def test_what_is_torn_foreign_or_of_another_version_is_refused(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_generator(folder)


@pytest.mark.parametrize("files_written", [0, 1])
def test_a_write_that_fails_leaves_the_older_artefact_and_nothing_beside_it(
    folder: Path, files_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = write_synced, files_written
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(path: Path, data: bytes) -> None:
        nonlocal left
        write(path, data if left else data[:100])
        if not left:
            raise OSError(28, "No space left on device")
        left -= 1

    monkeypatch.setattr(checkpoint, "write_synced", full_disk)
    with pytest.raises(OSError, match="No space"):
        saved(folder, active_generator(seed=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert saved_in(folder, active_generator(), manifest_of(active_generator())) is not None
    monkeypatch.setattr(checkpoint, "write_synced", write)
    assert saved(folder, active_generator(seed=1)) == load_generator(folder).manifest


def test_a_pair_cut_short_while_it_is_replaced_is_refused_and_both_halves_are_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "whole", active_generator(seed=1))
    replace_file, calls = Path.replace, 0

    def killed(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return replace_file(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        saved(folder, active_generator(seed=1))
    with pytest.raises(CheckpointError, match="its manifest says"):
        load_generator(folder)
    assert (folder / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert (folder / f"{MANIFEST}.tmp").read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("name", ["b0.64", "heads"])
def test_parameters_that_the_format_cannot_hold_are_refused(tmp_path: Path, name: str, value: float) -> None:
    generator = active_generator()
    with torch.no_grad():
        generator.get_parameter(name)[0, 0, 0] = value
    with pytest.raises(CheckpointError, match=name):
        saved(tmp_path, generator)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda blocks: blocks[:-1],
        lambda blocks: [*blocks, blocks[0]],
        lambda blocks: [torch.cat([blocks[0], blocks[0][:1]]), *blocks[1:]],
        lambda blocks: [blocks[0][:, :-1], *blocks[1:]],
    ],
)
def test_embeddings_that_do_not_belong_to_the_descriptions_are_refused(
    tmp_path: Path, change: Callable[[list[Tensor]], list[Tensor]]
) -> None:
    generator = active_generator()
    manifest = manifest_of(generator)
    with pytest.raises(CheckpointError, match="at most one for each of its descriptions"):
        save_generator(tmp_path, generator, manifest, change(embeddings_of(manifest)))


def test_a_task_without_embeddings_is_listed_and_never_near(tmp_path: Path) -> None:
    generator = active_generator()
    manifest = manifest_of(generator)
    blocks = embeddings_of(manifest)
    blocks[1] = blocks[1][:0]
    save_generator(tmp_path, generator, manifest, blocks)
    loaded = load_generator(tmp_path)
    assert len(loaded.manifest.tasks) == 3
    assert sorted(number for number, _ in loaded.prompt_index.nearest(conditions(1)[0], 3)) == [0, 2]


def test_a_manifest_of_another_generator_is_refused(tmp_path: Path) -> None:
    manifest = replace(manifest_of(active_generator()), lora=SPECS["rank 1"])
    with pytest.raises(CheckpointError, match="describes another generator"):
        save_generator(tmp_path, active_generator(), manifest, embeddings_of(manifest))


def test_the_generator_of_the_small_base_fits_in_32_megabytes(tmp_path: Path) -> None:
    generator = create_generator(model_spec("qwen2.5-0.5b"), lora_spec("qwen2.5-0.5b"), GeneratorConfig())
    count = sum(p.numel() for p in generator.parameters())
    assert 22_000_000 < count < 24_000_000
    manifest = manifest_of(generator, (15,) * 200)
    save_generator(tmp_path, generator, manifest, embeddings_of(manifest))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert count < size < 32 * MEGABYTE  # one byte for each element of a basis, two for the others
    assert load_generator(tmp_path).manifest.lora == generator.lora


def test_a_training_description_finds_its_own_task(folder: Path) -> None:
    loaded: Checkpoint = load_generator(folder)
    for task_number, block in enumerate(embeddings_of(loaded.manifest)):
        for embedding in block:
            best, cosine = loaded.prompt_index.nearest(embedding)[0]
            assert best == task_number
            assert cosine == pytest.approx(1, abs=1e-5)
