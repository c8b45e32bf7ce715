"""Hooks of the documentation site: its first page is the README; source files are not linked."""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent


def on_files(files, config):
    """Adds the README as the page `index.md`."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links as they work in the repository into links of the site."""
    folder = (ROOT / "docs" / page.file.src_uri).parent
    if page.file.src_uri == "index.md":
        markdown = markdown.replace("](docs/", "](")
        folder = ROOT
    pages = {file.src_uri for file in files}

    def link(found):
        target = found[2]
        source = target not in pages and (folder / target).exists()
        # Source files are not part of the site: name them instead.
        return f"`{target.lstrip('./')}`" if source else found[0]

    return re.sub(r"\[([^\[\]]*)\]\(([\w./-]+)\)", link, markdown)
