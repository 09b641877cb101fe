#!/usr/bin/env bash
# Runs every test, and fails as well if one of them was skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
	echo "the tests make namespaces and load eBPF: run them as root" >&2
	exit 1
fi
# One package at a time: some compare the host before and after.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
go test -p 1 -count=1 -timeout 15m -v ./... >"$log" 2>&1 || status=$?
grep -E '^(ok|FAIL|panic:|\?)|^ *--- (FAIL|SKIP)' "$log" || true
if [ "$status" -ne 0 ]; then
	# What the failed tests had to say.
	grep -vE '^(=== |\s*--- PASS|PASS|ok )' "$log" | tail -n 300
	exit "$status"
fi
if grep -qE '^ *--- SKIP' "$log"; then
	echo "tests were skipped" >&2
	exit 1
fi
