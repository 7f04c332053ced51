"""The exceptions of the library. Every message gives the problem, the expectation and the next step."""


class LLGBMError(Exception):
    """Base class of the library's errors."""


class PretrainedNotFoundError(LLGBMError):
    """Frozen weights could not be found or fetched from any source."""


class AdapterFormatError(LLGBMError):
    """An adapter's files or tensors are not a valid LoRA: damaged, wrong type, wrong shape, not finite."""


class AdapterMismatchError(LLGBMError):
    """A valid adapter does not fit the model, the batch or the spec it was used with."""


class AdapterNotAppliedError(LLGBMError):
    """A forward pass inside an adapter's context did not reach every adapted module."""


class CheckpointError(LLGBMError):
    """A generator artefact is damaged, of an unknown version, or made for another base."""


class CacheMismatchError(LLGBMError):
    """A cache was made with other probes, or another template, model revision or dtype."""


class EmbeddingCacheError(LLGBMError):
    """An embedding cache cannot be opened, read or written."""


class ContextLengthError(LLGBMError):
    """A prompt and the requested tokens do not fit into the model's context."""


class TaskFormatError(LLGBMError):
    """A task file does not have the documented form."""


class ConfigError(LLGBMError):
    """A configuration value is unknown, of the wrong type or out of range."""


class SchemaError(LLGBMError):
    """A JSON schema is not valid, or has a keyword that cannot be enforced.

    Args:
        place: path from the root to the part at fault, with dots; empty for the root.
        problem: of that part.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"at {place}: {problem}" if place else f"at its root: {problem}")
        self.place = place
