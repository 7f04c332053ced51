"""The exceptions that callers of the library catch.

Every message says what was wrong, what was expected and what to do next.
"""


class LLGBMError(Exception):
    """Base of every error that the library raises on purpose."""


class PretrainedNotFoundError(LLGBMError):
    """Frozen weights could not be found or fetched from any source."""


class AdapterFormatError(LLGBMError):
    """An adapter's files or tensors are not a valid LoRA: torn, wrong type, wrong shape, not finite."""


class AdapterMismatchError(LLGBMError):
    """A valid adapter does not fit the model, the batch or the spec it was used with."""


class AdapterNotAppliedError(LLGBMError):
    """A forward pass ran inside an adapter's context without reaching every module that it adapts."""


class CheckpointError(LLGBMError):
    """A generator artefact is torn, of an unknown version, or made for another base."""


class CacheMismatchError(LLGBMError):
    """A cache was made with other probes, another template, model revision or dtype than asked for."""


class EmbeddingCacheError(LLGBMError):
    """An embedding cache cannot be opened, read or written."""


class ContextLengthError(LLGBMError):
    """A prompt and the tokens asked for do not fit into the context of the model."""


class TaskFormatError(LLGBMError):
    """A task file does not have the documented form."""


class ConfigError(LLGBMError):
    """A configuration value is unknown, of the wrong type or out of range."""


class SchemaError(LLGBMError):
    """A JSON schema is not valid, or asks for what answers cannot be held to.

    Args:
        place: path from the root to the part at fault, with dots; empty for the root.
        problem: of that part.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"at {place}: {problem}" if place else f"at its root: {problem}")
        self.place = place
