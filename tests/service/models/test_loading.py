from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import SecretStr
from structlog.testing import CapturingLogger

from llgbm.base import Base, load_base
from llgbm.checkpoint import GeneratorManifest, load_generator
from llgbm.errors import CheckpointError, ConfigError, PretrainedNotFoundError
from llgbm.linears.frozen_linear import Storage
from llgbm.pretrained.tiny import build_tiny_encoder
from llgbm.prompting import AdapterMaker, AdapterRequest
from service.models import loading as models_module
from service.models.loading import embedding_cache, load_models
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.harness import make_settings
from tests.service.support.tiny_checkpoint import build_tiny_checkpoint
from tests.small_generator import encoder_lora


@pytest.fixture
def tiny_settings(tmp_path: Path, tiny_checkpoint_path: Path, tiny_base_path: Path) -> Settings:
    return make_settings(tmp_path, checkpoint=tiny_checkpoint_path, base=str(tiny_base_path))


def edited(settings: Settings, folder: Path, change: Callable[[GeneratorManifest], GeneratorManifest]) -> Settings:
    """The settings with a copy of the checkpoint that has a changed manifest."""
    shutil.copytree(settings.checkpoint, folder)
    path = folder / "manifest.json"
    path.write_text(change(GeneratorManifest.from_json(path.read_text("utf-8"))).to_json(), "utf-8")
    return settings.model_copy(update={"checkpoint": folder})


def test_everything_is_found_loaded_and_fits(tiny_settings: Settings, tiny_base: Base) -> None:
    told: list[str] = []
    metrics = Metrics()
    models = load_models(tiny_settings, metrics, told.append)
    assert models.base.spec == tiny_base.spec
    assert models.max_context == 4096
    assert len(models.generator_digest) == 64
    assert told[0] == "reading the generator"
    assert sum(text.startswith("loading") for text in told) == 2
    (made,) = models.maker.make([AdapterRequest(("a task",))])
    models.maker.make([AdapterRequest(("a task",))])
    for outcome, count in (("miss", 2), ("memory", 1)):  # one text is encoded to check the encoder
        assert metrics.registry.get_sample_value("llgbm_embedding_cache_total", {"outcome": outcome}) == count
    assert made.weights.spec.modules == models.maker.checkpoint.generator.lora.modules
    models.cache.close()


