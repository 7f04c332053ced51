"""The generator artefact: a folder with `generator.safetensors` and `manifest.json`, versioned and checked on load.

The shared bases are stored in int8 with one scale per row, everything else in float16. The generator of the 0.5B base
has 23 million parameters and takes 31 MB. The manifest names the base, the LoRASpec, the text encoder and the training
tasks, and holds the sha256 of the tensors. They include the LoRA of a tuned text encoder and the words' scorer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from llgbm.conditioning.answer_words import AnswerWords, Vocabulary, WordScorer, scorer_digest
from llgbm.conditioning.context_choice import ContextChoice
from llgbm.conditioning.embedding_cache import EmbeddingCache
from llgbm.conditioning.encoder_lora import EncoderLoRA, lora_digest
from llgbm.conditioning.prompt_index import PromptIndex, require_curve
from llgbm.conditioning.task_detector import TaskDetector
from llgbm.config import GeneratorConfig, LoRASpec, ModelSpec
from llgbm.errors import AdapterFormatError, AdapterMismatchError, CheckpointError, ConfigError
from llgbm.files.parameters import read_back, stored, taken
from llgbm.files.synced import write_synced
from llgbm.generator import LoRAGenerator, uninitialised_generator
from llgbm.text_encoder import PretrainedTextEncoder, answer_words

FORMAT_VERSION = 3
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "generator.safetensors"
_ENCODER_PREFIX = "text_encoder."
_WORDS_PREFIX = "answer_words."


@dataclass(frozen=True)
class TrainingTask:
    """A training task of the generator and its training descriptions."""

    task_id: str
    category: str
    source: str
    licence: str
    descriptions: tuple[str, ...]


@dataclass(frozen=True)
class GeneratorManifest:
    """The description of a checkpoint.

    Attributes:
        base_id: hub id of the only base that its adapters fit.
        base_revision: revision of that base in training.
        encoder_id: text encoder whose embeddings are the condition.
        tasks: the training tasks, with licences.
        made_by: the command, configuration and cost of the training run.
        confidence: empty before calibration; then `similarity` (rising cosines), `confidence` (0 to 1 at each of them)
            and `threshold`, the confidence below which a request gets a warning.
        context_choice: None before calibration.
        digest: sha256 of the tensors file; set on save.

    Raises:
        CheckpointError: `confidence` has another form.
    """

    base_id: str
    base_revision: str
    encoder_id: str
    model: ModelSpec
    lora: LoRASpec
    generator: GeneratorConfig
    tasks: tuple[TrainingTask, ...]
    made_by: dict[str, Any] = field(default_factory=dict)
    confidence: dict[str, Any] = field(default_factory=dict)
    context_choice: ContextChoice | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        if self.confidence:
            require_curve(self.confidence)

    def require_base(self, base_id: str) -> None:
        """Refuse any base but the generator's, even one of the same shape.

        Raises:
            CheckpointError: names both bases.
        """
        if base_id != self.base_id:
            raise CheckpointError(
                f"the generator makes adapters for {self.base_id}, not for {base_id}; use its own base, or another "
                "generator"
            )

    def to_json(self) -> str:
        """The content of `manifest.json`.

        Raises:
            CheckpointError: the layers of the LoRASpec differ in their targets, which the format cannot express.
        """
        data = {"format_version": FORMAT_VERSION, **asdict(self)}
        data |= {"model": self.model.to_dict(), "generator": self.generator.to_dict()}
        data["lora"] = lora = {
            "rank": self.lora.rank,
            "alpha": self.lora.alpha,
            "use_rslora": self.lora.use_rslora,
            "target_modules": list(self.lora.target_modules),
            "layers": list(dict.fromkeys(m.layer for m in self.lora.modules)),
        }
        if _lora_from_json(lora, self.model) != self.lora:
            raise CheckpointError(
                "only a LoRASpec with the same targets in every one of its layers can be saved; "
                "make it with LoRASpec.for_model"
            )
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> GeneratorManifest:
        """Raises CheckpointError: not JSON, another version, or a missing or unknown key."""
        try:
            data = json.loads(text)
            version = data.pop("format_version")
            if version != FORMAT_VERSION:
                raise CheckpointError(
                    f"the checkpoint has format version {version}, this library reads {FORMAT_VERSION}; "
                    "update the library, or fetch a checkpoint made for it"
                )
            model = ModelSpec.from_dict(data.pop("model"))
            choice, scale = data.pop("context_choice", None), data.pop("context_scale", None)
            return cls(
                model=model,
                lora=_lora_from_json(data.pop("lora"), model),
                generator=GeneratorConfig.from_dict(data.pop("generator")),
                tasks=tuple(
                    TrainingTask(**{**task, "descriptions": tuple(task["descriptions"])}) for task in data.pop("tasks")
                ),
                context_choice=_context_choice(choice, scale),
                **data,
            )
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"{MANIFEST_FILE} is not a valid generator manifest: {error!r}") from error


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded generator with its manifest, its prompt index and, once calibrated, its task detector.

    Attributes:
        encoder_lora: of the text encoder; None if it was not tuned.
        word_scorer: of the answer words; None if the generator does not read them.
    """

    generator: LoRAGenerator
    manifest: GeneratorManifest
    prompt_index: PromptIndex
    detector: TaskDetector | None = None
    encoder_lora: EncoderLoRA | None = None
    word_scorer: WordScorer | None = None

    def answer_words(
        self, encoder: PretrainedTextEncoder, base: str | Path | Vocabulary | None = None
    ) -> AnswerWords | None:
        """The reader of answer words that the generator was trained with; None if it reads none.

        Args:
            encoder: of `text_encoder`; its cache also keeps the answer words.
            base: another source of the base, whose vocabulary is read, or the vocabulary; None or empty for
                the manifest's.

        Raises:
            PretrainedNotFoundError: no source has the base.
        """
        return answer_words(self.word_scorer, encoder, base or self.manifest.base_id)

    def text_encoder(
        self, name_or_path: str | Path | None = None, *, cache: EmbeddingCache | None = None
    ) -> PretrainedTextEncoder:
        """The text encoder that the generator was trained with, its LoRA merged.

        Args:
            name_or_path: another source of the same encoder, a hub id or a folder; None or empty for the manifest's.
            cache: keeps vectors between calls; None computes every text.
        """
        return PretrainedTextEncoder(name_or_path or self.manifest.encoder_id, cache=cache, lora=self.encoder_lora)

    def require_encoder(self, encoder: PretrainedTextEncoder) -> None:
        """Refuse an encoder with another LoRA than the generator's, or with none instead of it.

        Raises:
            ConfigError: the conditions would be others than in training.
        """
        if encoder.lora_digest != lora_digest(self.encoder_lora):
            raise ConfigError(
                "the text encoder has another LoRA than in the generator's training, or none; take "
                "checkpoint.text_encoder()"
            )


