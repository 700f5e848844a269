#!/usr/bin/env bash
# Builds the OpenVINO shim: build.sh OPENVINO_DIR OUT.so
# OPENVINO_DIR is the folder that has include/ and libs/. The shim finds the
# runtime there at run time. MODELD_OV_FLAGS are more flags, such as
# -fsanitize=address,undefined.
set -euo pipefail

[ $# = 2 ] || { echo "usage: $0 OPENVINO_DIR OUT.so" >&2; exit 2; }
command -v g++ >/dev/null || { echo "build.sh: 'g++' is needed and not installed; on Debian or Ubuntu: apt-get install g++" >&2; exit 3; }
here="$(dirname "$0")" openvino="$1" out="$2"
lib="$(basename "$(ls "$openvino"/libs/libopenvino.so.* | head -n 1)")"
mkdir -p "$(dirname "$out")"
# shellcheck disable=SC2086  # several flags
g++ -std=c++17 -O2 -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden ${MODELD_OV_FLAGS:-} \
	-isystem "$openvino/include" "$here/modeld_ov.cpp" -L"$openvino/libs" -l:"$lib" \
	-Wl,-rpath,"$openvino/libs" -Wl,--as-needed -Wl,-z,now -o "$out.new"
mv "$out.new" "$out"
