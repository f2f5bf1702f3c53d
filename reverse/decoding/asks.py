"""What a mode may ask of the engine, and what it gets back.

A mode is a generator: it yields lists of asks and is sent their outcomes, in order. The engine runs the
generators of many requests side by side and batches all that is outstanding.

    def run(self, request):
        (first,) = yield [Generate(request.conversation)]
        (second,) = yield [Generate(first.node.user(self.instruction), final=True)]  # keeps the KV cache
        return second
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from reverse.decoding.policies.policy import PolicyFactory
from reverse.errors import RequestError, RequestTypeError

if TYPE_CHECKING:
    import torch

    from reverse.decoding.backends.protocol import EncodedPicture, Picture
    from reverse.decoding.result import Result

__all__ = [
    "MODES",
    "Ask",
    "Conversation",
    "Generate",
    "Mode",
    "Node",
    "Outcome",
    "PictureRef",
    "PolicyFactory",
    "Release",
    "Run",
    "Sampling",
    "Score",
    "TurnWriter",
    "policy_of",
    "resolve_mode",
]


@dataclass(frozen=True)
class Conversation:
    """Pictures and a question, or a chat, as a user gives them; tokenised when it is asked for."""

    images: Any = None
    prompt: Any = "Describe this image."  # a text, or a list of messages
    system: str | None = None

    def with_instruction(self, text: str) -> Conversation:
        """The same with a sentence added to the last turn of the user."""
        if isinstance(self.prompt, str):
            return replace(self, prompt=f"{self.prompt} {text}")
        turns = [dict(turn) for turn in self.prompt]
        last = max(i for i, turn in enumerate(turns) if turn.get("role") == "user")
        content = turns[last]["content"]
        if isinstance(content, str):
            turns[last]["content"] = f"{content} {text}"
        else:
            turns[last]["content"] = [*content, {"type": "text", "text": " " + text}]
        return replace(self, prompt=turns)


@dataclass(slots=True, eq=False, weakref_slot=True)
class PictureRef:
    """A picture of requests: as their processor prepares it, and its features once they are known.

    `outline` has the shapes of the prepared tensors, from which placeholders are counted.
    """

    picture: Picture | None = None
    encoded: EncodedPicture | None = None
    outline: Mapping[str, torch.Tensor] | None = None


class TurnWriter(Protocol):
    """Writes what follows an answer in a conversation, as ids."""

    def user_turn(self, text: str) -> tuple[Sequence[int], int]:
        """Ids of the end of an answer, a turn of the user and the header of the next answer.

        Also how many of the last of them stand behind the user's text: hints go before these.
        """

    def continuation(self, text: str) -> Sequence[int]:
        """Ids of text that goes on inside an answer."""


@dataclass(slots=True, eq=False)
class Node:
    """A text of ids that decoding may go on from, and perhaps its KV cache, which belongs to the engine.

    `ids` hold the prompt without hints and what was answered, tags included and a final end of text left out.
    """

    ids: tuple[int, ...]
    pictures: tuple[PictureRef, ...] = ()
    hint_at: int | None = None  # where rejected phrases are named: the end of the last turn of the user
    writer: TurnWriter | None = None
    base: Node | None = None  # the node that this one continues: its cache is of use
    scores: dict[str, float] = field(default_factory=dict)  # what the backend said of it when it was decoded
    sequence: int | None = field(default=None, repr=False)  # the engine's: holds a prefix of `ids`

    def user(self, text: str) -> Node:
        """A further turn of the user behind this answer."""
        assert self.writer is not None, "this node has no tokenizer"
        ids, suffix = self.writer.user_turn(text)
        whole = (*self.ids, *ids)
        return Node(whole, self.pictures, len(whole) - suffix, self.writer, self)

    def continue_assistant(self, text: str = "") -> Node:
        """The same turn, decoded further, behind `text`."""
        ids: Sequence[int] = ()
        if text:
            assert self.writer is not None, "this node has no tokenizer"
            ids = self.writer.continuation(text)
        return Node((*self.ids, *ids), self.pictures, self.hint_at, self.writer, self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer that a mode asked for: its result, and the node to go on from."""

    result: Result
    node: Node

    @property
    def text(self) -> str:
        return self.result.text


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an ask is sampled; what is None is as in the request."""

    temperature: float | None = None  # 0: the most probable token
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """Decode `n` answers behind a conversation or a node; they share one prefill.

    `until="sentence"` ends with the first sentence, strings end the answer as stop strings do. Only what is
    `final` is streamed; `"unless_blank"` says that it is, should it have any text. `policy` replaces the
    mode's.
    """

    source: Conversation | Node
    n: int = 1
    until: Literal["end", "sentence"] | tuple[str, ...] = "end"
    sampling: Sampling | None = None
    final: bool | Literal["unless_blank"] = False
    policy: PolicyFactory | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Run another mode on a conversation or node, side by side with the other asks; its outcome is one."""

    mode: Mode
    source: Conversation | Node | None = None  # None: what the asking mode was given
    final: bool = False  # what it calls final is the answer of the request


@dataclass(frozen=True, slots=True)
class Score:
    """A number for a node: `"likelihood"` is the mean log-probability of the tokens decoded last."""

    node: Node
    kind: str = "likelihood"


@dataclass(frozen=True, slots=True)
class Release:
    """The cache of a node is no longer wanted. Its outcome is None."""

    node: Node


Ask = Generate | Run | Score | Release


class Mode(Protocol):
    """Decides above single answers. `name` is how users call it."""

    name: str

    def run(self, request: Any) -> Generator[list[Ask], list[Any], Outcome]:
        """Yield lists of asks, return the outcome that is the answer.

        `request` has `conversation`, `config` and `sampling`. A generator may be closed at any time, and does
        not yield in `finally`.
        """


def policy_of(mode: Mode) -> PolicyFactory | None:
    """The policy of the innermost mode, which decodes single answers; None: the configuration's."""
    inner = getattr(mode, "inner", None)
    return policy_of(resolve_mode(inner)) if inner is not None else getattr(mode, "policy", None)


MODES: dict[str, Callable[[], Mode]] = {}  # by their names; `reverse.modes` fills it


def resolve_mode(mode: Any) -> Mode:
    """The mode that a name stands for; an object with `run` is one itself. Raises ValueError, TypeError."""
    if isinstance(mode, str):
        if mode not in MODES:
            raise RequestError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        return MODES[mode]()
    if isinstance(mode, type) or not callable(getattr(mode, "run", None)):
        raise RequestTypeError(
            f"mode must be a name or an object with run(request), got {mode!r:.80}: try mode='resample'"
        )
    return mode
