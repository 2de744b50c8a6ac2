"""The chart's tests: `make test-chart`. Prints one line for each check, and a count at the end."""

import importlib
import sys
import time

from suite import CHECKS

for subject in ("values", "objects", "policies", "isolation", "services", "live", "monitoring"):
    importlib.import_module(f"check_{subject}")


def main():
    only = sys.argv[1:]
    failed = 0
    chosen = [one for one in CHECKS if not only or any(word in one.__name__ for word in only)]
    for one in chosen:
        started = time.monotonic()
        try:
            detail = one()
        except Exception as error:  # noqa: BLE001 - each check is reported, whatever ends it
            failed += 1
            print(f"FAILED {one.__name__}: {type(error).__name__}: {error}", flush=True)
            continue
        print(f"ok {one.__name__.replace('_', ' ')}{f' ({detail})' if detail else ''} in {time.monotonic() - started:.1f} s", flush=True)
    print(f"chart: {len(chosen) - failed} passed, {failed} failed")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
