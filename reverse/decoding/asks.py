"""The asks of a mode and their outcomes.

A mode is a generator: it yields lists of asks and receives their outcomes in order. The engine runs the
generators of many requests side by side and batches all outstanding asks.

    def run(self, request):
        (first,) = yield [Generate(request.conversation)]
        (second,) = yield [Generate(first.node.user(self.instruction), final=True)]  # keeps the KV cache
        return second
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from reverse.decoding.policies.policy import PolicyFactory
from reverse.errors import RequestError, RequestTypeError

if TYPE_CHECKING:
    import torch

    from reverse.decoding.backends.protocol import EncodedPicture, Picture
    from reverse.decoding.result import Result
    from reverse.tokens.spans import TokenIds

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
    "find_policy",
    "resolve_mode",
]


@dataclass(frozen=True)
class Conversation:
    """Pictures and a question or a chat, as a user gives them. It is tokenised when it is needed."""

    images: Any = None
    prompt: Any = "Describe this image."  # a text, or a list of messages
    system: str | None = None

    def with_instruction(self, text: str) -> Conversation:
        """Return a copy with a sentence added to the last turn of the user."""
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
    """A picture that requests share: prepared by the processor, and later its features.

    `outline` has the shapes of the prepared tensors, from which placeholders are counted.
    """

    picture: Picture | None = None
    encoded: EncodedPicture | None = None
    outline: Mapping[str, torch.Tensor] | None = None


class TurnWriter(Protocol):
    """Writes the ids that follow an answer in a conversation."""

    def encode_user_turn(self, text: str) -> tuple[Sequence[int], int]:
        """Return ids of the end of an answer, a turn of the user and the header of the next answer.

        Also returns how many of the last ids stand after the user's text. Hints go before them.
        """

    def encode_continuation(self, text: str) -> Sequence[int]:
        """Return the ids of text that continues an answer."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, tags included."""

    @property
    def tags(self) -> TokenIds:
        """Ids of the three tokens."""


@dataclass(slots=True, eq=False)
class Node:
    """Ids that decoding may continue. The engine may hold their KV cache.

    `ids` hold the prompt without hints and the answer with its tags, without a final EOS.
    """

    ids: tuple[int, ...]
    pictures: tuple[PictureRef, ...] = ()
    hint_at: int | None = None  # position of hints: the end of the last turn of the user
    writer: TurnWriter | None = None
    base: Node | None = None  # the node that this one continues, whose cache can be used
    scores: dict[str, float] = field(default_factory=dict)  # from the backend, when the node was decoded
    sequence: int | None = field(default=None, repr=False)  # of the backend; it holds a prefix of `ids`
    parts: tuple[Result, ...] = ()  # answers that make up the turn of the assistant that `ids` end with
    turn_length: int = 0  # how many of the last ids belong to that turn

    def user(self, text: str) -> Node:
        """Return a node with a further turn of the user after this answer."""
        assert self.writer is not None, "this node has no tokenizer"
        ids, suffix = self.writer.encode_user_turn(text)
        ids = (*self.ids, *ids)
        return Node(ids, self.pictures, len(ids) - suffix, self.writer, self)

    def continue_assistant(self, text: str = "") -> Node:
        """Return a node that continues this answer after `text`."""
        ids: Sequence[int] = ()
        if text:
            assert self.writer is not None, "this node has no tokenizer"
            ids = self.writer.encode_continuation(text)
        node = Node((*self.ids, *ids), self.pictures, self.hint_at, self.writer, self)
        node.parts, node.turn_length = self.parts, self.turn_length + len(ids)
        return node

    def add_answer(self, ids: Sequence[int], result: Result) -> Node:
        """Return the node after an answer to this node; `ids` are those of the answer without a final EOS."""
        node = Node((*self.ids, *ids), self.pictures, self.hint_at, self.writer, self)
        node.parts, node.turn_length = (*self.parts, result), self.turn_length + len(ids)
        return node


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer that a mode asked for: its result, its node, and how many answers and parts it took."""

    result: Result
    node: Node
    calls: int = 1  # those of inner modes included; the engine counts them

    @property
    def text(self) -> str:
        return self.result.text


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of an ask. None means as in the request."""

    temperature: float | None = None  # 0: the most probable token
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None

    def fill_from(self, other: Sampling | None) -> Sampling:
        """Return these parameters, with those of `other` where they are None."""
        if other is None:
            return self
        values = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Sampling(*(theirs if own is None else own for own, theirs in values))


@dataclass(frozen=True, slots=True)
class Generate:
    """Decode `n` answers after a conversation or a node; they share one prefill.

    `until="sentence"` ends with the first sentence; strings end the answer as stop strings do. Only `final`
    answers are streamed; `"unless_blank"` means final if it has any text. `policy` replaces the mode's.
    `role` says what the answers are for, as `Draft.role`, and `round` in which round they are made: events
    name both, and announce answers that have a role.
    """

    source: Conversation | Node
    n: int = 1
    until: Literal["end", "sentence"] | tuple[str, ...] = "end"
    sampling: Sampling | None = None
    final: bool | Literal["unless_blank"] = False
    policy: PolicyFactory | None = None
    role: str = ""
    round: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Run another mode on a conversation or node, side by side with the other asks.

    `sampling` holds for everything that it asks for without parameters of its own; `role` and `round` are as
    of `Generate`.
    """

    mode: Mode
    source: Conversation | Node | None = None  # None: that of the asking mode
    final: bool = False  # its final answers are those of the request
    sampling: Sampling | None = None
    role: str = ""
    round: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """Score a node: `"likelihood"` is the mean log-probability of the tokens of its last answer.

    `"value"` is what the model's value head says of the node's last token (`reverse.models.value_head`).

    `default` is the outcome on a backend that does not give the score; None: an error.
    """

    node: Node
    kind: str = "likelihood"
    default: float | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Free the cache of a node. Its outcome is None."""

    node: Node


Ask = Generate | Run | Score | Release


class Mode(Protocol):
    """Combines single answers to the answer of a request. Users may give its `name` as `mode=`."""

    name: str

    def run(self, request: Any) -> Generator[list[Ask], list[Any], Outcome]:
        """Yield lists of asks and return the outcome that is the answer.

        `request` is a `ModeRequest`. The generator may be closed at any time and must not yield in `finally`.
        """


def find_policy(mode: Mode) -> PolicyFactory | None:
    """Return the policy of the innermost mode, or None for the one that the configuration names."""
    inner = getattr(mode, "inner", None)
    return find_policy(resolve_mode(inner)) if inner is not None else getattr(mode, "policy", None)


MODES: dict[str, Callable[[], Mode]] = {}  # by name; `reverse.modes` fills it


def resolve_mode(mode: Any) -> Mode:
    """Return the mode of a name; an object with `run` is a mode itself. Raises RequestError."""
    if isinstance(mode, str):
        if mode not in MODES:
            raise RequestError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        return MODES[mode]()
    if isinstance(mode, type) or not callable(getattr(mode, "run", None)):
        raise RequestTypeError(
            f"mode must be a name or an object with run(request), got {mode!r:.80}: try mode='resample'"
        )
    return mode
