import math
from typing import Any

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists

from llgbm.adapters.peft_config import (
    adapter_config,
    config_bytes,
    module_order,
    parse_config_bytes,
    read_config,
    require_coverage,
)
from llgbm.config import MODEL_SPECS, TARGET_MODULES, LoRASpec, lora_spec, model_spec
from llgbm.errors import AdapterFormatError

TINY = model_spec("tiny")
SPEC = lora_spec("tiny")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


def config(**changes: Any) -> dict[str, Any]:
    return {**adapter_config(SPEC, TINY.base_id), **changes}


@pytest.mark.parametrize("name", MODEL_SPECS)
def test_presets_are_written_as_peft_writes_them(name: str) -> None:
    spec, model = lora_spec(name), model_spec(name)
    written = adapter_config(spec, model.base_id)
    assert written["target_modules"] == list(TARGET_MODULES)
    assert written["layers_to_transform"] is None
    assert (written["r"], written["lora_alpha"]) == (spec.rank, spec.alpha)
    assert written["base_model_name_or_path"] == model.base_id


def test_peft_knows_every_option_that_is_written() -> None:
    read_by_peft = peft.LoraConfig.from_peft_type(**config())
    assert read_by_peft.target_modules == set(TARGET_MODULES)
    assert read_by_peft.to_dict().keys() >= config().keys()


@given(
    layers=st.sets(st.integers(0, TINY.num_layers - 1), min_size=1),
    targets=st.sets(st.sampled_from(TARGET_MODULES), min_size=1),
    rank=st.integers(1, 64),
    alpha=st.floats(0, 1e6),
    rslora=st.booleans(),
)
def test_written_options_are_read_back(
    layers: set[int], targets: set[str], rank: int, alpha: float, rslora: bool
) -> None:
    grid = LoRASpec.for_model(TINY, targets=sorted(targets), layers=sorted(layers))
    spec = LoRASpec(rank, alpha, grid.modules, rslora)
    read = read_config(parse_config_bytes(config_bytes(adapter_config(spec, "some/base"))))
    assert (read.rank, read.alpha, read.use_rslora, read.base_id) == (rank, alpha, rslora, "some/base")
    assert read.targets == tuple(sorted(targets))
    assert read.layers == frozenset(layers)
    require_coverage(read, spec.names)


