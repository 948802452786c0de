"""Draws docs/images/demo.svg, the output of `flowrra demo` in a terminal: `python -m docs.terminal`.

`DEMO` is the output of a real run. Tests compare it with what the command prints now, and the picture with `draw`.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

PICTURE = Path(__file__).parent / "images" / "demo.svg"
DEMO = """\
$ python -m flowrra demo
submitted 321 jobs to sqlite:////tmp/flowrra-demo-c811_tn7/demo.db
killed worker 24109 with kill -9 while it was running jobs; starting a second worker
321 jobs in 4.4 s: 320 succeeded, 1 failed (1 is written to fail)
  retry:  50 jobs raised an exception at their first attempt, and succeeded at the next
  rescue: 14 jobs lost their worker, and ran again in the second one
No job was lost. Next:
  python -m flowrra demo --keep demo.db                   # run it again and keep the jobs in a file
  python -m flowrra status --broker sqlite:///demo.db     # queues and workers
  python -m flowrra dashboard --broker sqlite:///demo.db  # the web UI; needs pip install 'flowrra[dashboard]'
"""
COLOURS = (
    (re.compile(r"^\$"), "#7ee787"),
    (re.compile(r"kill -9|\b1 failed"), "#ff7b72"),
    (re.compile(r"retry:|rescue:|320 succeeded|No job was lost\."), "#7ee787"),
    (re.compile(r"#.*$"), "#8b949e"),
)
LINE, COLUMN, MARGIN = 20, 7.83, 18  # pixels; a column is 0.6 of the size of the letters


def draw(text: str) -> str:
    """Return the text as the SVG of a terminal. It contains letters, not a bitmap, so it can be read and searched."""
    lines = text.splitlines()
    width = round(max(map(len, lines)) * COLUMN + 2 * MARGIN)
    height = len(lines) * LINE + 2 * MARGIN
    drawn = "\n".join(
        f'<text x="{MARGIN}" y="{MARGIN + 15 + number * LINE}">{_coloured(line)}</text>'
        for number, line in enumerate(lines)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"
  role="img" font-family="ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="13.05"
  fill="#e6edf3">
<style>text {{ white-space: pre; }}</style>
<title>flowrra demo: 321 jobs, a retry, a killed worker and a rescue</title>
<rect width="{width}" height="{height}" rx="10" fill="#0d1117"/>
{drawn}
</svg>
"""


def _coloured(line: str) -> str:
    found = {match.span(): colour for pattern, colour in COLOURS for match in pattern.finditer(line)}
    parts, end = [], 0
    for (first, last), colour in sorted(found.items()):
        parts += [escape(line[end:first]), f'<tspan fill="{colour}">{escape(line[first:last])}</tspan>']
        end = last
    return "".join([*parts, escape(line[end:])])


if __name__ == "__main__":
    PICTURE.write_text(draw(DEMO), encoding="utf-8")
