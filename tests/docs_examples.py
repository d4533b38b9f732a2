"""The examples of a page of docs/, and running them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def examples(page, heading=None):
    """The Python blocks of a page, or of one section of it."""
    text = (DOCS / page).read_text()
    if heading is not None:
        text = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    return blocks


def run_examples(page, heading=None):
    """Run the Python of a page or a section, block behind block; what it defined."""
    names = {}
    for block in examples(page, heading):
        exec(compile(block, f"{page}, {heading or 'whole'}", "exec"), names)
    return names
