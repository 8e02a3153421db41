"""How parts are called: names of one part in many spellings have a key in common.

Drivers, lspci and lscpu wrap a name in words that say nothing (`Graphics`, `16-Core Processor`, `@ 2.40GHz`), people
leave the family out (`4090`, `9654`). What tells parts apart is never dropped: `Ti`, `Laptop`, `Max-Q`, `D`, `X`.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["GPU", "CPU"]

_NOISE = re.compile(
    r"\(r\)|\(tm\)|®|™"
    r"|^.{0,40}\bcontroller(?: \[[0-9a-f]{4}\])?:"  # lspci: the address and what it is
    r"|^(?:[0-9a-f]{2,4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]\s"
    r"|\(rev [0-9a-f]+\)"
    r"|@ *[0-9.]+ ?ghz"
    r"|\b[0-9]+-cores?\b|\bprocessors?\b|\bcpus?\b|\bcores?$"
    r"|\b[0-9]{1,2}(?:st|nd|rd|th) gen\b"
    r"|\bw/ radeon.*$|\bwith radeon graphics\b"
    r"|\bcorporation\b|\binc\.",
    re.IGNORECASE,
)
_PRODUCTS = re.compile(
    r"\b(?:mac ?(?:studio|mini|pro)|macbook(?: (?:pro|air))?|imac(?: pro)?)\b|\b[0-9]{2}(?:\"|''|”|[ -]inch\b)",
    re.IGNORECASE,
)

_FAMILIES: dict[Kind, dict[str, str]] = {
    "GPU": {
        "nvidia": "NVIDIA", "geforce": "NVIDIA", "rtx": "NVIDIA", "gtx": "NVIDIA", "tesla": "NVIDIA",
        "amd": "AMD", "ati": "AMD", "radeon": "AMD", "rx": "AMD", "instinct": "AMD",
        "intel": "Intel", "arc": "Intel", "apple": "Apple", "huawei": "Huawei", "ascend": "Huawei",
    },
    "CPU": {
        "amd": "AMD", "epyc": "AMD", "ryzen": "AMD", "threadripper": "AMD", "turin": "AMD", "genoa": "AMD",
        "bergamo": "AMD", "milan": "AMD", "rome": "AMD",
        "intel": "Intel", "xeon": "Intel", "platinum": "Intel", "gold": "Intel", "silver": "Intel", "core": "Intel",
        "ultra": "Intel", "w5": "Intel", "w7": "Intel", "w9": "Intel", "i3": "Intel", "i5": "Intel", "i7": "Intel",
        "i9": "Intel", "e5": "Intel", "apple": "Apple", "nvidia": "NVIDIA", "ampere": "Ampere", "huawei": "Huawei",
        "pro": "", "3": "", "5": "", "6": "", "7": "", "9": "",
    },
}  # fmt: skip
"""Words before a name that may be left out, and whose parts they are; Ryzen 9 and Xeon 6 are families, too."""

_TAILS = {
    "graphics", "card", "cards", "gpu", "gpus", "edition", "founders", "fe", "generation", "gen", "oam", "accelerator",
    "hbm3", "vram", "series",
}  # fmt: skip
"""Words after a name that say nothing."""

_GLUED: dict[Kind, re.Pattern[str]] = {
    "GPU": re.compile(r"(?:rtx|gtx|rx|tesla|arc|radeon|instinct|ascend)(?=.*[0-9])"),
    "CPU": re.compile(r"(?:epyc|ryzen|threadripper|xeon|core|e5|i[3579])(?=.*[0-9])"),
}


def plain(name: str) -> str:
    """A part's name without case, vendor, dashes or spaces: how names are compared.

    >>> plain("NVIDIA GeForce RTX 4090"), plain("rtx-4090")
    ('rtx4090', 'rtx4090')
    """
    return re.sub(r"nvidia|geforce|amd|intel|[^a-z0-9]", "", name.lower())


def tidy(name: str) -> str:
    """`name` without what drivers and listings wrap it in.

    >>> tidy("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz")
    'Intel Xeon E5-2680 v4'
    """
    name = _PRODUCTS.sub(" ", _NOISE.sub(" ", name))
    return " ".join(re.sub(r"[()]", " ", name).split())


def keys(name: str, kind: Kind) -> tuple[str, ...]:
    """What `name` is found under, the most literal first.

    >>> keys("AMD Ryzen 9 7950X 16-Core Processor", "CPU")
    ('ryzen97950x16coreprocessor', 'ryzen97950x', '7950x')
    """
    bare = tidy(name)
    found = [plain(name), plain(bare), _without_family(bare, kind)]
    return tuple(dict.fromkeys(key for key in found if key))


def singular(name: str) -> str | None:
    """`3090` of `3090s`; None where there is no plural to undo."""
    found = re.fullmatch(r"(.*[0-9A-Za-z])(?:'?s)", name.strip(), re.IGNORECASE)
    return found[1] if found else None


def maker_said(name: str, kind: Kind) -> str | None:
    """Whose part the words before a name say it is: `AMD` of `Radeon RX 7900 XTX`; None where they say nothing."""
    families = _FAMILIES[kind]
    words = re.findall(r"[a-z]+[0-9]*|[0-9]+", tidy(name).lower())
    said = (families.get(word) or families.get(word.rstrip("0123456789")) for word in words)
    return next((maker for maker in said if maker), None)


def looks_like_cpu(name: str) -> bool:
    """Whether words in it are those of CPUs only."""
    words = re.findall(r"[a-z]+", name.lower())
    return bool({"epyc", "ryzen", "threadripper", "xeon", "core", "processor", "cpu"}.intersection(words))


def _without_family(name: str, kind: Kind) -> str:
    families = _FAMILIES[kind]
    words = re.findall(r"[a-z0-9]+", name.lower())
    while len(words) > 1 and words[0] in families:
        del words[0]
    while len(words) > 1 and words[-1] in _TAILS:
        del words[-1]
    if not words or words[0] in _TAILS:
        return ""
    words[0] = _GLUED[kind].sub("", words[0], count=1)
    while len(words) > 1 and words[0] in families:
        del words[0]
    return "".join(words)
