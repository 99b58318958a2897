"""Makes docs/demo.svg from docs/demo.log, which is what a run of `gpupool demo` printed.

It leaves lines out and colours the others; it never changes a word.

    gpupool demo | tee docs/demo.log && python tools/demo_picture.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH = 116
STEPS_SHOWN = (20, 25, 60)

# What a line must match to be shown, and its colour. The first that matches counts.
SHOWN = (
    (r"^ *[\d.]+ s  (An embedded|Five jobs|Power cut|The training run|Every unit)", "bold"),
    (r" is READY: ", "green"),
    (r" waits: ", "yellow"),
    (r"job (train|neighbour): (?!STARTING \()", "blue"),
    (r" job train: ", "blue"),
    (r"host h\d+: (READY -> FENCED|JOINING -> READY)", "magenta"),
    (r"nothing of it is left", "red"),
    (rf"train \| step ({'|'.join(map(str, STEPS_SHOWN))}) ", "cyan"),
    (r"train \| (?!step)", "cyan"),
    (r" h1 \S+: .*rebind ok", "green"),
    (r"^(From the death|The training run resumed|\d+ of \d+ jobs done)", "bold green"),
)


def picture(log: str) -> str:
    """The SVG of a captured log."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ gpupool demo", style="bold"))
    for line in log.splitlines():
        style = next((style for pattern, style in SHOWN if re.search(pattern, line)), None)
        if style is None:
            continue
        if style == "bold":
            console.print()
        console.print(Text(line, style=style), soft_wrap=False)
    svg = console.export_svg(title="gpupool demo", unique_id="gpupool-demo")
    # rich names a font that would be fetched from elsewhere: the reader's own monospace font does.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    (DOCS / "demo.svg").write_text(picture((DOCS / "demo.log").read_text()) + "\n")
