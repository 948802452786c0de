"""The process that measures one part: python -m benchmarks.part SCENARIO PART FULL.

Its last line on stdout is JSON: the figures, or the error.
"""

from __future__ import annotations

import json
import sys
import traceback

from benchmarks.harness import load
from benchmarks.model import Settings


def main(scenario: str, part: str, full: str) -> None:
    try:
        figures = load(scenario).parts[part].run(Settings(full=full == "1"))
        answer: dict[str, object] = {"figures": figures}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
