r"""The patterns of llama.cpp's -ot, searched for as its std::regex does, but in time that grows with the text only.

std::regex (ECMAScript) backtracks, and its engines differ at the edges. So this reads a subset on which all agree,
Python's `re` included, and refuses the rest:

- characters of printable ASCII; `.`; `\d` `\w` `\D` `\W`; `\` before any punctuation mark
- `[...]` and `[^...]` with characters, ranges, `\d` and `\w`, but without a `[` inside
- `(...)`, `(?:...)` and `|`, an empty alternative too
- `*` `+` `?` `{n}`, also lazy, each after one character or a group. A group that repeats or has alternatives inside may
  be optional but not repeated, and at most MAX_REPEATS stand in a row: more may take std::regex forever
- `^` and `$`, each at the edge of an alternative

Not in it: `(?=` `(?!` `(?<`, back references, `\b` `\s` and other letters after `\`, `[:alpha:]`, counts with a comma
(which -ot splits at). A pattern becomes Glushkov's automaton: one state for each character that it names.

>>> Pattern(r"blk\.(1|2)\.ffn_.*_exps").found_among("blk.2.", ("ffn_up.weight", "ffn_up_exps.weight"))
('ffn_up_exps.weight',)
"""

from __future__ import annotations

import string
from collections.abc import Container
from dataclasses import dataclass, field

from profiles.errors import TargetError

MAX_PATTERN = 1000
"""Characters of a pattern, and states of its automaton: the longest honest one lists a hundred layers in 300."""
MAX_REPEATS = 6
MAX_DEPTH = 20
MAX_WAYS = 20_000
"""Pairs of states that follow each other: an honest pattern has hardly more than states."""
MAX_WORK = 2_500_000
"""Steps from state to state over all names: less than a second. A pattern for each tensor of DeepSeek-R1 takes 2.2
million, and a few patterns for all layers 20 000."""
TOO_MUCH_WORK = "the patterns take too long to search for; write fewer or simpler ones"
_START, _END = "\x02", "\x03"
"""What `^` and `$` stand for: no name has them."""
_DIGITS = frozenset(string.digits)
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_LETTERS = {"d": (_DIGITS, False), "D": (_DIGITS, True), "w": (_WORD, False), "W": (_WORD, True)}
_WRITTEN, _WILD = 0xE000, 0xE100
"""Digits that only a digit in the pattern takes, and such that only something wider takes (`.`, `[^.]`, `\\w`)."""

Positions = frozenset[int]
_NONE: Positions = frozenset()
_FOUND = -1


@dataclass(frozen=True)
class _Item:
    """What one state takes: one of `chars`, or anything else."""

    chars: frozenset[str]
    negated: bool = False

    def takes(self, char: str) -> bool:
        if ord(char) >= _WRITTEN:
            only_digits = not self.negated and self.chars <= _DIGITS
            wanted = ord(char) < _WILD
            return only_digits == wanted and self.takes(chr(ord(char) % 0x100))
        return (char in self.chars) != self.negated and (not self.negated or char not in (_START, _END))


@dataclass(frozen=True)
class _Part:
    """A piece of the pattern: whether it can be empty, its first and last states, how many repeats stand in a row, and
    whether it can be read in more than one way."""

    nullable: bool = True
    first: Positions = _NONE
    last: Positions = _NONE
    repeats: int = 0
    varied: bool = False

    def either(self, other: _Part) -> _Part:
        return _Part(
            self.nullable or other.nullable,
            self.first | other.first,
            self.last | other.last,
            max(self.repeats, other.repeats),
            True,
        )


