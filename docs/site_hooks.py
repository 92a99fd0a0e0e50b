"""What the site needs beyond docs/*.md: pages from the root, the notebooks, links that leave docs/.

On GitHub a page links to files anywhere in the repository. The site holds docs/ and the files of
`PAGES` alone, so other links go to `repo_url` of mkdocs.yml where there is one; else the path
stands in their place, as code. Links named after a page's file are named after its headline.
Pictures come along. A link to a missing file is a warning, which
ends `mkdocs build --strict`.
"""

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter
from notebooks import NOTEBOOKS, ROOT, differences, execute

PAGES = {  # by path in the repository: name of the page
    **{path: f"{Path(path).stem}.md" for path in NOTEBOOKS},
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "launch/README.md": "launch.md",
}
_SOURCES = {page: path for path, page in PAGES.items()}
_PICTURES = (".png", ".jpg", ".svg")
_FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of `PAGES` and the pictures outside docs/."""
    for path, page in PAGES.items():
        if path in NOTEBOOKS:
            text, pictures = _notebook_page(ROOT / path)
            files.append(File.generated(config, page, content=text))
            for name, data in pictures.items():
                files.append(File.generated(config, name, content=data))
        else:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for file in list(files.documentation_pages()):
        for _, _, target, _ in _LINK.findall(file.content_string):
            path = _in_repository(file.src_uri, target)
            outside = path.endswith(_PICTURES) and not path.startswith("docs/")
            if outside and (ROOT / path).is_file():
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrites the links of a page, outside its code blocks."""
    here = page.file.src_uri

    def rewritten(match: re.Match[str]) -> str:
        mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if ":" in target:  # an address
            return match[0]
        path = _in_repository(here, target)
        if path in PAGES or files.get_file_from_path(path):
            inside = PAGES.get(path, path)
        elif path.startswith("docs/"):
            inside = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            if config.repo_url:
                return f"{mark}[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
            code = f"`{path}`"
            return code if text.strip("`") in path else f"{text} ({code})"
        else:
            _log.warning("%s links to %s, which does not exist", here, path)
            return match[0]
        if text.strip("`").endswith(posixpath.basename(target)):  # a file name: here the title
            text = _title(files.get_file_from_path(inside)) or text
        link = posixpath.relpath(inside, posixpath.dirname(here) or ".")
        return f"{mark}[{text}]({link}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(rewritten, part) for part in parts)


def _title(file: File | None) -> str:
    """The headline of a page, "" where it has none."""
    if file is None or not file.is_documentation_page():
        return ""
    found = re.search(r"^# (.+)$", file.content_string, re.MULTILINE)
    return found[1].replace("`", "") if found else ""


def _in_repository(page: str, target: str) -> str:
    """The path in the repository that a relative link of a page means."""
    source = _SOURCES.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name: with the outputs that are committed.

    If EXECUTE_NOTEBOOK is true it is executed first, and must have the same outputs, see
    `notebooks.differences`.
    """
    notebook = nbformat.read(path, as_version=4)
    if os.environ.get("EXECUTE_NOTEBOOK") == "true":
        _log.info("executing %s", path.name)
        try:
            different = differences(notebook, execute(path))
        except CellExecutionError as error:
            raise PluginError(f"{path.name}: {error}") from error
        if different:
            lines = "\n".join(different)
            raise PluginError(f"{path.name}: outputs changed; run docs/notebooks.py\n{lines}")
    wanted = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources=wanted)
    return text, resources["outputs"]