def test_the_base_goes_to_the_named_device(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def watched(name: str, *, storage: Storage, device: str, int8_folder: Path) -> Base:
        asked.append(device)
        return load_base(name, storage=storage, device=device, int8_folder=int8_folder)

    monkeypatch.setattr("service.models.loading.load_base", watched)
    load_models(tiny_settings, Metrics(), lambda text: None).cache.close()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no GPU for cuda:1"):
            load_models(tiny_settings.model_copy(update={"device": "cuda:1"}), Metrics(), lambda text: None)
        assert asked == ["cpu", "cuda:1"]
    with pytest.raises(ConfigError, match="int8 is for CPUs"):
        load_models(
            tiny_settings.model_copy(update={"device": "cuda", "base_storage": "int8"}), Metrics(), lambda text: None
        )


@pytest.mark.parametrize(("kernel", "expected"), [("fbgemm", "int8"), ("none", "float32")])
def test_by_default_the_base_is_in_int8_where_the_processor_has_a_kernel(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, kernel: str, expected: str
) -> None:
    if kernel == "none":
        monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", [kernel], raising=False)
    elif kernel not in torch.backends.quantized.supported_engines:
        pytest.skip("torch has no int8 kernel for this processor")
    models = load_models(tiny_settings, Metrics(), lambda text: None)
    assert models.base_storage == expected
    models.cache.close()


def test_the_context_is_the_smaller_of_the_setting_and_the_base(tiny_settings: Settings) -> None:
    for wanted, expected in ((100, 100), (100_000, 4096)):
        settings = tiny_settings.model_copy(update={"max_context": wanted})
        models = load_models(settings, Metrics(), lambda text: None)
        assert models.max_context == expected
        assert models.new_decoder is not None
        models.new_decoder()
        models.cache.close()


def test_with_vllm_the_base_comes_without_its_weights_and_the_adapters_are_the_same(
    tiny_settings: Settings, tiny_base: Base, tiny_base_path: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(tiny_base_path, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    request = AdapterRequest(("a task",))
    whole = load_models(tiny_settings, Metrics(), lambda text: None)
    settings = tiny_settings.model_copy(update={"engine": "vllm", "base": str(bare), "max_context": 100_000})
    models = load_models(settings, Metrics(), lambda text: None)
    assert models.new_decoder is None
    assert models.base_storage is None
    assert not hasattr(models.base, "model")
    assert (models.base.spec, models.max_context) == (tiny_base.spec, 4096)
    assert models.maker.id_of(request) == whole.maker.id_of(request)
    for loaded in (whole, models):
        loaded.cache.close()


def test_a_generator_for_another_base_is_refused(tiny_settings: Settings, tmp_path: Path) -> None:
    settings = edited(tiny_settings, tmp_path / "other", lambda manifest: replace(manifest, base_id="someone/else"))
    with pytest.raises(CheckpointError, match=r"makes adapters for someone/else.*LLGBM_BASE"):
        load_models(settings, Metrics(), lambda text: None)


@pytest.mark.parametrize("revision", [None, "0123456789abcdef"])
def test_other_weights_than_the_generator_was_trained_on_are_told(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(models_module, "_log", log)
    update = {} if revision is None else {"base_revision": revision}
    load_models(
        edited(tiny_settings, tmp_path / "copy", partial(replace, **update)), Metrics(), lambda _: None
    ).cache.close()
    told = [call.kwargs["trained_on"] for call in log.calls if call.args == ("other_base_weights",)]
    assert told == ([] if revision is None else [revision])


@pytest.fixture(scope="module")
def tuned_checkpoint_path(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_encoder_path: Path
) -> Path:
    """The tiny generator, trained with a tuned text encoder."""
    lora = encoder_lora(tiny_encoder_path)
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tuned"), tiny_base_path, tiny_encoder_path, lora)


def test_services_with_plain_and_tuned_text_encoders_share_a_cache_without_mixing(
    tiny_settings: Settings, tuned_checkpoint_path: Path
) -> None:
    tuned_settings = tiny_settings.model_copy(update={"checkpoint": tuned_checkpoint_path})
    request = AdapterRequest(("Count the vowels.",), (("tree", "2"),))
    for _ in range(2):  # first computed, then read from the file
        for settings in (tiny_settings, tuned_settings):
            checkpoint = load_generator(settings.checkpoint)
            (expected,) = AdapterMaker(checkpoint, checkpoint.text_encoder()).make([request])
            models = load_models(settings, Metrics(), lambda text: None)
            (made,) = models.maker.make([request])
            models.cache.close()
            assert made.id == expected.id
            for name, a in expected.weights.a.items():
                torch.testing.assert_close(made.weights.a[name], a)


def test_another_text_encoder_of_the_same_size_is_refused(
    tiny_settings: Settings, tuned_checkpoint_path: Path, tiny_encoder_path: Path, tmp_path: Path
) -> None:
    other, copy = build_tiny_encoder(tmp_path / "other", seed=1), tmp_path / "copy"
    shutil.copytree(tiny_encoder_path, copy)
    for checkpoint in (tiny_settings.checkpoint, tuned_checkpoint_path):
        settings = tiny_settings.model_copy(update={"checkpoint": checkpoint, "text_encoder": str(other)})
        with pytest.raises(CheckpointError, match=r"is not the one .* or leave LLGBM_TEXT_ENCODER unset"):
            load_models(settings, Metrics(), lambda text: None)
        same = settings.model_copy(update={"text_encoder": str(copy)})
        load_models(same, Metrics(), lambda text: None).cache.close()


def test_what_is_not_there_is_named(tiny_settings: Settings, tmp_path: Path) -> None:
    for update, error in (
        ({"checkpoint": tmp_path / "none"}, CheckpointError),
        ({"base": str(tmp_path / "none")}, PretrainedNotFoundError),
        ({"text_encoder": str(tmp_path / "none")}, PretrainedNotFoundError),
    ):
        with pytest.raises(error, match="none"):
            load_models(tiny_settings.model_copy(update=update), Metrics(), lambda text: None)


def test_without_redis_embeddings_outlive_the_process_in_a_file(tiny_settings: Settings) -> None:
    first = embedding_cache(tiny_settings, Metrics())
    first.set_many({"key": b"value"})
    first.close()
    second = embedding_cache(tiny_settings, Metrics())
    assert second.get_many(["key"]) == [b"value"]
    assert second.current_problem() is None
    second.close()


def test_with_a_redis_that_is_not_there_the_cache_says_so_and_works(tiny_settings: Settings) -> None:
    settings = tiny_settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    cache = embedding_cache(settings, Metrics())
    cache.set_many({"key": b"value"})
    assert cache.get_many(["key"]) == [b"value"]
    assert cache.current_problem() == "unreachable"
    assert not settings.cache_dir.exists()
    cache.close()