@dataclass
class _Parser:
    """Recursive descent over the pattern; the automaton grows in `items` and `follow`."""

    text: str
    at: int = 0
    depth: int = 0
    ways: int = 0
    items: list[_Item] = field(default_factory=list)
    follow: list[set[int]] = field(default_factory=list)

    def parse(self) -> _Part:
        if len(self.text) > MAX_PATTERN:
            raise TargetError(f"is {len(self.text)} characters long, more than {MAX_PATTERN}; shorten it")
        odd = next((c for c in self.text if not " " <= c <= "~"), None)
        if odd is not None:
            raise TargetError(f"has the character {odd!r}, which no tensor's name has; take it out")
        whole = self._alternatives()
        if self.at < len(self.text):
            raise TargetError(f"has a `{self.text[self.at]}` too much at character {self.at + 1}; take it out")
        for place, item in enumerate(self.items):
            if item.chars <= {_START, _END} and item.chars and any(self.items[n] == item for n in self.follow[place]):
                raise TargetError("has the same anchor twice in a row; keep one")
        return whole

    def _alternatives(self) -> _Part:
        found = self._sequence()
        while self._next() == "|":
            self.at += 1
            found = found.either(self._sequence())
        return found

    def _sequence(self) -> _Part:
        found = _Part()
        while self._next() not in ("", "|", ")"):
            found = self._joined(found, self._repeated())
        if found.repeats > MAX_REPEATS:
            raise TargetError(
                f"repeats more than {MAX_REPEATS} times in a row, which may take std::regex forever; shorten it"
            )
        return found

    def _joined(self, before: _Part, after: _Part) -> _Part:
        self._link(before.last, after.first)
        return _Part(
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

    def _repeated(self) -> _Part:
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
        return _Part(part.nullable or sign in ("*", "?"), part.first, part.last, part.repeats + 1, True)

    def _times(self, start: int, part: _Part) -> _Part:
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

    def _atom(self) -> _Part:
        char = self.text[self.at]
        self.at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return self._item(self._class())
        if char == "\\":
            return self._item(self._escaped())
        if char == ".":
            return self._item(_Item(frozenset(), negated=True))
        if char in "^$":
            return self._anchor(char)
        if char in "*+?{}]":
            raise TargetError(f"has a `{char}` with nothing before it; write \\{char} for the character")
        return self._item(_Item(frozenset(char)))

    def _group(self) -> _Part:
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

    def _anchor(self, char: str) -> _Part:
        before, after = self.text[: self.at - 1], self._next()
        at_edge = not before or before.endswith(("(", "(?:", "|")) if char == "^" else after in ("", ")", "|")
        if not at_edge:
            raise TargetError(f"has a `{char}` in the middle; write \\{char} for the character")
        return self._item(_Item(frozenset(_START if char == "^" else _END)))

    def _escaped(self) -> _Item:
        char = self._next()
        self.at += 1
        if char in _LETTERS and char:
            return _Item(*_LETTERS[char])
        if not char or char.isalnum():
            raise TargetError(f"has a `\\{char}`, which is outside of what is read here; write the characters out")
        return _Item(frozenset(char))

    def _class(self) -> _Item:
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
        return _Item(frozenset(chars), negated)

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

    def _item(self, item: _Item) -> _Part:
        if len(self.items) >= MAX_PATTERN:
            raise TargetError(f"is longer than {MAX_PATTERN} characters once its counts are written out; shorten it")
        here = frozenset([len(self.items)])
        self.items.append(item)
        self.follow.append(set())
        return _Part(nullable=False, first=here, last=here)

    def _next(self) -> str:
        return self.text[self.at : self.at + 1]


class Pattern:
    """A pattern that can be searched for in tensors' names. Raises TargetError, which says what is wrong, for others.

    A name comes in two pieces, "blk.7." and the rest ("" and the name for tensors of no layer): what came of either is
    remembered, since the names of a model share them. `work` counts the steps; a search beyond MAX_WORK of them raises
    TargetError too.
    """

    def __init__(self, text: str) -> None:
        parser = _Parser(text)
        whole = parser.parse()
        self.text, self.work = text, 0
        self._items, self._follow = parser.items, [frozenset(places) for places in parser.follow]
        self._first, self._last, self._nullable = whole.first, whole.last, whole.nullable
        self._numbers: dict[Positions, int] = {_NONE: 0}
        self._sets: list[Positions] = [_NONE]
        self._after: list[dict[str, int]] = [{}]
        self._among: dict[tuple[int, tuple[str, ...]], tuple[str, ...]] = {}

    def found_among(self, layer: str, rests: tuple[str, ...]) -> tuple[str, ...]:
        """Those `rests` with which the pattern is found anywhere in the name, `layer` being in front of them."""
        self._count(len(layer))
        state = _FOUND if self._nullable else self._run(0, _START + layer)
        key = (state, rests)
        if key not in self._among:
            self._count(sum(map(len, rests)))
            self._among[key] = tuple(rest for rest in rests if self._run(state, rest + _END) == _FOUND)
        return self._among[key]

    def names_number(self, layer: str, rest: str) -> bool:
        r"""Whether the pattern, if it is found, takes the layer's number as a whole: all of its digits are written in
        the pattern, or none.

        >>> [Pattern(r"blk\.1.*exps").names_number(f"blk.{i}.", "ffn_up_exps.weight") for i in (1, 12)]
        [True, False]
        """
        number = layer.removeprefix("blk.").rstrip(".")
        start = len(_START + "blk.")
        for kind in (_WRITTEN, _WILD):
            marked = "".join(chr(kind + ord(digit)) for digit in number)
            text = f"{_START}blk.{marked}.{rest}{_END}"
            closed = range(start + 1, start + len(number)) if kind == _WRITTEN else range(0)
            if self._search(text, closed):
                return True
        return self._nullable

    def _run(self, state: int, text: str) -> int:
        """The state after `text` when it begins in `state`; _FOUND as soon as the pattern is found."""
        for char in text:
            if state == _FOUND:
                break
            known = self._after[state]
            state = known[char] if char in known else self._learn(state, char)
        return state

    def _learn(self, state: int, char: str) -> int:
        """The number of the state after one more character."""
        reached = self._step(self._sets[state], char)
        if reached & self._last:
            number = _FOUND
        elif reached in self._numbers:
            number = self._numbers[reached]
        else:
            number = self._numbers[reached] = len(self._sets)
            self._sets.append(reached)
            self._after.append({})
        self._after[state][char] = number
        return number

    def _step(self, state: Positions, char: str, may_begin: bool = True) -> Positions:
        """The states after one more character; a match may begin with it if it may."""
        follow = [self._first if may_begin else _NONE, *(self._follow[place] for place in state)]
        self._count(sum(map(len, follow)))
        return frozenset(place for place in _NONE.union(*follow) if self._items[place].takes(char))

    def _count(self, work: int) -> None:
        self.work += work
        if self.work > MAX_WORK:
            raise TargetError(TOO_MUCH_WORK)

    def _search(self, text: str, closed: Container[int]) -> bool:
        """Whether the pattern is found in `text`, beginning and ending before none of the places in `closed`."""
        state = _NONE
        for place, char in enumerate(text):
            state = self._step(state, char, may_begin=place not in closed)
            if state & self._last and place + 1 not in closed:
                return True
        return False
