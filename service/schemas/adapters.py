"""Models of the adapter routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from llgbm.conditioning.context_choice import Context
from service.chat.task import MAX_EXAMPLES
from service.schemas.common import Strict, example

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    Field(description="A name for use in place of the id: letters, digits, dots, dashes and underscores."),
]
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
FRENCH = "Translate the English word to French."


class Example(Strict):
    """One example of a task."""

    model_config = example({"input": "cheese", "output": "fromage"})
    input: Text
    output: Text


Examples = Annotated[
    list[Example],
    Field(
        min_length=1,
        max_length=MAX_EXAMPLES,
        description=f"Up to {MAX_EXAMPLES} examples of the task, for the adapter and perhaps for the context.",
    ),
]


def pairs_of(examples: Sequence[Example] | None) -> tuple[tuple[str, str], ...]:
    """Examples as (input, output)."""
    return tuple((example.input, example.output) for example in examples or ())


class GenerateAdapterRequest(Strict):
    """A task: a description in one or several wordings, examples, or both."""

    model_config = example(
        {"prompt": FRENCH},
        {
            "prompts": [FRENCH, "Give the French word for the English one."],
            "examples": [{"input": "cheese", "output": "fromage"}],
            "name": "french",
        },
    )
    prompt: Text | None = Field(None, description="Description of the task.")
    prompts: list[Text] | None = Field(
        None, min_length=1, max_length=16, description="The description in several wordings."
    )
    examples: list[Example] | None = Field(
        None,
        min_length=1,
        description=f"Examples of the task, up to {MAX_EXAMPLES} for making an adapter. With refine there may be as "
        "many as a job takes.",
    )
    name: Name | None = None
    scale: float = Field(1.0, ge=-4, le=4, allow_inf_nan=False, description="Factor on the adapter's effect.")
    refine: bool = Field(
        False,
        description="Refine the adapter of the description on the examples, in a fine-tuning job. The answer is the "
        "job. The examples are in its file until the file is deleted.",
    )
    wait_s: float | None = Field(
        None,
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="With refine: maximum seconds to wait for the end of the job.",
    )

    @model_validator(mode="after")
    def _one_task(self) -> GenerateAdapterRequest:
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("give prompt or prompts, not both")
        if self.prompt is None and self.prompts is None and self.examples is None:
            raise ValueError("give a prompt, prompts or examples")
        if self.refine and self.examples is None:
            raise ValueError("refine needs examples")
        if self.wait_s is not None and not self.refine:
            raise ValueError("wait_s needs refine: true")
        return self

    @property
    def descriptions(self) -> tuple[str, ...]:
        """All wordings of the task."""
        return (self.prompt,) if self.prompt is not None else tuple(self.prompts or ())

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The examples as (input, output)."""
        return pairs_of(self.examples)


class ComposeRequest(Strict):
    """Adapters to add."""

    model_config = example({"ids": ["french", "upper-case"], "weights": [1.0, 0.5], "name": "both"})
    ids: list[str] = Field(min_length=1, max_length=8, description="Ids or names.")
    weights: list[Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False)]] = Field(
        min_length=1, max_length=8, description="The factor of each adapter."
    )
    name: Name | None = None

    @model_validator(mode="after")
    def _same_length(self) -> ComposeRequest:
        if len(self.ids) != len(self.weights):
            raise ValueError(f"{len(self.ids)} ids and {len(self.weights)} weights: give one weight for each id")
        return self


class LoadAdapterRequest(BaseModel):
    """vLLM's request to load an adapter from a folder of the server."""

    model_config = example({"lora_name": "sql", "lora_path": "/srv/adapters/sql"})
    lora_name: Name
    lora_path: str = Field(min_length=1, max_length=4096, description="A PEFT folder under one of LLGBM_ADAPTER_ROOTS.")


class UnloadAdapterRequest(BaseModel):
    """vLLM's request to unload an adapter."""

    model_config = example({"lora_name": "sql"})
    lora_name: str = Field(min_length=1, max_length=64)


class TimingsMs(BaseModel):
    """Duration of each stage in milliseconds; 0 for a stage that was not needed."""

    model_config = example({"encode": 21.4, "generate": 14.0, "store": 25.3, "total": 62.9})
    encode: float = Field(description="Text encoder, including its cache.")
    generate: float = Field(description="Generator.")
    store: float = Field(description="Writing the PEFT folder.")
    total: float


