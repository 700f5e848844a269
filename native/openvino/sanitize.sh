#!/usr/bin/env bash
# Runs the tests of modeld-openvino with a shim built for AddressSanitizer and
# UndefinedBehaviorSanitizer: sanitize.sh [TEST-FLAG...]
# It takes some minutes. Leaks are not looked for: OpenVINO keeps its core and
# its threads until the process ends.
set -euo pipefail
cd "$(dirname "$0")/../../plugins/openvino/ovrunner"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 go test -c -o "$work/ovrunner.test" .

preload=
for lib in libasan.so libubsan.so libstdc++.so.6; do
	path="$(g++ -print-file-name="$lib")"
	[ -e "$path" ] || { echo "sanitize.sh: g++ has no $lib; install its sanitizer libraries" >&2; exit 3; }
	preload+="$path "
done
# Signals are the Go runtime's. TBB must not open libraries with RTLD_DEEPBIND.
export ASAN_OPTIONS=detect_leaks=0:handle_segv=0:allow_user_segv_handler=1:use_sigaltstack=0:alloc_dealloc_mismatch=0
export TBB_ENABLE_SANITIZERS=1
export MODELD_OV_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1"
LD_PRELOAD="$preload" "$work/ovrunner.test" "$@"
