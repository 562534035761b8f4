#!/usr/bin/env bash
# The OpenAPI document against the server that it describes, by schemathesis, which makes requests of it:
#     pip install schemathesis && serve/tests/schemathesis.sh HOMEGROWN MODEL [--max-examples N ...]
# Two of its checks are left out. Data by the document needn't be accepted: a conversation may be longer than the context,
# a token unknown. And of what the document forbids some is taken: fields that aren't known are passed over, as vLLM does.
set -euo pipefail
program=$(realpath "$1") model=$(realpath "$2")
shift 2
folder=$(mktemp -d)
log=$folder/log
cd "$folder" # it leaves notes
"$program" serve "$model" --listen 127.0.0.1:0 --context 64 2>"$log" &
server=$!
trap 'kill $server; rm -rf "$folder"' EXIT
until url=$(grep -o 'http://[0-9.:]*' "$log"); do sleep 0.2; done
schemathesis run "$url/openapi.json" --url "$url" --generation-deterministic \
  --exclude-checks positive_data_acceptance,negative_data_rejection --request-timeout 120 "$@"
grep -q panicked "$log" && { cat "$log" >&2; exit 1; }
echo "no panic"
