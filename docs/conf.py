"""Settings of the documentation's generator, Sphinx; `make docs` runs it."""

from firstcli import __version__

project = "firstcli"
author = "the authors of firstcli"
copyright = "the authors of firstcli; Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpicky = True
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"firstcli {__version__}"
html_copy_source = False
html_show_sphinx = False
