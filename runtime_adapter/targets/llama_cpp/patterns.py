r"""The patterns of llama.cpp's -ot, searched for as its std::regex does, but in time that grows with the text only.

>>> Pattern(r"blk\.(1|2)\.ffn_.*_exps").found_among("blk.2.", ("ffn_up.weight", "ffn_up_exps.weight"))
('ffn_up_exps.weight',)
"""

from __future__ import annotations

from collections.abc import Container

from profiles.errors import TargetError
from runtime_adapter.targets.llama_cpp.regex import END, NONE, START, WILD, WRITTEN, Parser, Positions

MAX_WORK = 2_500_000
"""Steps from state to state over all names: less than a second. A pattern for each tensor of DeepSeek-R1 takes 2.2
million, and a few patterns for all layers 20 000."""
TOO_MUCH_WORK = "the patterns take too long to search for; write fewer or simpler ones"
_FOUND = -1


class Pattern:
    """A pattern that can be searched for in tensors' names. Raises TargetError, which says what is wrong, for others.

    A name comes in two pieces, "blk.7." and the rest ("" and the name for tensors of no layer): what came of either is
    remembered, since the names of a model share them. `work` counts the steps; a search beyond MAX_WORK of them raises
    TargetError too.
    """

    def __init__(self, text: str) -> None:
        parser = Parser(text)
        whole = parser.parse()
        self.text, self.work = text, 0
        self._items, self._follow = parser.items, [frozenset(places) for places in parser.follow]
        self._first, self._last, self._nullable = whole.first, whole.last, whole.nullable
        self._numbers: dict[Positions, int] = {NONE: 0}
        self._sets: list[Positions] = [NONE]
        self._after: list[dict[str, int]] = [{}]
        self._among: dict[tuple[int, tuple[str, ...]], tuple[str, ...]] = {}

    def found_among(self, layer: str, rests: tuple[str, ...]) -> tuple[str, ...]:
        """Those `rests` with which the pattern is found anywhere in the name, `layer` being in front of them."""
        self._count(len(layer))
        state = _FOUND if self._nullable else self._run(0, START + layer)
        key = (state, rests)
        if key not in self._among:
            self._count(sum(map(len, rests)))
            self._among[key] = tuple(rest for rest in rests if self._run(state, rest + END) == _FOUND)
        return self._among[key]

    def names_number(self, layer: str, rest: str) -> bool:
        r"""Whether the pattern, if it is found, takes the layer's number as a whole: all of its digits are written in
        the pattern, or none.

        >>> [Pattern(r"blk\.1.*exps").names_number(f"blk.{i}.", "ffn_up_exps.weight") for i in (1, 12)]
        [True, False]
        """
        number = layer.removeprefix("blk.").rstrip(".")
        start = len(START + "blk.")
        for kind in (WRITTEN, WILD):
            marked = "".join(chr(kind + ord(digit)) for digit in number)
            text = f"{START}blk.{marked}.{rest}{END}"
            closed = range(start + 1, start + len(number)) if kind == WRITTEN else range(0)
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
        follow = [self._first if may_begin else NONE, *(self._follow[place] for place in state)]
        self._count(sum(map(len, follow)))
        return frozenset(place for place in NONE.union(*follow) if self._items[place].takes(char))

    def _count(self, work: int) -> None:
        self.work += work
        if self.work > MAX_WORK:
            raise TargetError(TOO_MUCH_WORK)

    def _search(self, text: str, closed: Container[int]) -> bool:
        """Whether the pattern is found in `text`, beginning and ending before none of the places in `closed`."""
        state = NONE
        for place, char in enumerate(text):
            state = self._step(state, char, may_begin=place not in closed)
            if state & self._last and place + 1 not in closed:
                return True
        return False
