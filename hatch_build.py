"""The README as a package index shows it: it has no files of the repository beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!https?://|#)(?P<target>[^)]*)\)")


def for_index(readme: str, repository: str | None) -> str:
    """Links into the repository as links to `repository` (its address, such as https://host/owner/name).

    Without an address the words stay and the links go, pictures with them.
    """

    def replaced(link: re.Match[str]) -> str:
        picture, text, target = link["picture"], link["text"], "".join(link["target"].split())
        if repository is None:
            return "" if picture else text
        return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/main/{target})"

    return _LINK.sub(replaced, readme)


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, repository)}