def save_generator(
    folder: Path,
    generator: LoRAGenerator,
    manifest: GeneratorManifest,
    prompt_embeddings: Sequence[Tensor],
    *,
    encoder_lora: EncoderLoRA | None = None,
    word_scorer: WordScorer | None = None,
) -> GeneratorManifest:
    """Write the artefact. Existing files are replaced only when both new files are complete on disk.

    Args:
        prompt_embeddings: for each task of the manifest, the embeddings of its first n descriptions for the prompt
            index, (n, condition_size) float32; (0, condition_size) keeps a task out of the index.
        encoder_lora: of the text encoder that the generator was trained with; None for the plain one.
        word_scorer: of the answer words that the generator was trained with; None if it reads none.

    Returns:
        The manifest with its digest.

    Raises:
        CheckpointError: the manifest describes another generator, the embeddings do not fit its descriptions, or a
            parameter is not finite.
        OSError: the disk is full, or the folder is not writable; the folder is unchanged.
    """
    if (generator.model, generator.lora, generator.config) != (manifest.model, manifest.lora, manifest.generator):
        raise CheckpointError(
            "the manifest describes another generator; take model, lora and config from the generator"
        )
    if generator.config.answer_words != (word_scorer is not None):
        raise CheckpointError("a generator that reads answer words is saved with their scorer, any other without")
    size = generator.config.condition_size
    most = [len(task.descriptions) for task in manifest.tasks]
    found = [tuple(block.shape) for block in prompt_embeddings]
    fits = len(found) == len(most) and all(len(f) == 2 and f[1] == size for f in found)
    if not fits or any(f[0] > m for f, m in zip(found, most, strict=True)):
        raise CheckpointError(
            "every task of the manifest needs a block of embeddings, at most one for each of its descriptions; "
            f"expected blocks of (n, {size}) with n up to {most}, got {found}"
        )
    tensors = stored(generator.state_dict())
    blocks = [block.half() for block in prompt_embeddings] or [torch.zeros(0, size).half()]
    tensors["prompt_index.embeddings"] = torch.cat(blocks)
    task_of_embedding = [i for i, block in enumerate(prompt_embeddings) for _ in block]
    tensors["prompt_index.task"] = torch.tensor(task_of_embedding, dtype=torch.int16)
    if encoder_lora is not None:
        tensors |= {_ENCODER_PREFIX + name: tensor for name, tensor in encoder_lora.tensors().items()}
    if word_scorer is not None:
        tensors |= {_WORDS_PREFIX + name: tensor.half() for name, tensor in word_scorer.tensors().items()}
    return _write_both(folder, tensors, manifest)


