"""Files beside a config.json in which methods of quantisation say what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiles.document import read_document, require_mapping
from profiles.errors import ProfileError
from profiles.formats.settings import Beside


def beside_in(folder: Path) -> Beside:
    """Reads such files of `folder`, when they are asked for. ProfileError naming the file where one cannot be read."""

    def read(name: str) -> dict[str, Any] | None:
        path = folder / name
        if not path.exists():
            return None
        return require_mapping(read_document(path), str(path), ProfileError)

    return read
