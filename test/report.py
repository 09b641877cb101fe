"""Reads `go test -json` and prints what matters of it: a line for each package,
and the whole output of each test that failed or was skipped. Exits with 1 if
there was one."""
import collections
import json
import sys

output = collections.defaultdict(list)
bad = 0
for line in sys.stdin:
    try:
        event = json.loads(line)
    except ValueError:  # of the build
        print(line, end="")
        continue
    test = (event.get("Package"), event.get("Test"))
    action = event["Action"]
    if action in ("output", "build-output"):
        text = event["Output"]
        output[test].append(text)
        if action == "build-output" or test[1] is None and text.startswith(("ok", "FAIL", "?", "panic:")):
            print(text, end="", flush=True)
    elif action in ("fail", "skip") and test[1] is not None:
        bad += 1
        print("".join(output[test]), end="", flush=True)
    elif action == "fail":
        bad += 1
        print("".join(output[test]), end="", flush=True)
if bad:
    sys.exit(f"{bad} tests or packages failed or were skipped")
