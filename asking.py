"""What is asked of an LLM, what comes back, and what it cost, whoever is asked.

    bill = Bill()
    reply = openrouter.complete(messages, Shape("plan", schema), models, settings, bill, end)     or claude_llm.complete

Types alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Bill:
    """What asking cost; filled while asking, also where it fails in the end."""

    cost_usd: float = 0.0
    """By the answers' own words, else by the prices of the model list."""
    tokens: dict[str, int] = field(default_factory=lambda: {"input": 0, "output": 0, "cache_read": 0})
    """input: those of the prompt that were not read from the provider's cache."""
    calls: int = 0
    """Requests for an answer that were sent."""
    unknown: int = 0
    """Answers of which nobody says what they cost, and those that never came whole, which may have cost something."""


class NoAnswer(Exception):
    """The LLM gave no usable answer. The message says why, for people, without secrets."""

    def __init__(self, message: str, bill: Bill | None = None) -> None:
        """bill: what it cost all the same."""
        super().__init__(message)
        self.bill = bill or Bill()


class Unreachable(NoAnswer):
    """Nobody answers, or only to say that it is too much, too early or not paid for: asking again soon is no use."""

    def __init__(self, message: str, bill: Bill | None = None, until: float | None = None) -> None:
        """until: epoch seconds from which on asking makes sense again, where that is known."""
        super().__init__(message, bill)
        self.until = until


@dataclass(frozen=True)
class Shape:
    """What an answer has to look like."""

    name: str
    """Of the file in schema/, without .json."""
    schema: dict[str, Any]
    """Its content."""


@dataclass(frozen=True)
class Reply:
    """What an LLM said."""

    text: str
    """Whole, and as it came."""
    model: str
    """The one that really answered."""
