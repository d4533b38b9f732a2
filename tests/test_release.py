"""What a release says about itself, in the places that say it twice."""

import re
from pathlib import Path

import bonaware

ROOT = Path(__file__).parents[1]


def test_citation_has_the_version_of_the_package():
    said = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert said == [bonaware.__version__]


def test_changelog_begins_with_this_version_or_what_is_unreleased_and_goes_back():
    first, *others = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first in ("Unreleased", bonaware.__version__)
    released = others if first == "Unreleased" else [first, *others]
    numbers = [tuple(map(int, version.split("."))) for version in released]
    assert numbers == sorted(set(numbers), reverse=True)
