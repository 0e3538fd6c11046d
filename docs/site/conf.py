"""Of Sphinx; `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch_mlxnorm

project = "torch_mlxnorm"
author = "the authors of torch_mlxnorm"
copyright = f"MIT licence, {author}"
release = version = torch_mlxnorm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
]
source_suffix = {".md": "markdown"}
root_doc = "index"
smartquotes = False  # commands have quotes, in headings too

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 88

nitpicky = True
# No inventory of theirs is fetched: a build needs no network.
nitpick_ignore_regex = [(r"py:.*", r"(torch|collections|typing)\..*")]
nitpick_ignore = [("py:class", "Tensor")]

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
