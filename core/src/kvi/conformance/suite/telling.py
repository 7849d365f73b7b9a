"""How a program of `kvi.conformance.suite.machine` is told: as Python, ready to be pasted."""

from __future__ import annotations

NAMESPACE = "a"
OPEN = "kvi.open(URI)"
VIEWS = {"c": "a", "d": "b"}  # which view is through which handle


class Line:
    """A call of a program."""

    def __init__(self, text: str, name: str = "") -> None:
        self.text = text
        self.name = name  # of the variable for its result
        self.part = ""  # of the result, if the variable is to hold only that
        self.result = ""

    def __str__(self) -> str:
        named = f"{self.name} = {self.text}{self.part}" if self.name else self.text
        return f"{named}  # {self.result}" if self.result else named


class Program:
    """The calls so far, as Python."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.handles: set[str] = set()  # that were used
        self.leases: dict[int, str] = {}  # how to say the id of a lease
        self._revisions: dict[int, Line] = {}  # the lines that told revisions of the store
        self._named = 0

    def add(self, handle: str, text: str, name: str = "") -> Line:
        """Write down a call through a handle."""
        self.handles |= {handle, VIEWS.get(handle, handle)}
        line = Line(text, name)
        self.lines.append(line)
        return line

    def told(self, line: Line, revision: object, part: str = "") -> None:
        """The result of a line, or a part of it, is this revision."""
        if type(revision) is int and revision not in self._revisions:
            self._revisions[revision] = line
            line.part = part

    def revision(self, theirs: int) -> str:
        """How to say a revision: as what an earlier line told, if one did."""
        line = self._revisions.get(theirs)
        if line is None:
            return str(theirs)
        if not line.name:
            self._named += 1
            line.name = f"r{self._named}"
        return line.name

    def __str__(self) -> str:
        handles = (
            f"{name} = " + (f"{VIEWS[name]}.namespace({NAMESPACE!r})" if name in VIEWS else OPEN)
            for name in sorted(self.handles)
        )
        return "\n".join([*handles, *map(str, self.lines)])
