"""A teacher is a model that curation asks: one at an address, or a local checkpoint.

    teacher = Teacher(RemoteAsker…, "o4-mini", SentPictures(root=Path("pictures")), TeacherSampling())
    answer = await teacher.ask("Answer briefly.", "How many dogs?", ("a.png",), read, spent)

Both kinds answer through one cache of replies by content: model, sampling, texts and the bytes of pictures.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from reverse.data.drafts.draft_record import RecordedSampling
from reverse.endpoints.repeated_asking import JSON_ALONE, Answered, Asker, ask_until_usable
from reverse.errors import DataError, RequestError
from reverse.selftrain.curation.sent_pictures import SentPictures

__all__ = ["Teacher", "TeacherSampling"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class TeacherSampling:
    """How replies are sampled. Raises RequestError for values out of range.

    `seed` is that of the first reply to a question; further samples add their number.
    """

    temperature: float = 0.2
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise RequestError(f"--temperature must lie in [0, 10], got {self.temperature:g}: try 0.2")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"--top-p must lie in (0, 1], got {self.top_p:g}: 1 keeps every token")
        if self.max_tokens < 1:
            raise RequestError(f"--max-tokens must be at least 1, got {self.max_tokens}")

    def settings(self, number: int = 0) -> dict[str, Any]:
        """Return the fields of the request for sample `number`."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed + number,
        }

    def recorded(self, number: int = 0) -> RecordedSampling:
        """The same as a draft records it."""
        return RecordedSampling(
            temperature=self.temperature,
            top_p=None if self.top_p == 1 else self.top_p,
            seed=self.seed + number,
        )


@dataclass(frozen=True)
class Teacher:
    """The model to ask, how pictures are sent, and how replies are sampled.

    `judge` is asked if grading cannot decide; None: such answers stay unknown. `origin` says more of where
    replies come from,
    for the plan of a run: its `address` is named in errors.
    """

    asker: Asker
    name: str
    pictures: SentPictures = field(default_factory=SentPictures)
    sampling: TeacherSampling = field(default_factory=TeacherSampling)
    judge: Teacher | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    async def ask(
        self,
        system: str,
        prompt: str,
        images: Sequence[str],
        read: Callable[[str], Value],
        spent: Counter[str],
        *,
        demand: str = JSON_ALONE,
        number: int = 0,
    ) -> Answered[Value]:
        """Ask until `read` takes the reply, see `ask_until_usable`; a bad picture is kind "picture"."""
        try:
            parts = await asyncio.to_thread(self.pictures.parts, images)
        except (DataError, OSError) as error:
            return Answered(None, "picture", str(error))
        content: Any = [*parts, {"type": "text", "text": prompt}] if parts else prompt
        chat = [*([{"role": "system", "content": system}] if system else [])]
        chat.append({"role": "user", "content": content})
        return await ask_until_usable(
            self.asker, chat, read, spent, demand=demand, settings=self.sampling.settings(number)
        )
