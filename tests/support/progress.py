"""A `Progress` that remembers what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Piece:
    what: str
    total: int | None
    unit: str
    done: int = 0


@dataclass
class Recorder:
    """The pieces of work in their order, and the sentences that were logged."""

    pieces: list[Piece] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def start(self, what: str, total: int | None = None, unit: str = "photos") -> None:
        self.pieces.append(Piece(what, total, unit))

    def advance(self, count: int = 1) -> None:
        self.pieces[-1].done += count

    def note(self, words: str) -> None:
        self.notes.append(words)

    def log(self, sentence: str) -> None:
        self.said.append(sentence)