def load_generator(folder: Path) -> Checkpoint:
    """Read an artefact; the generator is in eval mode, float32 and frozen.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or does not match its digest.
    """
    try:
        manifest = GeneratorManifest.from_json((folder / MANIFEST_FILE).read_text("utf-8"))
        data = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"no generator in {folder}: {error.strerror} ({error.filename}); "
            f"name a folder with {MANIFEST_FILE} and {WEIGHTS_FILE}"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / MANIFEST_FILE} is not a text in UTF-8: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.digest:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} has sha256 {digest[:12]}..., its manifest says {manifest.digest[:12]}...; "
            "copy both files again"
        )
    try:
        tensors = load_tensors(data)
        index = PromptIndex(
            torch.nn.functional.normalize(tensors.pop("prompt_index.embeddings").float(), dim=-1),
            tensors.pop("prompt_index.task").long(),
        )
        detector = None
        if "detector.weight" in tensors:
            detector = TaskDetector(tensors.pop("detector.weight"), tensors.pop("detector.bias"))
        factors, words = taken(tensors, _ENCODER_PREFIX), taken(tensors, _WORDS_PREFIX)
        encoder_lora = EncoderLoRA.from_tensors(factors) if factors else None
        word_scorer = WordScorer.from_tensors(words) if words else None
        generator = uninitialised_generator(manifest.model, manifest.lora, manifest.generator)
        generator.load_state_dict(read_back(tensors), assign=True)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is not a safetensors file: {error}") from error
    except (KeyError, RuntimeError, AdapterFormatError, AdapterMismatchError, ConfigError) as error:
        raise CheckpointError(f"the tensors in {folder} do not fit its manifest: {error}") from error
    if len(index.task) != len(index.embeddings) or bool((index.task >= len(manifest.tasks)).any()):
        raise CheckpointError(
            f"the prompt index in {folder} does not fit the {len(manifest.tasks)} tasks of its manifest"
        )
    if manifest.generator.answer_words != (word_scorer is not None):
        raise CheckpointError(f"{folder} has a scorer of answer words, or lacks one, against its manifest")
    return Checkpoint(generator.eval().requires_grad_(False), manifest, index, detector, encoder_lora, word_scorer)


def saved_in(
    folder: Path,
    generator: LoRAGenerator,
    manifest: GeneratorManifest,
    *,
    encoder_lora: EncoderLoRA | None = None,
    word_scorer: WordScorer | None = None,
) -> GeneratorManifest | None:
    """The manifest of the artefact in `folder` if it holds this generator, calibrated or not; else None.

    Args:
        manifest: as for `save_generator`; `made_by` and the calibration may differ.
        encoder_lora, word_scorer: as for `save_generator`.

    Raises:
        CheckpointError: a parameter is not finite.
    """
    try:
        there = load_generator(folder)
    except CheckpointError:
        return None
    ignored: dict[str, Any] = {"made_by": {}, "confidence": {}, "context_choice": None, "digest": ""}
    if replace(there.manifest, **ignored) != replace(manifest, **ignored):
        return None
    if lora_digest(there.encoder_lora) != lora_digest(encoder_lora):
        return None
    if scorer_digest(there.word_scorer) != scorer_digest(word_scorer):
        return None
    mine, theirs = read_back(stored(generator.state_dict())), there.generator.state_dict()
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    return there.manifest if same else None


def write_calibration(
    folder: Path, detector: TaskDetector, confidence: dict[str, Any], context_choice: ContextChoice
) -> GeneratorManifest:
    """Replace detector, confidence curve and choice of context of the artefact in `folder`; all else is unchanged.

    Returns:
        The new manifest. Its digest is new, since the detector belongs to the tensors.

    Raises:
        CheckpointError: the artefact cannot be read, the detector is for conditions of another size, or the curve has
            another form than in the manifest.
    """
    manifest = replace(load_generator(folder).manifest, confidence=confidence, context_choice=context_choice)
    if len(detector.weight) != manifest.generator.condition_size:
        raise CheckpointError(
            f"the detector is for conditions of size {len(detector.weight)}, the generator in {folder} reads "
            f"{manifest.generator.condition_size}"
        )
    tensors = load_tensors((folder / WEIGHTS_FILE).read_bytes())
    tensors |= {"detector.weight": detector.weight.float(), "detector.bias": detector.bias.float()}
    return _write_both(folder, tensors, manifest)


def _context_choice(choice: dict[str, Any] | None, scale: dict[str, Any] | None) -> ContextChoice | None:
    """The choice of context; `scale` is how earlier manifests have it."""
    if choice is not None:
        return ContextChoice.from_dict(choice)
    return None if scale is None else ContextChoice.of_scales(**scale)


def _lora_from_json(data: dict[str, Any], model: ModelSpec) -> LoRASpec:
    spec = LoRASpec.for_model(
        model, rank=data["rank"], alpha=data["alpha"], targets=data["target_modules"], layers=data["layers"]
    )
    return replace(spec, use_rslora=data.get("use_rslora", False))


def _write_both(folder: Path, tensors: dict[str, Tensor], manifest: GeneratorManifest) -> GeneratorManifest:
    """Write the tensors and the manifest with their digest. A failed write leaves the folder unchanged."""
    data = save_tensors({k: v.contiguous() for k, v in tensors.items()})
    manifest = replace(manifest, digest=hashlib.sha256(data).hexdigest())
    contents = {WEIGHTS_FILE: data, MANIFEST_FILE: manifest.to_json().encode()}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f"{name}.tmp" for name in contents}
    try:
        for name, content in contents.items():
            write_synced(temporary[name], content)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise
    # after a crash between the two renames the digest does not match, so the pair is refused on load
    for name, path in temporary.items():
        path.replace(folder / name)
    return manifest
