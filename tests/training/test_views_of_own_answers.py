"""Rows of what a trained model itself said begin with the very ids that a mode then asks it with."""

import pytest
from PIL import Image

import reverse
from reverse.data.drafts.draft_record import DraftRecord, DraftSegment, RecordedDraft
from reverse.data.scenes import make_scene, render_scene
from reverse.decoding.asks import Generate, Node
from reverse.models import family_of, prepare_inputs
from reverse.modes import Plain, Refine, Select, SelfCorrect
from reverse.training.data.encoding import Encoder
from reverse.training.data.labels import IGNORE
from reverse.training.data.picture_encoding import PictureEncoder
from reverse.training.data.record_turns import turns_of
from reverse.training.views.view_files import VIEWS
from reverse.training.views.view_rows import ViewSettings

QUESTION = "Describe this image."
KEEP = Plain(keep_phrases=True)
TRUE = RecordedDraft(
    text="There is a cup.", role="rationale", verdict="right", answer="cup",
    segments=(DraftSegment(start=8, end=14, verdict="right"),),
)  # fmt: skip


class Recorder:
    """A mode that lets another one ask, and keeps the ids and the outcome of each answer."""

    name = "recorder"

    def __init__(self, mode, find_ids):
        self.mode, self.find_ids = mode, find_ids
        self.asked, self.outcomes = [], []

    def run(self, request):
        generator, sent = self.mode.run(request), None
        while True:
            try:
                asks = generator.send(sent)
            except StopIteration as stop:
                return stop.value
            sent = yield asks
            answers = iter(sent)
            for ask in asks:
                made = [next(answers) for _ in range(getattr(ask, "n", 1))]
                if isinstance(ask, Generate):
                    self.asked.append(self.find_ids(ask.source))
                    self.outcomes += made


@pytest.fixture(params=["tiny-llava", "tiny-qwen"])
def ask(request):
    """Let a trained model answer in a mode: the recorder of what was asked, and an encoder of rows."""
    model, processor = reverse.load(request.param)
    kitchen = Image.fromarray(render_scene(make_scene("test", 0)))

    def find_ids(source):
        if isinstance(source, Node):
            return list(source.ids)
        chat = prepare_inputs(processor, [kitchen], [source.prompt], family_of(model))
        return chat["input_ids"][0].tolist()

    def answer(mode, **settings):
        recorder = Recorder(mode, find_ids)
        reverse.generate(model, processor, kitchen, QUESTION, mode=recorder, hints=0, **settings)
        return recorder

    def encode(row):
        _, tokens = PictureEncoder(processor)(kitchen)
        return Encoder(processor).row(turns_of(row), tokens)

    return answer, encode


def draft_of(outcome, verdict="wrong", answer="x"):
    """An answer of the model as `reverse eval` records it."""
    result = outcome.result
    segments = tuple(
        DraftSegment(start=each.start, end=each.end, verdict=verdict, p_un=each.p_un)
        for each in result.phrases
    )
    return RecordedDraft(text=result.text, role="sample", segments=segments, answer=answer, verdict=verdict)


def row_of(view, mode, *drafts):
    record = DraftRecord(id="q", question=QUESTION, images=("kitchen.png",), drafts=drafts)
    (row,) = VIEWS[view](record, ViewSettings(mode=mode, right_share=1.0)).rows
    return row


@pytest.mark.parametrize("kind", [Refine, SelfCorrect])
def test_a_correction_begins_with_the_ids_that_the_model_is_asked_with(ask, kind):
    """Tags, spaces or the end of the model's own answer would stand otherwise in training."""
    answer, encode = ask
    mode = kind(inner=KEEP, stop_when_same=False)
    recorder = answer(mode, max_new_tokens=64)
    first = draft_of(recorder.outcomes[0])
    assert first.segments and len(recorder.asked) == 2
    encoded = encode(row_of(mode.name, mode, first, TRUE))
    again = recorder.asked[1]
    assert encoded.ids[: len(again)].tolist() == again
    assert (encoded.labels[: len(again)] == IGNORE).all()
    assert (encoded.labels[len(again) :] != IGNORE).all()


def test_a_choice_begins_with_the_ids_that_the_model_is_asked_with(ask):
    """Candidates would be shown otherwise in training."""
    answer, encode = ask
    mode = Select(n=2, judge="self", inner=KEEP, temperature=1.5, top_k=0, top_p=1.0)
    recorder = answer(mode, max_new_tokens=24)
    made = [
        draft_of(each, verdict, str(number))
        for number, (each, verdict) in enumerate(zip(recorder.outcomes, ("right", "wrong"), strict=False))
    ]
    assert len(recorder.asked) == 2 and made[0].text != made[1].text
    asked, begun = recorder.asked[1], []
    for seed in range(20):  # until the view draws the order of the mode
        record = DraftRecord(id="q", question=QUESTION, images=("kitchen.png",), drafts=tuple(made))
        (row,) = VIEWS["select"](record, ViewSettings(mode=mode, seed=seed)).rows
        begun.append(encode(row).ids[: len(asked)].tolist())
    assert asked in begun