_LINKS = {
    "adapter": "/adapters/lora-0f3a5d1c2b4e69788796a5b4",
    "weights": "/adapters/lora-0f3a5d1c2b4e69788796a5b4/adapter_model.safetensors",
    "config": "/adapters/lora-0f3a5d1c2b4e69788796a5b4/adapter_config.json",
    "archive": "/adapters/lora-0f3a5d1c2b4e69788796a5b4/archive",
}


class Links(BaseModel):
    """Paths of the adapter and its files."""

    model_config = example(_LINKS)
    adapter: str
    weights: str
    config: str
    archive: str


class NearestTask(BaseModel):
    """A training task, and the cosine between its nearest description and the request."""

    model_config = example({"task_id": "ii_translation_en_fr", "similarity": 0.93})
    task_id: str
    similarity: float


_ADAPTER: dict[str, Any] = {
    "id": "lora-0f3a5d1c2b4e69788796a5b4",
    "names": ["french"],
    "digest": "5f1c0f0d6f1c4a6a8d8c5e0b7a6f9e3d2c1b0a998877665544332211ffeeddcc",
    "base": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "rank": 8,
    "alpha": 16.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "num_parameters": 4399104,
    "bytes": 17636904,
    "created": 1763848800.0,
    "source": "generated",
    "prompts": [FRENCH],
    "examples": [],
    "scale": 1.0,
    "nearest_tasks": [{"task_id": "translate_en_fr", "similarity": 0.93}],
    "confidence": 0.9,
    "scale_in_context": 1.0,
    "warning": None,
    "links": _LINKS,
}


def _example(**more: Any) -> ConfigDict:
    return example({**_ADAPTER, **more})


class Adapter(BaseModel):
    """An adapter."""

    model_config = _example()
    id: str
    names: list[str]
    digest: str = Field(description="SHA-256 of the names, types, shapes and bytes of the tensors, and of alpha.")
    base: str = Field(description="Hub id of the adapter's base.")
    rank: int
    alpha: float
    target_modules: list[str]
    num_parameters: int
    bytes: int = Field(description="Size of adapter_model.safetensors in bytes.")
    created: float = Field(description="Seconds since 1970.")
    source: Literal["generated", "loaded", "composed", "refined"]
    prompts: list[str]
    examples: list[Example]
    scale: float
    nearest_tasks: list[NearestTask] = Field(description="The nearest tasks in the training of the generator.")
    confidence: float | None = Field(description="Expected share of right answers, 0 to 1; null without a calibration.")
    scale_in_context: float | None = Field(
        description="The best scale for a conversation that has the description too; null without a calibration or a "
        "description."
    )
    warning: str | None = Field(
        description="Present if the text does not seem to describe a task, or few right answers are expected with "
        "context `auto`. It says how to improve the request, and names the nearest training task."
    )
    links: Links


class ContextUsed(BaseModel):
    """The texts of the task in the context, in addition to the conversation, and the adapter's scale."""

    model_config = example({"context_used": "description", "scale": 0.5})
    context_used: Context
    scale: float = Field(description="0: the base answers without an adapter.")


class GeneratedAdapter(Adapter):
    """An adapter, and the time that it took."""

    model_config = _example(
        auto={"context_used": "none", "scale": 1.0},
        timings_ms={"encode": 21.4, "generate": 14.0, "store": 25.3, "total": 62.9},
    )
    auto: ContextUsed | None = Field(
        description="The choice of context `auto` in a chat with these texts; null for a sum of adapters."
    )
    timings_ms: TimingsMs


class AdapterDetail(Adapter):
    """An adapter with the size of its effect."""

    model_config = _example(norms={"q_proj": [0.21, 0.34], "v_proj": [0.12, None]})
    norms: dict[str, list[float | None]] = Field(
        description="For each module, the Frobenius norm of scaling * B @ A in each layer; null for a layer without it."
    )


class AdapterPage(BaseModel):
    """One page of adapters, the newest first."""

    model_config = example({"object": "list", "data": [_ADAPTER], "has_more": False, "next": None})
    object: Literal["list"] = "list"
    data: list[Adapter]
    has_more: bool
    next: str | None = Field(description="Value of `after` for the next page.")


class Deleted(BaseModel):
    """The id of the deleted adapter."""

    model_config = example({"id": _ADAPTER["id"], "object": "adapter", "deleted": True})
    id: str
    object: Literal["adapter"] = "adapter"
    deleted: Literal[True] = True
