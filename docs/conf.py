"""Settings of Sphinx: ``sphinx-build -W docs docs/_build/html``."""

import os
import warnings

import skvae

project, author = "skvae", "The skvae developers"
project_copyright = "The skvae developers, BSD-3-Clause"
version = release = skvae.__version__

templates_path = ["_templates"]
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# Pages are read on code hosts too, where links to headings look like this.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]


def setup(app):
    """Link to the page of the site where a page says where a file is in the repository."""
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, on_site(source[0])))


def on_site(text):
    """A page with links to pages of the site."""
    return text.replace("](../CONTRIBUTING.md", "](contributing.md")


autosummary_generate = True
autodoc_typehints = "none"
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False

# Examples run on scikit-learn's digits where the environment does not name a folder with MNIST. SKVAE_GALLERY=none
# builds the pages without running them.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "plot_gallery": os.environ.get("SKVAE_GALLERY", "all") != "none",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 1,
}
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive", category=UserWarning)

html_theme = "pydata_sphinx_theme"
html_title = "skvae"
html_static_path = ["_static"]
html_css_files = ["skvae.css"]
html_theme_options = {
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navbar_end": ["theme-switcher"],
    "show_prev_next": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"benchmarks": [], "changes": [], "getting_started": [], "index": []}
html_show_sourcelink = False
