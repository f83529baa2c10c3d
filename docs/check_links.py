"""Check the links of the built site: ``python docs/check_links.py docs/_build/html``.

Every link and image inside the site leads to a file, and every anchor to an element of its page. Scripts, styles, fonts
and images come from the site itself, so that it can be read without a network; links to other hosts are not followed.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("img", "src"), ("link", "href"), ("script", "src"), ("source", "src"), ("iframe", "src")}
NOT_LOADED = {"author", "canonical", "index", "next", "prev", "search"}  # relations of <link>


class Page(HTMLParser):
    """Anchors and targets of a page."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = {"", "top"}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        """Collect the attributes of an element."""
        attributes = dict(attributes)
        self.anchors.update(attributes[name] for name in ("id", "name") if attributes.get(name))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        for name in ("src", "href"):
            if (tag, name) in LOADED and attributes.get(name) and attributes.get("rel") not in NOT_LOADED:
                self.loaded.append(attributes[name])


def broken_links(folder):
    """Return the problems of all pages under a folder."""
    folder = Path(folder).resolve()
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}
    problems = [] if pages else [f"{folder} has no pages"]
    for path, page in pages.items():
        name = path.relative_to(folder)
        problems += [f"{name}: loads {target}" for target in page.loaded if urlsplit(target).netloc]
        for target in page.links + page.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not other.is_file():
                problems.append(f"{name}: {target} is not there")
            elif other in pages and unquote(parts.fragment) not in pages[other].anchors:
                problems.append(f"{name}: {target} has no such anchor")
    return problems


if __name__ == "__main__":
    found = broken_links(sys.argv[1])
    print("\n".join(found) or "All links lead somewhere.")
    sys.exit(bool(found))
