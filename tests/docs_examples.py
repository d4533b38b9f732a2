"""The examples of a page of docs/, and running them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def examples(page, heading):
    """The Python blocks of one section."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", (DOCS / page).read_text(),
                        re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    assert blocks
    return blocks


def run_examples(page, heading):
    """Run the Python of one section, block behind block; what it defined."""
    names = {}
    for block in examples(page, heading):
        exec(compile(block, f"{page}, {heading}", "exec"), names)
    return names
