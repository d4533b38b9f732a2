"""Runs the examples of a page of docs/."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def run_examples(page, heading):
    """Run the Python of one section, block behind block; what it defined."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(),
                        re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, f"{page}, {heading}", "exec"), names)
    return names
