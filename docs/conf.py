"""Settings of Sphinx: ``sphinx-build -W docs docs/_build/html``."""

import configparser
import os
import warnings
from pathlib import Path

from sphinx_gallery.sorting import FunctionSortKey

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
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_static/mathjax"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# Pages are read on code hosts too, where links to headings look like this.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]


def setup(app):
    """Link to the page of the site where a page says where a file is in the repository."""
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, on_site(source[0])))


def on_site(text):
    """A page with links to pages of the site."""
    return text.replace("](../CONTRIBUTING.md", "](contributing.md")


# Links into the documentation of other packages need their inventories, which are downloaded. Sphinx's warning about
# one that cannot be reached has no category that could be suppressed, and would end a build with -W: so they are read
# only where SKVAE_INTERSPHINX=all is in the environment. Without it, names of other packages are text.
if os.environ.get("SKVAE_INTERSPHINX") == "all":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_timeout = 10
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "sklearn": ("https://scikit-learn.org/stable/", None),
        "skorch": ("https://skorch.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

# MathJax 3.2.2 (Apache-2.0) with its fonts is in _static: formulas need no other host. Its menu would load parts that
# are not there.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}

# Prompts and outputs of examples are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

default_role = "py:obj"  # names in single backticks, in docstrings, are links
toc_object_entries_show_parents = "hide"
autosummary_generate = True
autosummary_context = {  # pages of the user guide, which the template of classes links to
    "guides": {
        "AutoencoderEmbedder": "autoencoders",
        "ClusterLabelClassifier": "labels",
        "TorchGMM": "mixtures",
        "TorchMiniBatchKMeans": "kmeans",
        "TorchPPCA": "ppca",
        "VAEEmbedder": "autoencoders",
        "VaDEClusterer": "deep_clustering",
    }
}
autodoc_typehints = "none"
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False

# From first steps to depth; a name that is missing here is an error.
EXAMPLES = [
    "plot_quickstart.py",
    "plot_vade.py",
    "plot_autoencoders.py",
    "plot_customers.py",
    "plot_cells.py",
    "plot_dask_search.py",
    "plot_gp_bayesian_optimisation.py",
    "plot_study_densities.py",
    "plot_study_mixture_classifier.py",
    "plot_study_weighted_kl.py",
    "plot_study_kmeans.py",
    "plot_study_vade.py",
]

# Examples run on scikit-learn's digits where the environment does not name a folder with MNIST. SKVAE_GALLERY=none
# builds the pages without running them.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "within_subsection_order": FunctionSortKey(EXAMPLES.index, "EXAMPLES"),
    "backreferences_dir": "generated/backreferences",  # examples on the pages of classes and functions
    "doc_module": ("skvae",),
    "plot_gallery": os.environ.get("SKVAE_GALLERY", "all") != "none",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,  # its tables load scripts from other hosts
    "min_reported_time": 1,
}
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive", category=UserWarning)

html_theme = "pydata_sphinx_theme"
html_title = "skvae"
html_logo = html_favicon = "images/logo.svg"
html_static_path = ["_static"]
html_css_files = ["skvae.css"]
html_context = {"default_mode": "auto"}  # light or dark, as the browser prefers
html_theme_options = {
    "logo": {"text": "skvae", "alt_text": "skvae"},
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navbar_end": ["theme-switcher"],
    "show_prev_next": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {
    page: [] for page in ("benchmarks", "changes", "faq", "getting_started", "glossary", "index", "installation")
}
html_show_sourcelink = False

# A link to the repository, if the package names one.
setup_cfg = configparser.ConfigParser()
setup_cfg.read(Path(__file__).parents[1] / "setup.cfg")
if url := setup_cfg.get("metadata", "url", fallback=None):
    html_theme_options["icon_links"] = [{"name": "Repository", "url": url, "icon": "fa-solid fa-code-branch"}]
