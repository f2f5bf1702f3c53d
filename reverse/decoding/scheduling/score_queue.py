"""Queue scores of nodes that need a forward pass, such as values. They are computed together, before the next
decode step.

A node whose cache is held is scored on it, any other is prefilled again. When memory runs out, idle caches go
first, then fewer nodes are scored together, then what is being decoded makes room and is decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reverse.decoding.asks import Node
from reverse.decoding.backends.protocol import OutOfMemory, Prompt, does_not_fit
from reverse.decoding.scheduling.picture_batches import encode_pictures

if TYPE_CHECKING:
    from reverse.decoding.scheduling.scheduler import Scheduler

__all__ = ["ScoreQueue", "WantedScore", "make_prompt"]

TOGETHER = 16  # nodes that are scored in one forward


@dataclass(slots=True, eq=False)
class WantedScore:
    """A node to be scored, and who waits for it.

    `order` is as in `Branch`; `placeholder` is the id that stands for a picture's features; `then` receives
    the score or the error, unless `is_over` says that the request has ended.
    """

    node: Node
    kind: str
    order: tuple[int, ...]
    placeholder: int | None
    then: Callable[[float | Exception], None]
    is_over: Callable[[], bool] = lambda: False


class ScoreQueue:
    """Nodes that wait for a score. Their order is that of their requests."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.wanted: list[WantedScore] = []
        self.together = TOGETHER

    def add(self, wanted: WantedScore) -> None:
        """Queue a node; the next steps score it."""
        self.wanted.append(wanted)
        self.wanted.sort(key=lambda each: each.order)

    def step(self) -> bool:
        """Score some nodes and hand over their scores; False if none could be scored now."""
        self.wanted = [each for each in self.wanted if not each.is_over()]
        chosen = self._choose()
        if not chosen:
            return False
        scores: list[float] = []
        message, lost = None, False
        try:
            scores = self._score(chosen)
        except OutOfMemory as error:
            message, lost = str(error), error.lost_everything
        except Exception as error:  # the backend's sequences may be lost
            self.scheduler.recover()
            self._hand_over(chosen, [error] * len(chosen))
            return True
        if message is None:
            self._hand_over(chosen, scores)
        else:
            self._make_room(chosen, message, lost)
        return True

    def _choose(self) -> list[WantedScore]:
        """Return the next nodes: those with a cache, or else the first ones that there is room for."""
        first: dict[Node, WantedScore] = {}
        for each in self.wanted:
            if each.kind == self.wanted[0].kind:
                first.setdefault(each.node, each)
        held = [each for each in first.values() if each.node.sequence is not None]
        if held:
            return held[: self.together]
        count = min(self.together, len(first), self.scheduler.backend.capabilities.max_sequences)
        while count and not self.scheduler.has_room(count):
            count -= 1
        return list(first.values())[:count]

    def _score(self, chosen: Sequence[WantedScore]) -> list[float]:
        backend, nodes = self.scheduler.backend, [each.node for each in chosen]
        missing = [each for each in chosen if each.node.sequence is None]
        if missing:
            refs = (ref for each in missing for ref in each.node.pictures)
            encode_pictures(refs, self.scheduler.backend, self.scheduler.pictures)
            prompts = [make_prompt(each.node, each.node.ids, each.placeholder, 0) for each in missing]
            for each, sequence in zip(missing, backend.add(prompts), strict=True):
                self.scheduler.keep(each.node, sequence, each.order)
        sequences = [node.sequence for node in nodes if node.sequence is not None]
        for node, sequence in zip(nodes, sequences, strict=True):
            backend.set_tokens(sequence, node.ids)
        return backend.score(sequences, chosen[0].kind)

    def _hand_over(self, chosen: Sequence[WantedScore], scores: Sequence[float | Exception]) -> None:
        of_node = {each.node: score for each, score in zip(chosen, scores, strict=True)}
        kind = chosen[0].kind
        done = [each for each in self.wanted if each.kind == kind and each.node in of_node]
        self.wanted = [each for each in self.wanted if each not in done]
        for node, score in of_node.items():
            if not isinstance(score, Exception):
                node.scores[kind] = score
        for each in done:
            each.then(of_node[each.node])

    def _make_room(self, chosen: Sequence[WantedScore], message: str, lost: bool) -> None:
        scheduler = self.scheduler
        had_pictures = scheduler.pictures.drop()
        if lost:
            scheduler.recover()
        elif scheduler.drop_idle_but({each.node for each in chosen}) or had_pictures:
            return
        if len(chosen) > 1:
            self.together = len(chosen) // 2
        elif scheduler.running:
            scheduler.limit = max(1, len(scheduler.running) // 2)
            scheduler.recover()
        else:
            self._hand_over(chosen, [does_not_fit(message)] * len(chosen))


def make_prompt(node: Node, text: Sequence[int], placeholder: int | None, room: int) -> Prompt:
    """Return the prompt of ids that continue a node, up to the first placeholder without a picture.

    A model may generate a placeholder. It and the ids after it are fed as text by `set_tokens`. `room` is how
    many ids are expected behind those of the node.
    """
    pictures = [ref.encoded for ref in node.pictures if ref.encoded is not None]
    own = sum(len(picture.features) for picture in pictures)
    places = [i for i, token in enumerate(text) if token == placeholder]
    if len(places) > own:
        text = text[: places[own]]
    return Prompt(text, pictures, len(node.ids) + room)
