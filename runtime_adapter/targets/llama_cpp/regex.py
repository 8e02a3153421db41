r"""The regular expressions that llama.cpp's -ot is read in: a safe subset of std::regex's, as an automaton.

std::regex (ECMAScript) backtracks, and its engines differ at the edges. So this reads a subset on which all agree,
Python's `re` included, and refuses the rest:

- characters of printable ASCII; `.`; `\d` `\w` `\D` `\W`; `\` before any punctuation mark
- `[...]` and `[^...]` with characters, ranges, `\d` and `\w`, but without a `[` inside
- `(...)`, `(?:...)` and `|`, an empty alternative too
- `*` `+` `?` `{n}`, also lazy, each after one character or a group. A group that repeats or has alternatives inside may
  be optional but not repeated, and at most MAX_REPEATS stand in a row: more may take std::regex forever
- `^` and `$`, each at the edge of an alternative

Not in it: `(?=` `(?!` `(?<`, back references, `\b` `\s` and other letters after `\`, `[:alpha:]`, counts with a comma
(which -ot splits at). The automaton is Glushkov's: one state for each character that the pattern names.

>>> parser = Parser("a|b")
>>> sorted(parser.parse().first)
[0, 1]
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field

from profiles.errors import TargetError

MAX_PATTERN = 1000
"""Characters of a pattern, and states of its automaton: the longest honest one lists a hundred layers in 300."""
MAX_REPEATS = 6
MAX_DEPTH = 20
MAX_WAYS = 20_000
"""Pairs of states that follow each other: an honest pattern has hardly more than states."""
START, END = "\x02", "\x03"
"""What `^` and `$` stand for: no name has them."""
WRITTEN, WILD = 0xE000, 0xE100
"""Added to a digit: one that only a digit in the pattern takes, or that only something wider takes (`.`, `[^.]`)."""
_DIGITS = frozenset(string.digits)
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_LETTERS = {"d": (_DIGITS, False), "D": (_DIGITS, True), "w": (_WORD, False), "W": (_WORD, True)}

Positions = frozenset[int]
NONE: Positions = frozenset()


@dataclass(frozen=True)
class Item:
    """What one state takes: one of `chars`, or anything else."""

    chars: frozenset[str]
    negated: bool = False

    def takes(self, char: str) -> bool:
        if ord(char) >= WRITTEN:
            only_digits = not self.negated and self.chars <= _DIGITS
            wanted = ord(char) < WILD
            return only_digits == wanted and self.takes(chr(ord(char) % 0x100))
        return (char in self.chars) != self.negated and (not self.negated or char not in (START, END))


@dataclass(frozen=True)
class Part:
    """A piece of the pattern: whether it can be empty, its first and last states, how many repeats stand in a row, and
    whether it can be read in more than one way."""

    nullable: bool = True
    first: Positions = NONE
    last: Positions = NONE
    repeats: int = 0
    varied: bool = False

    def either(self, other: Part) -> Part:
        return Part(
            self.nullable or other.nullable,
            self.first | other.first,
            self.last | other.last,
            max(self.repeats, other.repeats),
            True,
        )


@dataclass
class Parser:
    """Recursive descent over the pattern; the automaton grows in `items` and `follow`."""

    text: str
    at: int = 0
    depth: int = 0
    ways: int = 0
    items: list[Item] = field(default_factory=list)
    follow: list[set[int]] = field(default_factory=list)

    def parse(self) -> Part:
        if len(self.text) > MAX_PATTERN:
            raise TargetError(f"is {len(self.text)} characters long, more than {MAX_PATTERN}; shorten it")
        odd = next((c for c in self.text if not " " <= c <= "~"), None)
        if odd is not None:
            raise TargetError(f"has the character {odd!r}, which no tensor's name has; take it out")
        whole = self._alternatives()
        if self.at < len(self.text):
            raise TargetError(f"has a `{self.text[self.at]}` too much at character {self.at + 1}; take it out")
        for place, item in enumerate(self.items):
            if item.chars <= {START, END} and item.chars and any(self.items[n] == item for n in self.follow[place]):
                raise TargetError("has the same anchor twice in a row; keep one")
        return whole

    def _alternatives(self) -> Part:
        found = self._sequence()
        while self._next() == "|":
            self.at += 1
            found = found.either(self._sequence())
        return found

    def _sequence(self) -> Part:
        found = Part()
        while self._next() not in ("", "|", ")"):
            found = self._joined(found, self._repeated())
        if found.repeats > MAX_REPEATS:
            raise TargetError(
                f"repeats more than {MAX_REPEATS} times in a row, which may take std::regex forever; shorten it"
            )
        return found

    def _joined(self, before: Part, after: Part) -> Part:
        self._link(before.last, after.first)
        return Part(
            before.nullable and after.nullable,
            before.first | after.first if before.nullable else before.first,
            before.last | after.last if after.nullable else after.last,
            before.repeats + after.repeats,
            before.varied or after.varied,
        )

    def _link(self, last: Positions, first: Positions) -> None:
        self.ways += len(last) * len(first)
        if self.ways > MAX_WAYS:
            raise TargetError("has too many ways through it; shorten it")
        for place in last:
            self.follow[place] |= first

    def _repeated(self) -> Part:
        start = self.at
        part = self._atom()
        sign = self._next()
        if sign not in ("*", "+", "?", "{"):
            return part
        if self.text[start] in "^$":
            raise TargetError(f"repeats `{self.text[start]}`; take the `{sign}` out")
        if sign != "?" and part.varied:
            inside = "repeats a group that repeats or has alternatives inside"
            raise TargetError(f"{inside}, which may take std::regex forever; write it out")
        if sign == "{":
            part = self._times(start, part)
        else:
            self.at += 1
        if sign in ("*", "+"):
            self._link(part.last, part.first)
        if self._next() == "?":  # lazy: which match is found does not matter here
            self.at += 1
        if self._next() in ("*", "+", "?", "{"):
            raise TargetError("repeats a repeat; keep one of the two")
        return Part(part.nullable or sign in ("*", "?"), part.first, part.last, part.repeats + 1, True)

    def _times(self, start: int, part: Part) -> Part:
        """The atom that begins at `start`, and was read once, as often as `{n}` says."""
        number, closed, _ = self.text[self.at + 1 :].partition("}")
        if not closed or len(number) > 2 or not number.isdecimal() or number.startswith("0"):
            raise TargetError("has a `{` that begins no count from {1} to {99}; write \\{ for the character")
        end = self.at + len(number) + 2
        for _ in range(int(number) - 1):
            self.at = start
            part = self._joined(part, self._atom())
        self.at = end
        return part

    def _atom(self) -> Part:
        char = self.text[self.at]
        self.at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return self._item(self._class())
        if char == "\\":
            return self._item(self._escaped())
        if char == ".":
            return self._item(Item(frozenset(), negated=True))
        if char in "^$":
            return self._anchor(char)
        if char in "*+?{}]":
            raise TargetError(f"has a `{char}` with nothing before it; write \\{char} for the character")
        return self._item(Item(frozenset(char)))

    def _group(self) -> Part:
        if self.text.startswith("?", self.at):
            if not self.text.startswith("?:", self.at):
                kind = self.text[self.at - 1 : self.at + 2]
                raise TargetError(f"has a `{kind}`, which is outside of what is read here; write ( or (?:")
            self.at += 2
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TargetError(f"has more than {MAX_DEPTH} groups inside each other; take some out")
        found = self._alternatives()
        if self._next() != ")":
            raise TargetError("has a ( that nothing closes; add the )")
        self.at += 1
        self.depth -= 1
        return found

    def _anchor(self, char: str) -> Part:
        before, after = self.text[: self.at - 1], self._next()
        at_edge = not before or before.endswith(("(", "(?:", "|")) if char == "^" else after in ("", ")", "|")
        if not at_edge:
            raise TargetError(f"has a `{char}` in the middle; write \\{char} for the character")
        return self._item(Item(frozenset(START if char == "^" else END)))

    def _escaped(self) -> Item:
        char = self._next()
        self.at += 1
        if char in _LETTERS and char:
            return Item(*_LETTERS[char])
        if not char or char.isalnum():
            raise TargetError(f"has a `\\{char}`, which is outside of what is read here; write the characters out")
        return Item(frozenset(char))

    def _class(self) -> Item:
        negated = self._next() == "^"
        self.at += negated
        chars: set[str] = set()
        while self._next() not in ("", "]"):
            low = self._in_class()
            if self._next() == "-" and self.text[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 1
                high = self._in_class()
                if len(low) > 1 or len(high) > 1 or min(low) > min(high):
                    raise TargetError("has a range in [...] that does not go from one character up to another; mend it")
                chars |= {chr(code) for code in range(ord(min(low)), ord(min(high)) + 1)}
            else:
                chars |= low
        if self._next() != "]" or not chars:
            raise TargetError("has a [ that nothing closes, or nothing in it; mend it")
        self.at += 1
        return Item(frozenset(chars), negated)

    def _in_class(self) -> frozenset[str]:
        char = self._next()
        self.at += 1
        if char == "\\":
            item = self._escaped()
            if item.negated:
                raise TargetError("has a \\D or \\W in [...]; write the characters out")
            return item.chars
        if char == "[":
            raise TargetError("has a [ in [...]; write \\[ for the character")
        return frozenset(char)

    def _item(self, item: Item) -> Part:
        if len(self.items) >= MAX_PATTERN:
            raise TargetError(f"is longer than {MAX_PATTERN} characters once its counts are written out; shorten it")
        here = frozenset([len(self.items)])
        self.items.append(item)
        self.follow.append(set())
        return Part(nullable=False, first=here, last=here)

    def _next(self) -> str:
        return self.text[self.at : self.at + 1]
