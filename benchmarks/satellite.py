"""Satellite images as a table for clustering: 6,435 neighbourhoods of nine pixels in four spectral bands, six soils.

    apt-get download r-cran-mlbench && dpkg-deb -x r-cran-mlbench_*.deb package
    pip install rdata
    python benchmarks/satellite.py --rda package/usr/lib/R/site-library/mlbench/data/Satellite.rda

The data are the "Satellite" table of the R package mlbench (Statlog, Landsat multispectral scanner), which is installed
by the commands above or by R itself. A row has 36 values between 0 and 255, and the class of its central pixel. The
file ``satellite.npz`` has arrays named as those of MNIST, ``X_train``, ``y_train``, ``X_test``, ``y_test``; a quarter
of the rows, with the classes in equal shares, is for the test. Neighbourhoods overlap: rows of both parts share pixels.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split


def read(path):
    """Values (n, 36) and numbers of the classes (n,)."""
    import rdata

    table = rdata.read_rda(path)["Satellite"]
    values = table.drop(columns="classes").to_numpy()
    if values.shape[1] != 36 or not (np.mod(values, 1) == 0).all() or values.min() < 0 or values.max() > 255:
        raise ValueError(f"{path} does not hold whole numbers between 0 and 255 in 36 columns.")
    return values.astype(np.uint8), np.unique(table["classes"].astype(str), return_inverse=True)[1].astype(np.uint8)


def main():
    """Read, split, write, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rda", type=Path, required=True, help="the file Satellite.rda of the package")
    parser.add_argument("--output", type=Path, default=Path("satellite.npz"))
    args = parser.parse_args()
    X, y = read(args.rda)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.output, X_train=X_train, y_train=y_train, X_test=X_test, y_test=y_test)
    print(f"{len(X_train)} rows to train, {len(X_test)} for the test, classes of {np.bincount(y).tolist()} rows")


if __name__ == "__main__":
    main()
