"""Images of the letters A to J in all fonts of some folders: a data set with the layout of MNIST's file.

    python benchmarks/letters.py --fonts /usr/share/fonts --output letters.npz --sheet letters.png

Ten classes of 28 x 28 grey images, white on black, one of each letter from every face, in the manner of notMNIST. A
face is a font file, a font of a collection or a named instance of a variable font. A glyph is drawn at four times the
size, its longer side about 20 pixels in the end, and centred. Left out are faces that lack one of the letters or have
two that look the same, those whose file or name says that they hold symbols, copies of a design under another name, and
images that are equal to an earlier one. A few letters that no one would read remain, as they do in notMNIST.

No design is in both parts: families whose faces are similar, or whose names have the same first word, are one group,
and whole groups are drawn for the test until they make 15 % of the images, none of them above a twentieth of it. The
file has the arrays ``X_train``, ``y_train``, ``X_test`` and ``y_test``, uint8, in random order, and besides
``faces_train`` and ``faces_test``, the name of the face of each image. Pillow and fontTools are needed, which come with
matplotlib.
"""

import argparse
import json
import logging
import platform
import struct
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont
from scipy.sparse.csgraph import connected_components

LETTERS = "ABCDEFGHIJ"
SIDE, BOX, SCALE = 28, 20, 4  # of an image and of a glyph in pixels; of a drawing in pixels per pixel
MEASURED_AT = 256  # size of a font in pixels at which the sides of its glyphs are measured
# Squared difference of the images of two faces, as a share of the squares of one: below the first they are the same
# design under two names, below the second one may come from the other.
COPY, SIMILAR = 0.01, 0.05
LARGEST = 0.05  # share of the test that one group of families may have
SUFFIXES = {".ttf", ".otf", ".ttc", ".otc"}
SYMBOLS = (
    "symbol",
    "emoji",
    "dingbat",
    "dings",
    "keyboard",
    "ornament",
    "icon",
    "music",
    "braille",
    "barcode",
    "fallback",
    "initials",
)
UNREADABLE = (TTLibError, OSError, KeyError, AssertionError, UnicodeDecodeError, struct.error)  # of damaged files
PICTORIAL = 5  # family type of the PANOSE classification
SYSTEM_FOLDERS = {
    "Linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts"),
    "Darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "Windows": ("C:/Windows/Fonts",),
}


class Face(NamedTuple):
    """A font of a file, with the names of its family and of itself; a variable font is set to ``instance``."""

    path: Path
    index: int
    family: str
    style: str
    instance: bytes | None = None


def font_files(folders):
    """Font files below the folders, each once, in the order of their names."""
    results = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; name folders of font files with --fonts.")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                results.setdefault(path.resolve())
    return sorted(results, key=lambda path: (path.name, str(path)))


def faces_of(path):
    """Faces of a file that say that they have all letters and are no symbols."""
    collection = path.suffix.lower() in {".ttc", ".otc"}
    fonts = TTCollection(path, lazy=True).fonts if collection else [TTFont(path, lazy=True)]
    faces = []
    for index, font in enumerate(fonts):
        family = (font["name"].getBestFamilyName() or "").strip() or path.stem
        style = (font["name"].getBestSubFamilyName() or "").strip()
        if not has_letters(font) or any(word in f"{family} {style}".lower() for word in SYMBOLS):
            continue
        if "fvar" in font:
            instances = ImageFont.truetype(path, MEASURED_AT, index=index).get_variation_names()
            faces += [Face(path, index, family, name.decode(errors="replace"), name) for name in instances]
        else:
            faces.append(Face(path, index, family, style))
    return faces


def has_letters(font):
    """Return whether a font declares all letters, and does not declare them as pictures."""
    characters = font.getBestCmap()  # None if it has no Unicode characters, but symbols with numbers
    if characters is None or any(ord(letter) not in characters for letter in LETTERS):
        return False
    return "OS/2" not in font or font["OS/2"].panose.bFamilyType != PICTORIAL


