"""How the documentation is built: ``make docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Gossamer"
extensions = ["myst_parser", "sphinx_click", "mesh_file_fields", "kubernetes_annotations"]
html_theme = "furo"
html_title = "Gossamer"
html_extra_path = ["mesh.schema.json"]
html_static_path = ["_static"]
exclude_patterns = ["_generated/*"]
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = ["misc.highlighting_failure"]
highlight_language = "none"
html_show_copyright = False
html_show_sphinx = False
smartquotes = False  # it would make dashes of the two before a flag
