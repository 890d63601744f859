"""Build with ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import inspect
from pathlib import Path

import fastemd
from fastemd.spaces import GroundSpace

project = "fastemd"
author = "the fastemd developers"
copyright = author  # noqa: A001 (Sphinx's name)
version = release = fastemd.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "myst_parser",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/*.ipynb", "node_modules"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_context = {  # autosummary itself sorts by name
    "source_order": [
        *dict.fromkeys(
            name
            for space in (GroundSpace, fastemd.Chain, fastemd.Tree)
            for name in (*inspect.get_annotations(space), *vars(space))
        )
    ]
}
default_role = "py:obj"  # names in docstrings are links
autodoc_typehints = "none"  # the docstrings describe the types
autodoc_preserve_defaults = True
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 60
python_trailing_comma_in_multi_line_signatures = False
numpydoc_show_class_members = False

plot_html_show_formats = plot_html_show_source_link = False
plot_formats = [("png", 90)]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "parallel": 2,
    "ignore_pattern": r"^(?!.*plot_)",  # other scripts have separate pages
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "thumbnail_size": (560, 400),  # docs/images/thumbs has parts of large figures, cut by hand
}

html_theme = "pydata_sphinx_theme"
html_title = f"fastemd {version}"
html_show_sourcelink = False
html_static_path = ["_static"]
mathjax = "node_modules/mathjax/es5/tex-svg-full.js"
if (Path(__file__).parent / mathjax).exists():  # after `npm install --prefix docs`
    html_static_path.append(mathjax)
    mathjax_path = "tex-svg-full.js"
html_css_files = ["pages.css"]
html_theme_options = {
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
}
html_sidebars = {"development": [], "changelog": []}  # pages without subpages


def hide_signature(app, what, name, *args):
    """Hide the signature of classes that are not called."""
    return ("", None) if name == "fastemd.Tree" else None


def setup(app):
    """Connect the handlers."""
    app.connect("autodoc-process-signature", hide_signature)
