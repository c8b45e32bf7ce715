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
    folder = ROOT if page.file.src_uri == "index.md" else (ROOT / "docs" / page.file.src_uri).parent
    pages = {ROOT / "docs" / file.src_uri for file in files}

    def link(found):
        before, text, target = found.groups()
        path = (folder / target).resolve()
        if folder == ROOT and path in pages:
            return f"{before}[{text}]({path.relative_to(ROOT / 'docs')})"
        # Source files are not part of the site: name them instead.
        return f"`{target.lstrip('./')}`" if path.exists() and path not in pages else found[0]

    return re.sub(r"(!?)\[([^\]]*)\]\(([\w./-]+)\)", link, markdown)
