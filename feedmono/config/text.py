"""Where in a configuration file each key stands: pyhocon keeps no line numbers.

A scanner that follows pyhocon's grammar as far as keys, blocks and includes go, and no further:
it knows no values. Where the text leaves that grammar it stops and says so (`Scan.complete`);
pyhocon then tells what is wrong.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import NamedTuple

from feedmono.config.values import Mistake

_MAX_DEPTH = 50
_MAX_FILES = 32
_MAX_BYTES = 1024 * 1024

_STRING = r'"""[\s\S]*?"*"""|"(?:[^"\\\n]|\\.)*"'
_COMMENT = re.compile(r"(?:#|//)[^\n]*")
_BLANK = re.compile(r"\s+")
_BLANK_OR_COMMA = re.compile(r"[\s,]+")
_KEY = re.compile(_STRING + r'|[^"{}\[\],=:+#$\n]+')
_SEPARATOR = re.compile(r"\+=|[=:]")
# Unquoted text as pyhocon reads it: a colon or a slash within is text, so that
# `http://host` holds no comment.
_PIECE = re.compile(_STRING + r'|\\\r?\n|(?:[^\^`+?!@*&"\[{\s\]}#,=$\\]|\\.)+|[+-]\d[^\s,}\]#]*')
_EMPTY = re.compile(r'""(?=[ \t]*(?:[,\]\n#]|//))')
_REFERENCE = re.compile(r"\$\{[^}]+\}")
_INCLUDE = re.compile(
    r"include(?=[\s\"])[ \t]*(?:required[ \t]*\([ \t]*)?"
    r'(?:(?P<form>url|file|package)[ \t]*\([ \t]*)?"(?P<target>(?:[^"\\\n]|\\.)*)"[ \t)]*',
    re.IGNORECASE,
)


class Assignment(NamedTuple):
    """A key that is given a value, or that opens a block."""

    path: tuple[str, ...]
    """The parts of the key with those of the blocks around it; a quoted part keeps its dots."""
    line: int
    """From 1."""
    appends: bool
    """It is written ``+=``."""
    plain: bool
    """The value is text or a number: no block, no list, no reference."""


class Include(NamedTuple):
    path: tuple[str, ...]
    """The block that it stands in."""
    line: int
    form: str
    """``file``, ``url`` or ``package``."""
    target: str


class Empty(NamedTuple):
    """An empty element in a list, which pyhocon leaves out."""

    path: tuple[str, ...]
    """The list."""
    line: int


class Scan(NamedTuple):
    assignments: tuple[Assignment, ...]
    """In the order of the text, a block before what it holds."""
    includes: tuple[Include, ...]
    empties: tuple[Empty, ...]
    bare: str
    """The text for pyhocon, each line where it was: without its comments, which cost it more
    than all the rest, and with ``=`` for ``+=``, on which it fails. The text itself if it was
    not understood."""
    complete: bool
    """The whole text was understood."""


class _Lost(Exception):
    """The text is not what the scanner knows."""


def scan(text: str) -> Scan:
    """What stands where in *text*. Never raises."""
    scanner = _Scanner(text)
    try:
        scanner.read()
        bare, complete = scanner.bare(), True
    except _Lost:
        bare, complete = text, False
    return Scan(
        tuple(scanner.assignments),
        tuple(scanner.includes),
        tuple(scanner.empties),
        bare,
        complete,
    )