def font_of(face, size):
    font = ImageFont.truetype(face.path, size, index=face.index, layout_engine=ImageFont.Layout.BASIC)
    if face.instance is not None:
        font.set_variation_by_name(face.instance)
    return font


def ink(font, letter):
    """A drawing of a letter without empty margins, or None if there is nothing to see."""
    left, top, right, bottom = font.getbbox(letter, anchor="ls")
    if right <= left or bottom <= top:
        return None
    canvas = Image.new("L", (int(right - left) + 1, int(bottom - top) + 1))
    ImageDraw.Draw(canvas).text((-left, -top), letter, fill=255, font=font, anchor="ls")
    box = canvas.getbbox()  # tighter, because the other one has the space around the letter too
    return None if box is None else canvas.crop(box)


def glyph(face, measured, letter):
    """The image of a letter, or None if there is nothing to see."""
    large = ink(measured, letter)
    if large is None:
        return None
    drawn = ink(font_of(face, MEASURED_AT * BOX * SCALE / max(large.size)), letter)
    if drawn is None or max(drawn.size) > SIDE * SCALE:
        return None
    canvas = Image.new("L", (SIDE * SCALE, SIDE * SCALE))
    canvas.paste(drawn, ((canvas.width - drawn.width) // 2, (canvas.height - drawn.height) // 2))
    return np.asarray(canvas.reduce(SCALE))


def images_of(face):
    """Images of all letters (10, 28, 28), or None if one is missing or two are the same."""
    measured = font_of(face, MEASURED_AT)
    images = [glyph(face, measured, letter) for letter in LETTERS]
    if any(image is None for image in images) or len({image.tobytes() for image in images}) < len(LETTERS):
        return None
    return np.stack(images)  # (10, 28, 28)


def render(folders):
    """Faces, their images (n, 10, 28, 28), and how many files and faces were left out, by reason."""
    faces, images, left_out = {}, [], Counter()
    for path in font_files(folders):
        try:
            results = faces_of(path)
        except UNREADABLE as error:
            left_out[f"file that can not be read ({type(error).__name__})"] += 1
            continue
        left_out["file without the letters, or of symbols"] += not results
        for face in results:
            name = (face.family.lower(), face.style.lower())
            if name in faces:
                left_out["face of the same name"] += 1
                continue
            try:
                drawn = images_of(face)
            except OSError:
                left_out["face that can not be drawn"] += 1
                continue
            if drawn is None:
                left_out["face with letters that are empty or the same"] += 1
                continue
            faces[name] = face
            images.append(drawn)
    if not faces:
        raise ValueError(f"No font with the letters {LETTERS} was found; name folders of font files with --fonts.")
    return list(faces.values()), np.stack(images), left_out


def differences(images):
    """Squared difference of the images of each two faces (n, n), as a share of the squares of the fainter one."""
    X = images.reshape(len(images), -1).astype(np.float32) / 255
    squares = np.einsum("ij,ij->i", X, X)
    gaps = squares[:, None] + squares - 2 * (X @ X.T)
    return gaps / np.minimum(squares[:, None], squares)


def designs(gaps):
    """Numbers of the faces that are no copy of an earlier one that is kept."""
    kept = []
    for face, row in enumerate(gaps < COPY):
        if not row[kept].any():
            kept.append(face)
    return np.array(kept)


def groups_of(faces, gaps):
    """For each face the number of its group: joined are the same first word of the name, and similar images."""
    words = np.array([face.family.lower().split(maxsplit=1)[0] for face in faces])
    return connected_components((words[:, None] == words) | (gaps < SIMILAR), directed=False)[1]


def distinct(images):
    """Which images (n, 10) are equal to no earlier one."""
    first = np.unique(images.reshape(-1, SIDE * SIDE), axis=0, return_index=True)[1]
    kept = np.zeros(images.shape[0] * len(LETTERS), dtype=bool)
    kept[first] = True
    return kept.reshape(-1, len(LETTERS))


def drawn_for_test(groups, n_images, share, rng):
    """Which faces are of groups that are drawn for the test; groups that would rule it or exceed it are not taken."""
    sizes = np.bincount(groups, weights=n_images)
    wanted = share * sizes.sum()
    chosen, total = [], 0
    for number in rng.permutation(len(sizes)):
        if sizes[number] <= LARGEST * wanted and total + sizes[number] <= wanted:
            chosen.append(number)
            total += sizes[number]
    if not chosen:
        raise ValueError(
            f"The fonts form {len(sizes)} groups of families, and none is small enough for a test of {share:.0%} of "
            "the images; name folders with more families with --fonts."
        )
    return np.isin(groups, chosen)


def split(faces, images, groups, share, seed):
    """Arrays of the file, made of the images that are equal to no earlier one."""
    kept = distinct(images)
    rng = np.random.default_rng(seed)
    tested = drawn_for_test(groups, kept.sum(1), share, rng)
    names = np.array([f"{face.family}, {face.style}" for face in faces])
    arrays = {}
    for part, mine in (("train", ~tested), ("test", tested)):
        rows, letters = np.nonzero(kept & mine[:, None])
        order = rng.permutation(len(rows))
        rows, letters = rows[order], letters[order]
        arrays |= {f"X_{part}": images[rows, letters], f"y_{part}": letters.astype(np.uint8)}
        arrays[f"faces_{part}"] = names[rows]
    return arrays


def contact_sheet(arrays, n_rows=40):
    """A picture with images of every class in a row of its own, from both parts."""
    lines = [
        np.hstack(arrays[f"X_{part}"][arrays[f"y_{part}"] == letter][:n_rows])
        for part in ("train", "test")
        for letter in range(len(LETTERS))
    ]
    width = min(line.shape[1] for line in lines)
    return Image.fromarray(np.vstack([line[:, :width] for line in lines]))


def draw(folders, share=0.15, seed=0):
    """Return the arrays of the file, and counts of faces and images."""
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it says much of small faults in files
    faces, images, left_out = render(folders)
    gaps = differences(images)
    kept = designs(gaps)
    left_out["face that is a copy of another"] = len(faces) - len(kept)
    faces, images, gaps = [faces[face] for face in kept], images[kept], gaps[np.ix_(kept, kept)]
    groups = groups_of(faces, gaps)
    arrays = split(faces, images, groups, share, seed)
    n_images = [np.bincount(arrays[f"y_{part}"], minlength=len(LETTERS)) for part in ("train", "test")]
    left_out["image that is equal to another"] = int(len(faces) * len(LETTERS) - np.sum(n_images))
    return arrays, {
        "faces": len(faces),
        "families": len({face.family.lower() for face in faces}),
        "groups of families": int(groups.max()) + 1,
        "faces of the largest groups": np.sort(np.bincount(groups))[:-6:-1].tolist(),
        "left out": dict(left_out),
        "train images of each letter": n_images[0].tolist(),
        "test images of each letter": n_images[1].tolist(),
    }


def system_folders():
    """Return the folders of the system's fonts that exist."""
    folders = [Path(folder).expanduser() for folder in SYSTEM_FOLDERS.get(platform.system(), ())]
    return [folder for folder in folders if folder.is_dir()]


def arguments():
    """Those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fonts", nargs="+", type=Path, help="folders of font files; those of the system by default")
    parser.add_argument("--test-share", type=float, default=0.15, help="share of the images for the test")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the order of the images")
    parser.add_argument("--output", type=Path, default=Path("letters.npz"))
    parser.add_argument("--sheet", type=Path, help="file for a picture of some images")
    args = parser.parse_args()
    if not 0 < args.test_share < 1:
        parser.error(f"--test-share is {args.test_share}; it must be between 0 and 1.")
    if args.fonts is None:
        args.fonts = system_folders()
    return args


def main():
    """Draw, split, write, and say what there is."""
    args = arguments()
    started = time.perf_counter()
    arrays, counts = draw(args.fonts, args.test_share, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.output, **arrays)
    if args.sheet is not None:
        contact_sheet(arrays).save(args.sheet)
    counts["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
