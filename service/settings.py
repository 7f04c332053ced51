"""All settings of the service, as environment variables with the prefix LLGBM_ or in a `.env` file.

Lists are JSON or separated by commas. The table of docs/OPERATIONS.md is made from this file, see `service.documents`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from platformdirs import user_cache_dir, user_data_dir
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.environment import EnvironmentSource, is_service_link
from service.setting_values import (
    checked_path,
    host_names,
    key_hashes,
    networks,
    origins,
    paths,
    rate,
    redis_address,
    server_urls,
    split_list,
)

ROOT = Path(__file__).resolve().parent.parent
_INSTALLED = Path(__file__).parent / "checkpoints"
DEFAULT_CHECKPOINT = (_INSTALLED if _INSTALLED.is_dir() else ROOT / "checkpoints") / "qwen2.5-0.5b"
"""The generator of an installed package, or of a checkout."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")


_VARIABLES_OF_OTHERS = {"LLGBM_URL", "LLGBM_API_KEY", "LLGBM_PUBLISH"}
"""Variables of the clients in examples/ and of the compose file."""


def _user_data() -> Path:
    return Path(user_data_dir("llgbm"))


def _user_cache() -> Path:
    return Path(user_cache_dir("llgbm"))


RefineStorage = Literal["auto", "float32", "bfloat16", "bfloat16_activations", "int8_training", "int8_mapped"]
Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split_list)]
Rate = Annotated[str, AfterValidator(rate)]


