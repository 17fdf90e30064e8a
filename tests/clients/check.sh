#!/usr/bin/env bash
# Generates clients from the interface's document, compiles and uses them, and sends the real binary what the document lets be sent.
# CAPSTAN_CONTRACT_S: seconds for the latter, 60 by default.
set -euo pipefail
cd "$(dirname "$0")"
root=$PWD/../..
work=$root/target/clients
mkdir -p "$work"

npm ci --ignore-scripts --no-audit --no-fund --silent
if ! cmp -s requirements.txt "$work/requirements.txt"; then
    rm -rf "$work/venv"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --require-hashes --requirement requirements.txt
    cp requirements.txt "$work/requirements.txt"
fi
export PATH=$work/venv/bin:$PATH

# A server of its own, with a token that may do everything.
data=$(mktemp -d)
token=cap_$(head -c 24 /dev/urandom | base64 | tr -dc a-zA-Z0-9)
"$root/target/debug/capstan" up --listen 127.0.0.1:0 --data-dir "$data" --set scheduler.tokens="$token" \
    --set scheduler.rate_per_s=100000 --set scheduler.rate_burst=100000 --set scheduler.limits.start_tries=1 \
    >"$data/out" 2>"$data/err" &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$data"' EXIT
until grep -q '^ready ' "$data/out"; do
    kill -0 $server || { cat "$data/err" >&2; exit 1; }
    sleep 0.05
done
url=$(awk '/^ready/ { print $2 }' "$data/out")
curl --silent --fail --header "Authorization: Bearer $token" "$url/openapi.json" >"$work/openapi.json"

npx --no-install openapi-typescript "$work/openapi.json" --output api.ts >/dev/null
npx --no-install tsc --strict --skipLibCheck --module commonjs --moduleResolution node10 --target es2022 --types node --outDir "$work/ts" smoke.ts
NODE_PATH=$PWD/node_modules node "$work/ts/smoke.js" "$url" "$token"

rm -rf "$work/python"
openapi-python-client generate --path "$work/openapi.json" --output-path "$work/python" --config generator.yml >"$work/generated.log" 2>&1
python3 smoke.py "$url" "$token" "$work/python"

# Endless by nature, and what would take the only worker or the server's own token away.
PYTHONPATH=$PWD schemathesis --config-file schemathesis.toml run "$work/openapi.json" --url "$url" \
    --header "Authorization: Bearer $token" --max-time "${CAPSTAN_CONTRACT_S:-60}" --phases examples,coverage,fuzzing --max-examples 20 \
    --exclude-path /v1/events --exclude-path-regex '^/web/|/(revoke|drain|map|logs)$|^/v1/tokens/' \
    --exclude-checks positive_data_acceptance,negative_data_rejection,missing_required_header,use_after_free,ensure_resource_availability \
    --warnings off --no-color
if grep -q panicked "$data/err"; then
    grep panicked "$data/err" >&2
    exit 1
fi
