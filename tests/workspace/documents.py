"""Reads the Markdown files of the repository: code blocks, code spans, links, command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .members import ROOT

PATTERNS = (
    "*.md",
    "docs/**/*.md",
    "packages/*/*.md",
    "kernels/*.md",
    "examples/**/*.md",
    "benchmarks/**/*.md",
    ".github/**/*.md",
)
FENCE = re.compile(r"^( *)```(.*)$")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]\n]*\]\(([^()\s]+)\)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced or indented block.

    Attributes:
        info: What stands behind the fence, ``python run`` say; empty for an indented block.
        line: Line of its first line of code, from 1.
        text: The code.
    """

    info: str
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """One Markdown file.

    Attributes:
        path: The file.
        prose: Its text with every code block blanked.
        blocks: Its code blocks, in order.
    """

    path: Path
    prose: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def spans(self) -> list[str]:
        """Inline code."""
        return SPAN.findall(self.prose)

    @property
    def links(self) -> list[str]:
        return LINK.findall(SPAN.sub("", self.prose))

    @property
    def anchors(self) -> set[str]:
        """Names that a link can point at, as GitHub makes them of headings."""
        headings = re.findall(r"^#+ +(.+)$", self.prose, re.M)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def commands(self) -> Iterator[list[str]]:
        """Command lines in code blocks that are not Python, and in code spans, as lists of words."""
        lines = [
            line.strip()
            for block in self.blocks
            if not block.info.startswith("python")
            for line in block.text.replace("\\\n", " ").splitlines()
        ]
        for line in [*lines, *self.spans]:
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue
            if words:
                yield words


def parse(path: Path) -> Document:
    """Read one file."""
    prose: list[str] = []
    blocks: list[Block] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        indented = lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip())
        start = at + 1 if opened else at
        if opened:
            stop = next(i for i in range(start, len(lines)) if lines[i].strip() == "```")
        elif indented:
            stop = next((i for i in range(at, len(lines)) if lines[i].strip() and lines[i][:4].strip()), len(lines))
        else:
            prose.append(lines[at])
            at += 1
            continue
        cut = len(opened[1]) if opened else 4
        blocks.append(
            Block(
                info=opened[2].strip() if opened else "",
                line=start + 1,
                text="\n".join(line[cut:] for line in lines[start:stop]),
            )
        )
        prose += [""] * (stop - at)
        at = stop + 1 if opened else stop
    return Document(path=path, prose="\n".join(prose), blocks=tuple(blocks))


DOCUMENTS = [parse(path) for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