@given(st.sets(st.sampled_from(SPEC.names), min_size=1), st.randoms())
def test_any_set_of_modules_is_announced_exactly(names: set[str], random: Any) -> None:
    modules = tuple(m for m in SPEC.modules if m.name in names)
    read = read_config(adapter_config(LoRASpec(2, 4.0, modules), TINY.base_id))
    require_coverage(read, names)
    with pytest.raises(AdapterFormatError, match=r"missing \[.+|no module"):
        require_coverage(read, names - {random.choice(sorted(names))} or {"model.layers.9.mlp.up_proj"})
    if others := sorted(set(SPEC.names) - names):
        with pytest.raises(AdapterFormatError, match="extra"):
            require_coverage(read, names | {random.choice(others)})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["w"]),
        ("trainable_token_indices", [1]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1, 2]),
        ("megatron_config", {"a": 1}),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("an_option_of_next_year", {"on": True}),
        ("r", 0),
        ("r", True),
        ("r", 4.0),
        ("r", "4"),
        ("lora_alpha", math.nan),
        ("lora_alpha", math.inf),
        ("lora_alpha", 10**400),
        ("lora_alpha", None),
        ("use_rslora", "yes"),
        ("base_model_name_or_path", None),
        ("base_model_name_or_path", ""),
        ("target_modules", []),
        ("target_modules", [1]),
        ("target_modules", None),
        ("exclude_modules", 3),
        ("exclude_modules", [1]),
        ("exclude_modules", {"q_proj": True}),
        ("layers_to_transform", []),
        ("layers_to_transform", [-1]),
        ("layers_to_transform", "all"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(AdapterFormatError, match=option):
        read_config(config(**{option: value}))


def test_other_layer_lists_than_the_decoders_are_refused() -> None:
    with pytest.raises(AdapterFormatError, match="layers_pattern"):
        read_config(config(layers_to_transform=[0], layers_pattern="blocks"))


@given(st.dictionaries(st.sampled_from([*config(), "new"]), json_values, min_size=1, max_size=4))
def test_wrong_options_give_no_other_error(changes: dict[str, Any]) -> None:
    try:
        read = read_config(config(**changes))
    except AdapterFormatError:
        return
    assert read.rank >= 1
    assert math.isfinite(read.alpha)


@given(st.binary(max_size=200) | json_values.map(config_bytes))  # type: ignore[arg-type]
def test_wrong_files_give_no_other_error(data: bytes) -> None:
    try:
        parsed = parse_config_bytes(data)
    except AdapterFormatError:
        return
    assert isinstance(parsed, dict)


def test_deeply_nested_file_is_refused() -> None:
    with pytest.raises(AdapterFormatError, match="not JSON"):
        parse_config_bytes(b'{"a":' * 100_000)


@pytest.mark.parametrize(("base_id", "layers"), [(TINY.base_id, (0, 1)), ("/some/folder", (0,))])
def test_a_layer_that_is_not_there_is_missed(base_id: str, layers: tuple[int, ...]) -> None:
    read = read_config(config(base_model_name_or_path=base_id))
    require_coverage(read, SPEC.names)
    for layer in layers:
        rest = [n for n in SPEC.names if f".layers.{layer}." not in n]
        with pytest.raises(AdapterFormatError, match=rf"missing .*model\.layers\.{layer}\..*7 in all"):
            require_coverage(read, rest)


def test_more_layers_than_the_base_has_are_refused() -> None:
    with pytest.raises(AdapterFormatError, match="extra"):
        require_coverage(read_config(config()), [*SPEC.names, "model.layers.2.mlp.up_proj"])


def test_a_pattern_of_names_announces_whatever_there_is() -> None:
    read = read_config(config(target_modules=".*_proj"))
    assert read.targets is None
    require_coverage(read, SPEC.names[:3])


@pytest.mark.parametrize(
    "excluded",
    [
        ["k_proj"],
        ["mlp.up_proj", "layers.1.self_attn.q_proj"],
        ["model.layers.0.mlp.down_proj"],
        ["proj", "0", "lm_head", ".q_proj", "_proj"],
        ["0.mlp.gate_proj", "1.mlp.gate_proj"],
        [],
        "",
        None,
    ],
)
@pytest.mark.parametrize("base_id", [TINY.base_id, "/some/folder"])
def test_excluded_modules_are_those_that_peft_leaves_out(excluded: Any, base_id: str) -> None:
    options = config(exclude_modules=excluded, base_model_name_or_path=base_id)
    by_peft = peft.LoraConfig.from_peft_type(**options)
    left = [name for name in SPEC.names if check_target_module_exists(by_peft, name)]
    read = read_config(options)
    require_coverage(read, left)
    for name in left:
        with pytest.raises(AdapterFormatError, match="missing"):
            require_coverage(read, [other for other in left if other != name])
    for name in set(SPEC.names) - set(left):
        with pytest.raises(AdapterFormatError, match="extra"):
            require_coverage(read, [*left, name])


def test_an_excluding_pattern_takes_out_whatever_is_missing_and_is_never_run() -> None:
    read = read_config(config(exclude_modules="(.*)*(.*)*(.*)*!"))
    assert read.excluded is None
    require_coverage(read, SPEC.names[:3])
    with pytest.raises(AdapterFormatError, match="extra"):
        require_coverage(read, [*SPEC.names, "model.layers.2.mlp.up_proj"])


@pytest.mark.parametrize("name", SPEC.names)
def test_order_follows_the_spec(name: str) -> None:
    assert sorted(SPEC.names, key=module_order) == list(SPEC.names)  # type: ignore[arg-type]
    layer, place = module_order(name) or (-1, -1)
    assert TINY.module_shape(layer, TARGET_MODULES[place]).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "lm_head",
        "model.embed_tokens",
        "model.layers.0.mlp.q_proj",
        "model.layers.0.self_attn.up_proj",
        "model.layers.00.mlp.up_proj",
        "model.layers.-1.mlp.up_proj",
        "model.layers.99999.mlp.up_proj",
        "model.layers.\N{ARABIC-INDIC DIGIT ONE}.mlp.up_proj",
        "model.layers.0.mlp.up_proj\n",
        "model.layers.0.mlp.../up_proj",
        "../../etc/passwd",
    ],
)
def test_other_names_have_no_place(name: str) -> None:
    assert module_order(name) is None
