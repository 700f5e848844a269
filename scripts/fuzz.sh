#!/usr/bin/env bash
# Runs every fuzz target of the project for a while: fuzz.sh TIME
set -euo pipefail
cd "$(dirname "$0")/.."
grep -rln --include='*_test.go' '^func Fuzz' . | while read -r file; do
	dir="$(dirname "$file")"
	grep -o '^func Fuzz[A-Za-z0-9_]*' "$file" | sed 's/^func //' | while read -r target; do
		echo "fuzz: $dir $target for $1"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$dir" </dev/null
	done
done
