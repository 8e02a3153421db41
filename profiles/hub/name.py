"""`owner/name[@revision][:pick]`: how a model of the hub is called."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

CONFIG = "config.json"
_ADDRESS = re.compile(r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:models/)?", re.IGNORECASE)
_NAME = re.compile(
    r"(?P<owner>\w[\w.-]{0,95})/(?P<name>\w[\w.-]{0,95})"
    r"(?:@(?P<revision>[\w][\w./+-]{0,199}))?(?::(?P<pick>[^\s:][^:]{0,299}))?/?",
    re.ASCII,
)
_TREE = re.compile(r"/(?:tree|blob|resolve)/(?P<revision>[^/]+)(?:/(?P<pick>[^?#]*))?(?:[?#].*)?$")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A repository of the hub; `pick` is what is meant of it: a format such as Q4_K_M, or a file by its name or path.

    >>> HubName.parse("unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M")
    HubName(owner='unsloth', name='Qwen3-30B-A3B-GGUF', revision=None, pick='Q4_K_M')
    >>> str(HubName.parse("https://huggingface.co/Qwen/Qwen3-30B-A3B/tree/main"))
    'Qwen/Qwen3-30B-A3B@main'
    >>> HubName.parse("a/b/c"), HubName.parse("qwen3-30b-a3b")
    (None, None)
    """

    owner: str
    name: str
    revision: str | None = None
    pick: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The name that `text` is, as typed or as an address of the hub's pages; None where it can be none."""
        text, addressed = _ADDRESS.subn("", text.strip(), count=1)
        page = _TREE.search(text) if addressed else None
        found = _NAME.fullmatch(text[: page.start()] if page else text)
        if found is None or ".." in text:
            return None
        name = cls(**found.groupdict())
        return name if page is None else replace(name, revision=page["revision"], pick=page["pick"] or None)

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def at(self) -> str:
        """The revision asked for; a branch may move, a commit does not."""
        return self.revision or "main"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a whole commit, of which the contents never change."""
        return _COMMIT.fullmatch(self.at) is not None

    @property
    def reads_shapes(self) -> bool:
        """Whether only the config is meant: bytes are then those of a format, not of files."""
        return self.pick == CONFIG

    def of_config(self) -> HubName:
        return replace(self, pick=CONFIG)

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return self.repository + revision + ("" if self.pick is None else f":{self.pick}")


def is_commit(text: object) -> bool:
    """Whether `text` is a whole git commit, as the hub has them."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None
