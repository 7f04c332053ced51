#!/usr/bin/env bash
# The HTTP interface from a shell: make an adapter, ask it, ask it again as a stream, download it.
#
#   bash examples/curl.sh "Write the plural of the noun." bridge
#
# Needs a running service (`make serve`), curl, and python3 to write and read JSON. LLGBM_URL says where the service is,
# LLGBM_API_KEY holds a key if it asks for one.
set -euo pipefail

url=${LLGBM_URL:-http://127.0.0.1:8000}
task=${1:-Write the plural of the noun.}
question=${2:-bridge}

# send PATH [more of curl's options]; ends the script on an error of the service, which is printed
send() {
  curl --silent --show-error --fail-with-body ${LLGBM_API_KEY:+-H "Authorization: Bearer $LLGBM_API_KEY"} \
    -H 'Content-Type: application/json' "$url$1" "${@:2}"
}

# what a Python expression makes of the JSON on standard input, as `answer`
read_json() {
  python3 -c "
import json, sys

answer = json.loads(sys.stdin.read() or sys.exit(1))
if 'error' in answer:
    sys.exit(answer['error']['message'])
print($1)"
}

# the body of a chat request: MODEL QUESTION true|false, the last for a stream
chat() {
  python3 - "$@" <<'CODE'
import json, sys

model, question, stream = sys.argv[1:]
messages = [{"role": "user", "content": question}]
print(json.dumps({"model": model, "messages": messages, "temperature": 0, "stream": stream == "true"}))
CODE
}

wish=$(python3 -c 'import json, sys; print(json.dumps({"prompt": sys.argv[1]}))' "$task")
id=$(send /generate-adapter -d "$wish" | read_json 'answer["id"]')
echo "adapter  $id"

printf 'answer   '
send /v1/chat/completions -d "$(chat "$id" "$question" false)" | read_json 'answer["choices"][0]["message"]["content"]'

# every event is a line "data: ..." with a piece of the text; the last one is [DONE]
printf 'stream   '
send /v1/chat/completions --no-buffer -d "$(chat "$id" "$question" true)" | python3 -c '
import json, sys

for line in sys.stdin:
    if line.startswith("data: {"):
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            sys.exit(event["error"]["message"])
        print("".join(choice["delta"].get("content") or "" for choice in event["choices"]), end="", flush=True)
print()'

send "/adapters/$id/archive" --output "$id.zip"
echo "saved    $id.zip"