class Settings(BaseSettings):
    """The configuration of one service process. Frozen: a change needs a restart."""

    model_config = SettingsConfigDict(
        env_prefix="LLGBM_",
        env_file=".env",
        env_ignore_empty=True,  # a compose file passes unset variables as empty strings
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # the input may be a secret, and the log contains errors
        validate_default=True,
    )

    # network
    host: str = Field("127.0.0.1", description="Address to listen on. 0.0.0.0 in a container.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        description="Seconds that an idle connection is kept open. Must be longer than the proxy's; else the proxy"
        " sometimes sends a request into a connection that has just been closed.",
    )
    allowed_hosts: Annotated[Strings, AfterValidator(host_names)] = Field(
        (),
        description="Allowed host names of requests, without a port, or *; other requests get status 403. Empty:"
        " all. But `python -m service` on a loopback address without keys then allows only localhost and its addresses,"
        " so that no web page can reach the service under its own host name (DNS rebinding).",
    )
    cors_origins: Annotated[Strings, AfterValidator(origins)] = Field(
        (), description="Origins that browsers may call from, such as https://page.example. Empty: no CORS headers."
    )
    root_path: Annotated[str, AfterValidator(checked_path)] = Field(
        "",
        description="Path prefix of the service behind a proxy, such as /llgbm, which the proxy may strip or keep."
        " Empty: none, or the `X-Forwarded-Prefix` of a trusted proxy.",
    )
    trusted_proxies: Annotated[Strings, AfterValidator(networks)] = Field(
        ("127.0.0.1", "::1"),
        description="Addresses or networks of proxies whose `X-Forwarded-For`, `-Proto`, `-Host` and `-Prefix`, or"
        " `Forwarded`, are trusted; * for all.",
    )
    public_paths: Annotated[Strings, AfterValidator(paths)] = Field(
        ("/", "/static/*", "/livez", "/readyz", "/openapi.json"),
        description="Paths that need no API key; a trailing * stands for any ending.",
    )

    # models
    checkpoint: Path = Field(
        DEFAULT_CHECKPOINT, description="Folder of the generator (manifest.json and generator.safetensors)."
    )
    base: str | None = Field(
        None, description="Frozen base: a hub id or a folder. Default: the base that the generator was made for."
    )
    text_encoder: str | None = Field(
        None,
        description="Source of the generator's text encoder: a hub id or a folder. Default: the one that the generator"
        " was trained with; another model is refused.",
    )
    base_storage: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Storage of the base's Linear weights. auto: int8 on a processor that torch has a fast kernel"
        " for, else float32; bfloat16 on a GPU. float32 is exact; in int8 an answer may depend on the"
        " requests decoded with it where two tokens are nearly equally likely. /readyz says which it is.",
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="Device of the base: cpu, cuda or cuda:1; on a GPU with float32 or bfloat16. Not yet"
        " tested on a GPU.",
    )
    threads: int = Field(0, ge=0, description="Threads of torch; 0 leaves the choice to torch.")

    # engine
    engine: Literal["torch", "vllm"] = Field(
        "torch",
        description="Engine that decodes: torch in this process, or vLLM servers. This process makes the adapters.",
    )
    vllm_url: Annotated[Strings, AfterValidator(server_urls)] = Field(
        (), description="Addresses of the vLLM servers, such as http://gpu-1:8000. All serve the same base."
    )
    vllm_api_key: SecretStr | None = Field(None, description="The servers' --api-key.")
    vllm_adapters: Literal["load", "resolver"] = Field(
        "load",
        description="How adapters reach the servers. load: through /v1/load_lora_adapter and /v1/unload_lora_adapter. "
        "resolver: vLLM's lora_filesystem_resolver finds them in the store.",
    )
    vllm_store_dir: Path | None = Field(
        None, description="Path of the store's folder on the servers. Default: the path on this machine."
    )
    vllm_max_loras: int = Field(
        8,
        ge=1,
        description="The servers' --max-loras. A server that decodes with this number of adapters gets no other one"
        " while another server has room.",
    )
    vllm_max_cpu_loras: int = Field(
        64,
        ge=1,
        description="The servers' --max-cpu-loras: adapters kept on each; the least recently used is unloaded first.",
    )
    vllm_check_seconds: float = Field(2.0, gt=0, description="Seconds between two health checks of the servers.")

    # storage and caches
    store_dir: Path = Field(
        default_factory=lambda: _user_data() / "adapters",
        description="Folder of the adapters, one PEFT folder each. Several processes may share it. "
        "Default: `adapters` in the user's data folder.",
    )
    store_url: str = Field(
        "",
        description="Address of a store shared by several machines, in fsspec's form, such as s3://bucket/adapters; "
        "LLGBM_STORE_DIR then has local copies. Empty: LLGBM_STORE_DIR is the store.",
    )
    copy_bytes: int = Field(
        20 * 2**30,
        ge=0,
        description="With LLGBM_STORE_URL: maximum bytes of the copies in LLGBM_STORE_DIR. The least recently used are"
        " removed first; a copy used within the last minute is kept.",
    )
    cache_dir: Path = Field(
        default_factory=_user_cache,
        description="Folder of downloaded weights, of the base's int8 weights, of the embedding cache and of the"
        " index of the adapters. Default: the user's cache folder.",
    )
    adapter_memory: int = Field(
        512 * 2**20, ge=0, description="Maximum bytes of adapters in memory; adapters in use are never dropped."
    )
    embedding_memory: int = Field(
        4096,
        ge=1,
        description="Text embeddings and answer words of texts kept in memory (1.5 and 3.6 kB each).",
    )
    redis_url: Annotated[SecretStr | None, AfterValidator(redis_address)] = Field(
        None,
        description="redis://:password@host:6379/0. Set: text embeddings and rate limits live in Redis. "
        "Unset: both stay in this process, and embeddings also in a file.",
    )
    redis_ttl: int = Field(30 * 86400, ge=1, description="Seconds that Redis keeps a text embedding.")
    redis_timeout: float = Field(0.05, gt=0, description="Seconds that one exchange with Redis may take.")
    redis_retry_after: float = Field(
        2.0, ge=0, description="Seconds without Redis after a failure, so that requests do not wait for it."
    )

    redis_lease: float = Field(
        10.0,
        gt=0,
        description="With LLGBM_REDIS_URL, only one process makes a given adapter. Seconds after which another process "
        "may make it if the first has died.",
    )

    # load limits
    max_batch: int = Field(
        64, ge=1, le=256, description="Rows that are decoded together; with vLLM, rows for each server."
    )
    batch_tokens: int = Field(
        65536,
        ge=1,
        description="Tokens of the rows that are decoded together, their prompts and the longest answers, of which at"
        " most 1024 count: further rows wait. A row that has more is decoded alone. On the 0.5B base a token takes"
        " 25 kB of memory. Not for vLLM.",
    )
    max_queue: int = Field(
        64, ge=0, description="Rows that may wait for a place in the batch; further requests get status 429."
    )
    max_jobs: int = Field(
        32, ge=1, description="Adapters that may be made at the same time; further requests get status 429."
    )
    prefill_tokens: int = Field(
        256,
        ge=1,
        description="Prompt tokens that are read between two tokens of the running rows; a longer prompt is read in"
        " pieces. With fewer, other streams are smoother while a long prompt is read; with more, its first token comes"
        " earlier.",
    )
    prefix_tokens: int = Field(
        4096,
        ge=0,
        description="Tokens of ended rows whose keys and values are kept (25 kB each on the 0.5B base). A prompt that"
        " begins like what another row with the same adapter has read takes these over; so the same request may get"
        " another answer, within the rounding of the base, and a client can see how much of its prompt was known. 0:"
        " every prompt is read in full. Not for vLLM.",
    )
    request_timeout: float = Field(
        300.0, gt=0, description="Maximum seconds for an answer, or for waiting for an adapter."
    )
    drain_seconds: float = Field(25.0, ge=0, description="Seconds that running requests may take after SIGTERM.")

    # fine-tuning
    refine_queue: int = Field(8, ge=0, description="Fine-tuning jobs that may wait; further requests get status 429.")
    refine_rows: int = Field(
        500, ge=1, description="Maximum number of examples of a job, for training and for validation each."
    )
    refine_seconds: float = Field(
        1800.0, gt=0, description="Maximum seconds of a job without interruption; after that it fails."
    )
    refine_threads: int = Field(0, ge=0, description="Threads of the job's process; 0 uses half of the processors.")
    refine_storage: RefineStorage = Field(
        "auto",
        description="Storage of the base's Linear weights in the job's process. auto: on a processor that multiplies"
        " in bfloat16, int8_mapped where the service's base is in int8, else bfloat16_activations; on another one"
        " int8_training; bfloat16 on a GPU.",
    )

    # Ray Serve, with `serve run service.ray_app:app`
    ray_min_replicas: int = Field(1, ge=0, description="Ray Serve: minimum number of replicas.")
    ray_max_replicas: int = Field(4, ge=1, description="Ray Serve: maximum number of replicas.")
    ray_target_requests: float = Field(
        8.0, gt=0, description="Ray Serve: target number of active requests for each replica."
    )
    ray_cpus: float = Field(
        1.0, ge=0, description="Ray Serve: reserved processors of a replica, also its torch threads."
    )

    # size limits of requests
    max_body_bytes: int = Field(
        1 << 20, ge=1024, description="Maximum bytes of a request body; a larger one gets status 413."
    )
    max_prompt_chars: int = Field(
        4000, ge=1, description="Maximum characters of a task prompt with its examples; a longer one gets status 413."
    )
    max_context: int = Field(
        4096, ge=16, description="Maximum tokens of a prompt and its answer together; the base's own limit applies too."
    )
    max_tokens: int = Field(256, ge=1, description="Maximum tokens of an answer if the request has no limit.")
    max_choices: int = Field(8, ge=1, description="Largest `n` of a chat request.")
    strict_base: bool = Field(
        False,
        description="Refuse adapters that name another base than the loaded one, even if their shapes fit."
        " Otherwise they are served with a warning.",
    )
    max_rank: int = Field(64, ge=1, description="Largest rank of an adapter that is loaded or combined.")

    # access
    api_key_hashes: Annotated[Strings, AfterValidator(key_hashes)] = Field(
        (), description="sha256 of each API key, in hexadecimal. Empty: no key is needed."
    )
    rate_limit: Rate = Field(
        "",
        description="Rate limit for each key, or for each address if there are no keys, such as 60/minute. Empty: no"
        " limit.",
    )
    adapter_roots: Paths = Field(
        (),
        description="Folders from which /v1/load_lora_adapter may read adapters. Empty: the route is disabled.",
    )

    # logs and traces
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level of log lines.")
    log_format: Literal["json", "console"] = Field("json", description="JSON lines, or readable text.")
    otel: bool = Field(
        False,
        description="Send traces to OTEL_EXPORTER_OTLP_ENDPOINT; needs `pip install -e '.[otel]'`.",
    )

    def with_default_hosts(self) -> Settings:
        """The settings with default `allowed_hosts` for a process that listens on `host`."""
        if self.allowed_hosts or self.api_key_hashes or self.host not in LOOPBACK:
            return self
        return self.model_copy(update={"allowed_hosts": LOOPBACK})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The usual sources, with the cleaned environment of `service.environment`."""
        return init_settings, EnvironmentSource(settings_cls), dotenv_settings, file_secret_settings

    @model_validator(mode="after")
    def _check_vllm(self) -> Self:
        if self.engine == "vllm" and not self.vllm_url:
            raise ValueError("LLGBM_ENGINE=vllm needs LLGBM_VLLM_URL, the address of at least one vLLM server")
        if self.vllm_max_loras > self.vllm_max_cpu_loras:
            raise ValueError(
                f"LLGBM_VLLM_MAX_LORAS is {self.vllm_max_loras} and LLGBM_VLLM_MAX_CPU_LORAS is only "
                f"{self.vllm_max_cpu_loras}; set the second to at least the first"
            )
        return self


def refused(error: ValidationError) -> list[str]:
    """The problems of the settings, one line for each variable. Values are left out because they may be secret."""
    found = error.errors(include_input=False, include_context=False, include_url=False)
    return [": ".join([*(f"LLGBM_{name}".upper() for name in each["loc"][:1]), each["msg"]]) for each in found]


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings but are not, such as misspelt names.

    Args:
        environment: of the process; the `.env` file is checked too.
    """
    in_file = (name.upper() for name in DotEnvSettingsSource(Settings).env_vars)
    known = {f"LLGBM_{name.upper()}" for name in Settings.model_fields} | _VARIABLES_OF_OTHERS
    ours = (name for name, value in environment.items() if not is_service_link(name, value))
    found = {name for name in (*ours, *in_file) if name.startswith("LLGBM_")}
    return sorted(name for name in found - known if not name.startswith("LLGBM_TEST_"))
