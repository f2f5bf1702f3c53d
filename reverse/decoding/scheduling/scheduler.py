"""The scheduler prefills waiting branches, takes decode steps and carries out the policies' decisions.

    scheduler = Scheduler(backend)
    scheduler.add(branch)
    while scheduler.has_work:
        for branch in scheduler.step():      # the branches that ended in this step
            branch.result or branch.error

The oldest branches go first. When memory runs out, idle caches are dropped first; then every branch is queued
again and fewer are decoded side by side. Answers do not change.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext

from reverse.decoding.asks import Node
from reverse.decoding.backends.protocol import Backend, OutOfMemory, StepOutput, does_not_fit
from reverse.decoding.policies.policy import Finish
from reverse.decoding.preparing.picture_cache import PictureCache
from reverse.decoding.scheduling.branch import Branch, Decision
from reverse.decoding.scheduling.picture_batches import encode_pictures
from reverse.decoding.scheduling.score_queue import ScoreQueue, make_prompt

__all__ = ["PREFILL", "Scheduler"]

PREFILL = 16  # sequences prefilled together: their keys and values are held twice for a moment
_MOST_HELD_BACK = 8  # that a prompt waits for others to be prefilled with it


class Scheduler:
    """Decodes branches side by side.

    At most `limit` branches are decoded at once. Their candidates come on top if the backend has room.
    `pictures` keeps encoded pictures.
    """

    def __init__(self, backend: Backend, limit: int, pictures: PictureCache | None = None):
        self.backend = backend
        self.pictures = PictureCache() if pictures is None else pictures
        self.limit = limit
        self._size = limit, backend.capabilities.max_sequences
        self.waiting: list[Branch] = []  # sorted by their order
        self.running: list[Branch] = []
        self._of_sequence: dict[int, tuple[Branch, int]] = {}  # (branch, index of the segment in its round)
        self._idle: dict[Node, tuple[int, ...]] = {}  # nodes with a cache, by the order of their branches
        self._ended: list[Branch] = []
        self._alone: set[Branch] = set()  # to prefill one by one, because one of them is at fault
        self.expects_more = False  # more branches will be added soon
        self.waits_since: float | None = None  # when the engine began to wait for them
        self._steps_held_back = 0
        self.scores = ScoreQueue(self)
        self.pause_preparing: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self._ended)

    @property
    def has_ended(self) -> bool:
        return bool(self._ended)

    def add(self, branch: Branch) -> None:
        insort(self.waiting, branch, key=lambda each: each.order)

    def set_size(self, branches: int, sequences: int) -> None:
        """Set how many branches and sequences are decoded side by side, as far as memory allows."""
        if (branches, sequences) == self._size:
            return
        was_short = self.limit < self._size[0]
        self.limit = min(self.limit, branches) if was_short else branches
        self._size = branches, sequences
        try:
            self.backend.reserve(max(sequences, len(self._of_sequence) + len(self._idle)))
        except OutOfMemory as error:
            if error.lost_everything:
                self.recover()

    def take_ended(self) -> list[Branch]:
        """Return the branches that ended and that no step has returned."""
        ended, self._ended = self._ended, []
        return ended

    # ------------------------------------------------------------------ one step
    def step(self) -> list[Branch]:
        """Prefill branches and decode one token of every running one; return the branches that ended.

        A branch that fails, or does not fit into memory alone, ends with an `error`. Raises what else the
        backend raises; after that the caller has to call `recover`.
        """
        ready: list[Branch] = []
        message, lost, held = None, False, self.backend.capabilities.max_sequences
        try:
            is_held_back = self._must_hold_back()
            self._steps_held_back = self._steps_held_back + 1 if is_held_back else 0
            while not is_held_back and (ready := self._choose_next()) and self._admit(ready):
                pass
            ready = []
            if self.running:
                self._act(self.backend.step())
        except _PromptFault:
            self.recover()
        except OutOfMemory as error:
            # The error itself would keep the tensors of its frames alive.
            message, lost = str(error), error.lost_everything
        if message is not None:
            asked = sum(branch in self.waiting for branch in ready)
            self._make_room(asked, message, lost, self.backend.capabilities.max_sequences < held)
        return self.take_ended()

    def recover(self, error: BaseException | None = None) -> None:
        """Queue every running branch again after the backend has raised; with `error`, end them with it."""
        running = self.running
        self._lose_sequences()
        for branch in running:
            if error is None:
                self._requeue(branch)
            else:
                self._end(branch, error)

    # ------------------------------------------------------------------ prefilling
    def _choose_next(self) -> list[Branch]:
        """Return the oldest waiting branches, as many as may be decoded now."""
        count = min(self.limit - len(self.running), PREFILL)
        if count > 0 and self.waiting and self.waiting[0] in self._alone:
            count = 1
        return self.waiting[: max(0, count)]

    def _must_hold_back(self) -> bool:
        """Return whether prompts wait for others to be prefilled with them, while running branches go on.

        Small batches are slow: if answers end one by one, each prompt would be prefilled on its own.
        """
        places = self.limit - len(self.running)
        count = min(places, len(self.waiting))
        if not self.running or not 0 < count < min(PREFILL, self.limit // 4):
            return False
        if self._steps_held_back >= _MOST_HELD_BACK or not (self.expects_more or len(self.waiting) > places):
            return False
        nodes = [n for b in self.waiting[:count] for n in (b.node, b.node.base) if n is not None]
        return all(node.sequence is None for node in nodes)  # the others need no prefill

    def _count_free(self) -> int:
        return self.backend.capabilities.max_sequences - len(self._of_sequence) - len(self._idle)

    def _admit(self, branches: Sequence[Branch]) -> bool:
        """Give each branch a sequence: that of its node, a split of it, or a new one.

        Returns False if there was room for none of them.
        """
        fresh: dict[Node, Branch] = {}
        late: list[Branch] = []  # split from a fresh one of the same node
        placed: list[Branch] = []
        for branch in branches:
            holder = next((n for n in (branch.node, branch.node.base) if n and n.sequence is not None), None)
            if holder is not None:
                self._place(branch, self._take_from(holder, branch, len(fresh) + len(late)))
                placed.append(branch)
            elif self.has_room(len(fresh) + len(late) + 1):
                if branch.node in fresh:
                    late.append(branch)
                else:
                    fresh[branch.node] = branch
        if fresh:
            for branch, sequence in zip(fresh.values(), self._prefill(list(fresh.values())), strict=True):
                self._place(branch, sequence)
        for branch in late:
            (sequence,) = self.backend.split(fresh[branch.node].round.sequences[0], 1)
            self._place(branch, sequence)
        placed += [*fresh.values(), *late]
        for branch in placed:
            self._begin(branch, branch.round.sequences[0])
        return bool(placed)

    def _place(self, branch: Branch, sequence: int) -> None:
        self.waiting.remove(branch)
        self._alone.discard(branch)
        self.running.append(branch)
        self._of_sequence[sequence] = (branch, 0)
        branch.round.sequences = [sequence]
        branch.begin()

    def _take_from(self, node: Node, branch: Branch, reserved: int) -> int:
        """Take the sequence of a node, or a split of it if other branches wait for it too.

        `reserved` free sequences are for prompts that are about to be prefilled.
        """
        assert node.sequence is not None
        others = (b for b in self.waiting if b is not branch and node in (b.node, b.node.base))
        if any(others) and self._count_free() > reserved:
            (sequence,) = self.backend.split(node.sequence, 1)
            return sequence
        sequence, node.sequence = node.sequence, None
        self._idle.pop(node, None)
        return sequence

    def has_room(self, count: int) -> bool:
        """Return whether there is room for `count` new sequences once idle ones are dropped."""
        if self._count_free() >= count:
            return True
        wanted = {node for b in self.waiting for node in (b.node, b.node.base) if node in self._idle}
        self._drop_idle(count - self._count_free(), keep=wanted)
        self._drop_idle(count - self._count_free())  # the oldest must not wait for ever
        return self._count_free() >= count

    def _prefill(self, branches: Sequence[Branch]) -> list[int]:
        # Nobody waits for what is being prepared if the waiting branches take all places.
        are_enough = len(self.waiting) >= self.limit - len(self.running)
        try:
            with self.pause_preparing() if are_enough else nullcontext():
                refs = (ref for branch in branches for ref in branch.node.pictures)
                encode_pictures(refs, self.backend, self.pictures)
                prompts = [
                    make_prompt(b.node, b.round.text, b.rules.placeholder, b.rules.max_new_tokens)
                    for b in branches
                ]
                return self.backend.add(prompts)
        except OutOfMemory:
            raise
        except Exception as error:
            if len(branches) == 1:
                self.waiting.remove(branches[0])
                self._end(branches[0], error)
            else:
                self._alone.update(branches)  # to find the one at fault
            raise _PromptFault from error

    def _begin(self, branch: Branch, sequence: int) -> None:
        """Start the round of a branch on a sequence, and its candidates on splits of the sequence."""
        round = branch.round
        round.sequences = [sequence]
        self._of_sequence[sequence] = (branch, 0)
        self.backend.set_tokens(sequence, round.text)
        others = len(round.params) - 1
        if others > 0:
            self._drop_idle(others - self._count_free())
            others = min(others, self._count_free())
        if others > 0:
            for i, split in enumerate(self.backend.split(sequence, others), 1):
                round.sequences.append(split)
                self._of_sequence[split] = (branch, i)
        for each, params in zip(round.sequences, round.params, strict=False):
            self.backend.start(each, params)
        round.is_begun = True

    # ------------------------------------------------------------------ results of a step
    def _act(self, outputs: Sequence[StepOutput]) -> None:
        touched: dict[Branch, None] = {}
        for output in outputs:
            found = self._of_sequence.get(output.sequence)
            if found is None:
                continue
            branch, i = found
            if output.error is not None:
                branch.round.failed[i] = output.error
            else:
                branch.take_token(i, output.token, output.p, output.segment)
            if output.error is not None or output.segment is not None:
                touched[branch] = None
        for branch in touched:
            try:
                decision = branch.judge()
            except Exception as error:
                self._end(branch, error)
                continue
            if decision is not None:
                self._follow(branch, decision)

    def _follow(self, branch: Branch, decision: Decision) -> None:
        for sequence in decision.others:
            self._release(sequence)
        if not isinstance(decision.action, Finish):
            branch.round.sequences = [decision.sequence]
            self._begin(branch, decision.sequence)
            return
        self.running.remove(branch)
        del self._of_sequence[decision.sequence]
        branch.node = branch.make_answer_node()
        self._ended.append(branch)  # first: what follows may raise
        branch.node.scores |= self._read_scores(branch, decision.sequence)
        if branch.keeps_cache:
            self.keep(branch.node, decision.sequence, branch.order)
        else:
            self.backend.release(decision.sequence)

    def _read_scores(self, branch: Branch, sequence: int) -> dict[str, float]:
        """The likelihood of the branch's own answer: earlier turns count only while their cache is kept."""
        if not self.backend.capabilities.likelihood:
            return {}
        begin = len(branch.round.text) - branch.round.length
        return {"likelihood": self.backend.score([sequence], "likelihood", [begin])[0]}

    def _end(self, branch: Branch, error: BaseException) -> None:
        """End a branch with an error."""
        self._release_branch(branch)
        branch.error = error
        self._ended.append(branch)

    def cancel(self, branch: Branch) -> None:
        """Stop decoding a branch that nobody waits for."""
        if branch in self.waiting:
            self.waiting.remove(branch)
        self._release_branch(branch)

    def _release_branch(self, branch: Branch) -> None:
        for sequence in branch.round.sequences:
            if self._of_sequence.get(sequence, (None,))[0] is branch:
                self._release(sequence)
        if branch in self.running:
            self.running.remove(branch)
        self._alone.discard(branch)

    def _release(self, sequence: int) -> None:
        self._of_sequence.pop(sequence, None)
        self.backend.release(sequence)

    # ------------------------------------------------------------------ memory
    def keep(self, node: Node, sequence: int, order: tuple[int, ...]) -> None:
        """Keep a sequence as the idle cache of a node."""
        node.sequence = sequence
        self._idle[node] = order

    def holds(self, node: Node) -> bool:
        """Whether the idle cache of a node is held here."""
        return node in self._idle

    def drop_idle_but(self, kept: Collection[Node]) -> bool:
        """Drop all idle caches but those of some nodes; False if there are none."""
        dropped = [node for node in self._idle if node not in kept]
        for node in dropped:
            self.release_node(node)
        return bool(dropped)

    def release_node(self, node: Node) -> None:
        """Free the cache of a node. It is recomputed when it is needed again."""
        sequence, node.sequence = node.sequence, None  # first: the release may raise
        if self._idle.pop(node, None) is not None and sequence is not None:
            self.backend.release(sequence)

    def _drop_idle(self, count: int, keep: Collection[Node] = ()) -> None:
        """Drop up to `count` idle caches, those of the newest requests first."""
        if count <= 0:
            return
        idle = sorted((n for n in self._idle if n not in keep), key=lambda n: self._idle[n], reverse=True)
        for node in idle[:count]:
            self.release_node(node)

    def _make_room(self, asked: int, message: str, lost: bool, smaller: bool) -> None:
        """Free memory after it ran out with `asked` branches about to be prefilled."""
        had_pictures = self.pictures.drop()
        if (self._idle or had_pictures) and not lost:
            self._drop_idle(len(self._idle))
            for branch in [b for b in self.running if not b.is_under_way]:
                self._release_branch(branch)
                self._requeue(branch)
            return
        count = len(self.running) + asked
        if count <= 1 and not smaller:
            branch = self.running[0] if self.running else self.waiting.pop(0)
            self._end(branch, does_not_fit(message))
            if lost:
                self._lose_sequences()
            return
        self.limit = max(1, count // 2)
        self.recover()

    def _requeue(self, branch: Branch) -> None:
        branch.restart()
        self.add(branch)

    def _lose_sequences(self) -> None:
        for node in self._idle:
            node.sequence = None
        self._idle, self._of_sequence, self.running = {}, {}, []
        self.backend.reset()


class _PromptFault(Exception):
    """A prompt could not be prefilled. The cause says why."""
