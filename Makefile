# make          builds ./agent
# make demo     installs what is missing and shows the main job
# make test     installs what is missing and runs every test; needs root
# make bench    installs what it compares with, measures, and writes docs/benchmarks.md

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := agent

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# Static: one binary for every host. Names are looked up by Go itself.
TAGS := netgo,osusergo
LDFLAGS := -s -w -X main.version=$(VERSION) -linkmode external -extldflags -static

GOLANGCI_LINT := v2.15.0
CLANG := 14
H2SPEC := v2.2.1+incompatible

# What the tests and the demo use of Debian's, and what generates and lints.
TEST_PACKAGES := awscli ca-certificates curl git nginx-light nodejs ntpsec-ntpdig openssl python3 python3-requests wget
# The clients of docs/clients.md beside: programs that others package as well are named.
CLIENT_PACKAGES := cargo-web=cargo default-jdk-headless=javac gnutls-bin liblwp-protocol-https-perl maven=mvn npm=npm \
	php-cli=php python3-pycurl ruby=ruby
BENCH_PACKAGES := conmon curl mitmproxy nghttp2-client nghttp2-proxy nginx-light runc wrk
GENERATE_PACKAGES := clang-$(CLANG) lld-$(CLANG) llvm-$(CLANG) libbpf-dev libseccomp-dev linux-libc-dev pkg-config

SOURCES := $(shell git ls-files -co --exclude-standard '*.go' '*.c' '*.s' '*.o' '*.elf' go.mod go.sum)

agent: helper/dist/escape $(SOURCES)
	go build -trimpath -tags $(TAGS) -ldflags "$(LDFLAGS)" -o $@ ./cmd/agent

# Measures what the journal costs; a run of it leaves no record.
bin/agent-noaudit: agent
	go build -trimpath -tags $(TAGS),noaudit -ldflags "$(LDFLAGS)" -o $@ ./cmd/agent

# The program that tries to get out of a run, for agent selftest.
helper/dist/escape: $(filter test/escape/%,$(SOURCES))
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@ ./test/escape

.PHONY: demo
demo: deps agent bin/awsstub
	test/demo.sh

bin/awsstub: $(filter test/awsstub/%,$(SOURCES))
	go build -o $@ ./test/awsstub/cmd/awsstub

# A test that was skipped has not passed.
.PHONY: test
test: deps agent bin/awsstub
	test/install.sh $(CLIENT_PACKAGES)
	test/run.sh $(TAGS)

# What docs/benchmarks.md holds: a quarter of an hour on a machine that does nothing else.
.PHONY: bench
bench: bench-deps
	bin/bench --docs docs

# The figures alone, in less than a minute.
.PHONY: bench-quick
bench-quick: bench-deps
	bin/bench --quick

.PHONY: bench-deps
bench-deps: agent bin/agent-noaudit bin/bench
	test/install.sh $(BENCH_PACKAGES)

bin/bench: $(filter test/bench/% test/awsstub/%,$(SOURCES))
	CGO_ENABLED=0 go build -trimpath -o $@ ./test/bench

# The agent's memory while 4 GB go down and up through it, and with many connections.
.PHONY: load
load: deps agent
	LOAD_BYTES=4294967296 go test -tags $(TAGS) -count=1 -v -timeout 1h -run '^(TestLargeBodies|TestManyConnections)$$' ./test

# Public suites against the proxy; docs/conformance.md has the scores.
.PHONY: conformance
conformance: bin/h2spec
	go test -tags $(TAGS),conformance -count=1 -v -run '^TestConformance$$' ./mitm

bin/h2spec:
	GOBIN=$(CURDIR)/bin go install github.com/summerwind/h2spec/cmd/h2spec@$(H2SPEC)

.PHONY: generate
generate:
	test/install.sh $(GENERATE_PACKAGES)
	go generate ./bpf ./helper ./runtime

.PHONY: lint
lint: bin/golangci-lint-$(GOLANGCI_LINT)
	$< run --build-tags $(TAGS) ./...

bin/golangci-lint-$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT)
	mv bin/golangci-lint $@

.PHONY: deps
deps:
	test/install.sh $(TEST_PACKAGES)

.PHONY: clean
clean:
	rm -rf agent bin $(filter-out %/placeholder,$(wildcard helper/dist/*))
