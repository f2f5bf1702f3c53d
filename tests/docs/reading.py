"""The snippets of README and docs: Python blocks, shell commands, and commands that stand in a line."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "playground" / "README.md",
]
SHELL = ("", "bash", "sh", "shell", "console")
NO_CODE = ("mermaid", "bibtex", "json", "yaml", "text")
STARTS = ("reverse", "python", "bash", "torchrun", "make", "pip", "accelerate", "source", "apt-get")


@dataclass(frozen=True)
class Snippet:
    document: str  # relative to the root
    line: int  # of its first line
    text: str

    def __str__(self):
        return f"{self.document}:{self.line}"


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks_of(path):
    """(language, Snippet) of each block; an indented one has the language "indented"."""
    lines = path.read_text(encoding="utf-8").split("\n")
    found, k = [], 0
    while k < len(lines):
        fence = re.match(r"^( *)```(\w*)", lines[k])
        if fence:
            end = next(i for i in range(k + 1, len(lines)) if lines[i].strip().startswith("```"))
            indent = len(fence[1])
            text = "\n".join(line[indent:] for line in lines[k + 1 : end])
            found.append((fence[2], Snippet(name_of(path), k + 2, text)))
            k = end + 1
        elif lines[k].startswith("    ") and (k == 0 or not lines[k - 1].strip()):
            end = k
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(line[4:] for line in lines[k:end]).rstrip()
            found.append(("indented", Snippet(name_of(path), k + 1, text)))
            k = end
        else:
            k += 1
    return found


def python_of(path):
    """The Python blocks of a document, in order."""
    return [snippet for language, snippet in blocks_of(path) if language == "python"]


def shell_of(path):
    """The commands of a document's shell blocks: continued lines joined, comments taken off."""
    commands = []
    for language, block in blocks_of(path):
        if language not in (*SHELL, "indented"):
            continue
        joined = re.sub(r"\\\n\s*", " ", block.text)
        for number, line in enumerate(joined.split("\n")):
            line = line.removeprefix("$ ").strip()
            words = _words(line)
            if words and (words[0] in STARTS or "=" in words[0]):
                commands.append(Snippet(block.document, block.line + number, shlex.join(words)))
    return commands


def unknown_blocks_of(path):
    """Blocks in which no command was found and whose language says nothing."""
    found = []
    for language, block in blocks_of(path):
        if language in ("python", *NO_CODE):
            continue
        first = next(line for line in block.text.split("\n") if line.strip())
        words = _words(first.removeprefix("$ "))
        if not words or not (words[0] in STARTS or "=" in words[0]):
            found.append(block)
    return found


def inline_of(path):
    """Commands of `reverse` in backticks within a line or a table."""
    found = []
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip().startswith("```"):
            fenced = not fenced
        if fenced or line.startswith("    "):
            continue
        for text in re.findall(r"`(reverse [a-z][^`]*)`", line):
            found.append(Snippet(name_of(path), number, text))
    return found


def _words(line):
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a quotation mark of prose
        return []
