# modeld's commands. `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BACKEND ?= llama
PROMPT  ?= Write one short sentence about the sea.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CACHE   := $(or $(MODELD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/modeld)

GO_FLAGS := -trimpath -ldflags "-s -w -X main.version=$(VERSION)"
PLUGINS  := llama none
SETS     := llama model

# On ARM modeld-openvino runs only on CPUs with SVE, and was tried in emulation
# alone: scripts/deps.sh openvino openvino-tokenizers has the parts for it.
ifeq ($(shell uname -m),x86_64)
PLUGINS  += openvino
SETS     += openvino openvino-tokenizers openvino-model
endif

# The linter is built once for all clones of a user.
GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(CACHE)/tools/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: tools-go
tools-go:
	@command -v go >/dev/null || { echo "make: 'go' 1.26 or newer is needed; install it from the Go project or your distribution" >&2; exit 3; }

.PHONY: deps
deps: tools-go ## fetch the native libraries, the test model and the Go modules (pinned, cached)
	@scripts/deps.sh $(SETS)
	@go mod download

.PHONY: build
build: deps ## build bin/modeld and its plugins
	@mkdir -p bin/plugins bin/lib
	CGO_ENABLED=0 go build $(GO_FLAGS) -o bin/modeld ./cmd/modeld
	@for p in $(PLUGINS); do \
		echo "CGO_ENABLED=0 go build -o bin/plugins/modeld-$$p ./plugins/$$p"; \
		CGO_ENABLED=0 go build $(GO_FLAGS) -o bin/plugins/modeld-$$p ./plugins/$$p || exit 1; \
	done
	@ln -sfn "$$(scripts/deps.sh --print-dir llama)" bin/lib/llama
ifneq ($(filter openvino,$(PLUGINS)),)
	@$(MAKE) -s --no-print-directory bin/lib/openvino/libmodeld_ov.so
	@ln -sfn "$$(scripts/deps.sh --print-dir openvino-tokenizers)/libopenvino_tokenizers.so" bin/lib/openvino/
endif

bin/lib/openvino/libmodeld_ov.so: native/openvino/modeld_ov.cpp native/openvino/build.sh
	native/openvino/build.sh "$$(scripts/deps.sh --print-dir openvino)" $@

.PHONY: demo
demo: build ## serve the test model and stream one answer
	@scripts/demo.sh "$(BACKEND)" "$(PROMPT)"

.PHONY: test
test: build ## run everything: vet, unit, race, conformance, end to end with real parts
	go vet ./...
	@# One package at a time: two that compute would starve each other on two cores.
	CGO_ENABLED=1 go test -race -p 1 -timeout 20m ./...

.PHONY: bench
bench: build ## measure against the bare runtime; writes bench/results.json
	CGO_ENABLED=0 go run ./bench -model "$$(echo "$$(scripts/deps.sh --print-dir model)"/*.gguf)"

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (default 20s)
	@scripts/fuzz.sh $(or $(FUZZTIME),20s)

.PHONY: sanitize
sanitize: deps ## run the OpenVINO shim's tests under AddressSanitizer and UBSan (minutes)
	@native/openvino/sanitize.sh

.PHONY: lint
lint: $(GOLANGCI) ## run the linters of .golangci.yml
	$(GOLANGCI) run ./...

$(GOLANGCI): | tools-go
	@echo "make: building golangci-lint $(GOLANGCI_VERSION), once (some minutes)"
	@mkdir -p $(@D)
	@GOBIN=$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

.PHONY: clean
clean: ## remove what was built here; the shared cache stays
	rm -rf bin
