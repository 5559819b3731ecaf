"""The documentation as a site: `make docs`. The pages stay as GitHub shows them; this file adds what only a site needs.

Sphinx reads from the repository's root, so that a link between the README, docs/ and other files is the same in both
places.
"""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path
from textwrap import indent

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the docstrings of this tree, not of an installed package

project = "BEDS"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/**"]
exclude_patterns = [".*", "beds", "bench", "build", "schema", "tests"]  # not searched for pages, which takes seconds
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
default_role = "py:obj"  # a name in single backticks becomes a link, where an object has that name
suppress_warnings = ["misc.highlighting_failure"]  # examples leave out parts with an ellipsis

CONTENTS = {
    "Start": ["docs/quickstart"],
    "How to": ["docs/howto/*"],
    "Explanation": ["docs/explanation/architecture", "docs/explanation/*", "docs/reliability"],
    "Reference": ["docs/reference/*"],
    "Project": ["CHANGELOG", "CONTRIBUTING", "SECURITY", "docs/decisions/README"],
}
"""The site's navigation: caption and pages."""
DECISIONS = {"Decisions": ["0*"]}


def navigation(contents: dict[str, list[str]]) -> str:
    """Tables of contents, which GitHub would show as code and which are therefore not in the pages."""
    return "".join(
        "\n".join(["", "", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```", ""])
        for caption, pages in contents.items()
    )


def as_site(app: Sphinx, page: str, source: list[str]) -> None:
    """A folder's page is its README; the pages at the top of a part list the part's pages."""
    source[0] = re.sub(r"\]\(([^)#:]+/)\)", r"](\1README.md)", source[0])
    source[0] += navigation({"README": CONTENTS, "docs/decisions/README": DECISIONS}.get(page, {}))


def as_markup(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Examples and drawings in a module's docstring are literal. A property's colon does not follow a type."""
    if what in ("attribute", "property"):
        lines.insert(0, "")
    if what == "module":
        parts = "\n".join(lines).split("\n\n")
        literal = re.compile(r"^(    |[├│└])", re.MULTILINE)
        marked = ["::\n\n" + indent(part, "    ") if literal.search(part) else part for part in parts]
        lines[:] = "\n\n".join(marked).splitlines()


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Servers show a folder's index.html."""
    if error is None:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", as_site)
    app.connect("autodoc-process-docstring", as_markup)
    app.connect("build-finished", add_index)
