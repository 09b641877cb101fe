#!/usr/bin/env bash
# run.sh TAGS: runs every test; one that was skipped counts as failed. One package at a time:
# some compare the host before and after.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
	echo "the tests make namespaces and load eBPF: run them as root" >&2
	exit 1
fi
go test -tags "$1" -p 1 -count=1 -timeout 15m -json ./... | /usr/bin/python3 test/report.py
