"""Build with ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import fastemd

project = "fastemd"
author = "the fastemd developers"
copyright = author  # noqa: A001 (Sphinx's name)
version = release = fastemd.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/*.ipynb"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings describe the types
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "ignore_pattern": r"^(?!.*plot_)",  # other scripts have separate pages
    "download_all_examples": False,
    "show_signature": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"fastemd {version}"
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
}
# Pages without subpages have no sidebar of pages.
_FLAT = [
    "installation",
    "quickstart",
    "theory",
    "spaces",
    "accuracy",
    "performance",
    "sinkhorn",
    "breathing",
    "which_loss",
    "frameworks",
    "boosting",
    "clusters",
    "losses",
    "crps",
    "pairs",
    "unifrac",
    "development",
    "changelog",
]
html_sidebars = {page: [] for page in _FLAT}
