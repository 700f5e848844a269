#!/usr/bin/env bash
# Serves the test model with a backend and streams one answer: demo.sh BACKEND PROMPT
set -euo pipefail
cd "$(dirname "$0")/.."

backend="$1" prompt="$2"
case "$backend" in
llama) model="$(echo "$(scripts/deps.sh --print-dir model)"/*.gguf)" ;;
openvino) model="$(scripts/deps.sh --print-dir openvino-model)" ;;
*) echo "demo: no demo for backend '$backend'; use llama or openvino" >&2; exit 2 ;;
esac

state="$(mktemp -d)"
log="$state/modeld.log"
stop() {
	if [ -n "${pid:-}" ] && kill -0 "$pid" 2>/dev/null; then
		kill -TERM "$pid"
		wait "$pid" || { echo "demo: modeld did not stop cleanly:" >&2; tail -n 20 "$log" >&2; exit 1; }
		echo "modeld stopped cleanly."
	fi
	rm -rf "$state"
}
trap stop EXIT

echo "\$ bin/modeld serve --backend $backend --model $model"
bin/modeld serve --backend "$backend" --model "$model" --state-dir "$state" >"$log" 2>&1 &
pid=$!
for ((i = 0; i < 600; i++)); do
	grep -q 'msg=serving' "$log" && break
	kill -0 "$pid" 2>/dev/null || { pid=; echo "demo: modeld ended:" >&2; cat "$log" >&2; exit 1; }
	sleep 0.1
done
grep -m 1 'msg=serving' "$log" || { echo "demo: modeld does not serve after 60 s:" >&2; cat "$log" >&2; exit 1; }

echo "\$ bin/modeld chat --prompt \"$prompt\""
bin/modeld chat --state-dir "$state" --prompt "$prompt" --max-tokens 64 --temperature 0
