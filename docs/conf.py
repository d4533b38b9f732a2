"""The documentation site, built by `make docs` with warnings as errors.

The source folder is the repository itself, so that pages and notebooks lie where they belong and
links between them hold here and on the forge. The reference is made from the docstrings of the
package that is installed. Notebooks are shown as they are committed; the tests execute them.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import bonaware

project = "bonaware"
author = "The bonaware developers"
copyright = f"{author}, Apache-2.0"
version = release = bonaware.__version__

root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "README.md", "benchmarks/README.md",
                    "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["docs/_templates"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
nb_execution_mode = "off"
myst_heading_anchors = 3
smartquotes = False  # an option is --n

templates_path = [str(Path(__file__).parent / "_templates")]
# `name` in a docstring is code, and a link where it is found; `bonaware.name` must be found.
# Constants and private modules have no entry of their own.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!bonaware(\.[a-z]\w*)+(\(\))?$).*")]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more
# Frameworks whose integrations are documented without being installed here.
autodoc_mock_imports = [
    "inspect_ai", "lighteval", "lm_eval", "torch", "transformers", "trl", "verl",
]
autosummary_ignore_module_all = False
numpydoc_show_class_members = False  # they follow one by one
# What a mocked decorator has decorated cannot be seen: these leave it as it is.
sys.modules["lm_eval.api.registry"] = SimpleNamespace(
    register_filter=lambda name: lambda kind: kind, register_model=lambda *names: lambda kind: kind)

html_theme = "furo"
html_title = f"bonaware {release}"
html_extra_path = ["index.html"]