class _Scanner:
    def __init__(self, text: str) -> None:
        self.assignments: list[Assignment] = []
        self.includes: list[Include] = []
        self.empties: list[Empty] = []
        self._text = text
        self._at = 0
        self._cuts: list[tuple[int, int, str]] = []
        self._line = 1
        self._line_at = 0

    def read(self) -> None:
        self._skip(_BLANK_OR_COMMA)
        braces = self._peek() == "{"
        self._at += braces
        self._block((), closed=braces, depth=0)
        self._skip(_BLANK_OR_COMMA)
        if self._at < len(self._text):
            raise _Lost

    def bare(self) -> str:
        kept: list[str] = []
        at = 0
        for start, end, instead in self._cuts:
            kept += (self._text[at:start], instead)
            at = end
        # Without a newline pyhocon takes a number with a space behind it for text.
        return "".join(kept) + self._text[at:] + "\n"

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        if match:
            self._at = match.end()
        return match

    def _comment(self) -> bool:
        match = self._take(_COMMENT)
        if match:
            self._cuts.append((*match.span(), ""))
        return match is not None

    def _skip(self, blank: re.Pattern[str]) -> None:
        while self._take(blank) or self._comment():
            pass

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._line_at, self._at)
        self._line_at = self._at
        return self._line

    def _block(self, path: tuple[str, ...] | None, closed: bool, depth: int) -> None:
        """The keys of a block, up to its brace if it is *closed* by one. *path* is None within
        lists: their blocks' keys are nobody's."""
        if depth > _MAX_DEPTH:
            raise _Lost
        while True:
            self._skip(_BLANK_OR_COMMA)
            if self._peek() in ("", "}"):
                if closed != (self._peek() == "}"):
                    raise _Lost
                self._at += closed
                return
            if not self._include(path):
                self._assignment(path, depth)

    def _include(self, path: tuple[str, ...] | None) -> bool:
        line = self._line_here()
        match = self._take(_INCLUDE)
        if not match:
            return False
        target = match["target"]
        form = (match["form"] or "file").lower()
        if re.match(r"https?://|file://", target):
            form = "url"
        self.includes.append(Include(path or (), line, form, target))
        return True

    def _assignment(self, path: tuple[str, ...] | None, depth: int) -> None:
        line = self._line_here()
        key = self._take(_KEY)
        if not key:
            raise _Lost
        whole = None if path is None else path + key_parts(key[0])
        self._skip(_BLANK)
        separator, appends = self._take(_SEPARATOR), False
        if separator:
            appends = separator[0] == "+="
            if appends:
                self._cuts.append((*separator.span(), "="))
            self._skip(_BLANK)
        elif self._peek() != "{":
            raise _Lost
        index = len(self.assignments)
        if whole is not None:
            self.assignments.append(Assignment(whole, line, appends, False))
        plain = self._value(whole, depth)
        if whole is not None:
            self.assignments[index] = self.assignments[index]._replace(plain=plain)

    def _value(self, path: tuple[str, ...] | None, depth: int) -> bool:
        """The pieces of one value, up to the end of its line; whether it is plain."""
        plain = True
        while True:
            self._spaces()
            char = self._peek()
            if char in ("", "\n", "\r", ",", "}", "]"):
                return plain
            if char == "{":
                plain = False
                self._at += 1
                self._block(path, closed=True, depth=depth + 1)
            elif char == "[":
                plain = False
                self._at += 1
                self._list(path, depth + 1)
            elif self._include(path) or self._take(_REFERENCE):
                plain = False
            elif not (self._comment() or self._take(_PIECE)):
                raise _Lost

    def _spaces(self) -> None:
        while self._peek() in (" ", "\t"):
            self._at += 1

    def _list(self, path: tuple[str, ...] | None, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise _Lost
        filled = False
        while True:
            self._skip(_BLANK)
            if self._peek() == "]":
                self._at += 1
                return
            if self._peek() in ("", "}"):
                raise _Lost
            empty = self._take(_EMPTY) is not None or (self._peek() == "," and not filled)
            if empty and path is not None:
                self.empties.append(Empty(path, self._line_here()))
            if self._peek() == ",":
                self._at += 1
                filled = False
            else:
                self._value(None, depth)
                filled = True


def key_parts(text: str) -> tuple[str, ...]:
    """A key as it is written, in its parts: ``a.b`` has two, ``"a.b"`` one."""
    text = text.strip()
    if text.startswith('"'):
        return (text.strip('"'),)
    return tuple(part for part in text.split(".") if part)


class Part(NamedTuple):
    """A file that another one includes."""

    path: Path
    label: str
    text: str


class Source(NamedTuple):
    """A configuration file and those that it includes."""

    path: Path
    label: str
    """As the operator named it."""
    text: str
    """Without comments; empty if it can't be read."""
    parts: tuple[Part, ...]
    """Innermost first."""
    lines: dict[str, str]
    """Key → file and line of its last assignment."""
    mistakes: tuple[Mistake, ...]
    readable: bool
    """False: a mistake keeps the file, or one that it includes, from being read."""

    def where(self, name: str) -> str:
        """File and line of a key; the file alone where the line is not sure."""
        return self.lines.get(name, self.label)


def locate(path: Path, label: str) -> Source:
    """Reads the file at *path* and those that it includes, and finds where each key stands.
    *label* is the file's name in messages. What is wrong becomes a mistake; nothing is raised."""
    finder = _Finder()
    _, text = finder.read(path, label)
    return Source(
        path,
        label,
        text,
        tuple(finder.parts),
        finder.lines,
        tuple(finder.mistakes),
        finder.readable,
    )


class _Finder:
    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.lines: dict[str, str] = {}
        self.mistakes: list[Mistake] = []
        self.readable = True

    def read(
        self,
        path: Path,
        label: str,
        prefix: tuple[str, ...] = (),
        chain: tuple[Path, ...] = (),
    ) -> tuple[str, str]:
        """The text of a file, as it is and without comments."""
        text = self._text(path, label)
        found = scan(text)
        self._check(found, label)
        for key in found.assignments:
            whole = prefix + key.path
            for length in range(1, len(whole)):
                # `a.b = 1` opens the block `a` as well.
                self.lines.setdefault(".".join(whole[:length]), f"{label}:{key.line}")
            self.lines[".".join(whole)] = f"{label}:{key.line}"
        for include in found.includes:
            self._follow(include, path, label, prefix, (*chain, path))
        return text, found.bare

    def _fail(self, where: str, found: str, allowed: str) -> None:
        self.mistakes.append(Mistake(where, found, allowed))
        self.readable = False

    def _text(self, path: Path, where: str) -> str:
        allowed = f"a HOCON file in UTF-8 of at most {_MAX_BYTES} bytes"
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            text = content.decode("utf-8-sig")
        except OSError as error:
            self._fail(where, f"no file that can be read ({error.strerror})", allowed)
            return ""
        except UnicodeDecodeError as error:
            self._fail(where, f"a byte that is no UTF-8 at offset {error.start}", allowed)
            return ""
        if len(content) > _MAX_BYTES:
            self._fail(where, "a larger file", allowed)
            return ""
        return text

    def _check(self, found: Scan, label: str) -> None:
        """What pyhocon takes in silence and gets wrong."""
        for path, line in found.empties:
            where = f"{label}:{line}: {'.'.join(path)}"
            allowed = "an element between two commas"
            self.mistakes.append(Mistake(where, "an empty element", allowed))
        plain = {key.path: key.line for key in found.assignments if key.plain}
        for key in found.assignments:
            where = f"{label}:{key.line}: {'.'.join(key.path)}"
            if key.appends:
                self.mistakes.append(Mistake(where, "+=", "= with the whole value"))
            for length in range(1, len(key.path)):
                above = key.path[:length]
                if above in plain:
                    value = f"a name within {'.'.join(above)}, which has a value in line"
                    allowed = 'one of the two, or names in quotation marks: "a.b" = …'
                    self.mistakes.append(Mistake(where, f"{value} {plain[above]}", allowed))

    def _follow(
        self,
        include: Include,
        path: Path,
        label: str,
        prefix: tuple[str, ...],
        chain: tuple[Path, ...],
    ) -> None:
        where = f"{label}:{include.line}"
        if include.form != "file":
            self._fail(where, f"an include of a {include.form}", 'include "a file"')
            return
        # As pyhocon finds them: from the folder of the including file, patterns allowed.
        target = os.path.join(path.parent, include.target)
        names = sorted(glob.glob(target)) if re.search(r"[*?]", target) else [target]
        if not names:
            self._fail(where, f"an include of {include.target}, which matches nothing", "a file")
        for name in map(Path, names):
            shown = os.path.join(os.path.dirname(label), os.path.relpath(name, path.parent))
            if name in chain or len(self.parts) >= _MAX_FILES:
                allowed = f"up to {_MAX_FILES} files, none that includes itself"
                self._fail(where, f"an include of {include.target} in a circle", allowed)
                return
            if not name.is_file():
                allowed = f"a file, its path as from {path.parent}"
                self._fail(where, f"an include of {include.target}, which is not there", allowed)
                continue
            text, _ = self.read(name, shown, prefix + include.path, chain)
            self.parts.append(Part(name, shown, text))
