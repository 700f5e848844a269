#!/usr/bin/env bash
# Converts a GGUF model to OpenVINO IR with its tokenizer: convert-gguf.sh MODEL.gguf DIR
# It needs Python with venv, for the conversion alone: the tools are pinned in
# openvino-convert.txt, live in a temporary environment, and are removed.
set -euo pipefail

[ $# = 2 ] || { echo "usage: $0 MODEL.gguf DIR" >&2; exit 2; }
[ -f "$1" ] || { echo "convert-gguf: there is no file $1" >&2; exit 1; }
command -v python3 >/dev/null || { echo "convert-gguf: 'python3' is needed and not installed; on Debian or Ubuntu: apt-get install python3 python3-venv" >&2; exit 3; }
here="$(cd "$(dirname "$0")" && pwd)"
model="$(realpath "$1")"
mkdir -p "$2"
dir="$(realpath "$2")"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || { echo "convert-gguf: python3 has no venv; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 3; }
"$work/venv/bin/pip" --disable-pip-version-check install --quiet --no-deps --require-hashes -r "$here/openvino-convert.txt"
# The converter writes beside the model it reads.
mkdir "$work/model"
ln -s "$model" "$work/model/model.gguf"
"$work/venv/bin/python" - "$work/model/model.gguf" <<'PY'
import sys
import openvino_genai
openvino_genai.LLMPipeline(sys.argv[1], "CPU", enable_save_ov_model=True)
PY
for part in model tokenizer detokenizer; do
	for ext in xml bin; do
		[ -s "$work/model/openvino_$part.$ext" ] || { echo "convert-gguf: the converter wrote no openvino_$part.$ext; is this architecture supported?" >&2; exit 1; }
	done
done
rm "$work/model/model.gguf"
"$work/venv/bin/python" "$here/gguf-facts.py" "$model" "$work/model"
mv "$work"/model/* "$dir"/
