"""The rules of records: the quick look at good records passes no record that has a fault."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from reverse.data.records import record_rules
from reverse.data.records.record_rules import find_faults, find_shape_problem
from reverse.data.records.schema import make_record

PIECES = st.sampled_from([
    *("", " ", "\n", "\u3000", "\x1c", "a", "ü", "狗", "\ud83d", "<image>", "<image>\n", "<SPAN>", "</CN>"),
    *("</UN>", "</cn>", "</ CN>", "<SPAN>a dog</CN>", "<SPAN> </UN>", "<", ">", "< SPAN >", "<|image_pad|>"),
    *("<bbox>", "<b>"),
])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=4).map("".join)
TURN_KEYS = st.sampled_from([
    *({}, {}, {"loss": 0}, {"weight": 1}, {"image": "a.png"}, {"tool_calls": []}, {"targets": None}),
    *({"targets": "content"}, {"targets": "closing"}, {"targets": "none"}, {"targets": 3}, {"given": 1}),
    *({"given": -1}, {"given": True}, {"given": 99, "targets": "closing"}),
])  # fmt: skip
KEYS = st.sampled_from([
    *({}, {}, {}, {"image": None}, {"image": "a.png"}, {"image": "a.png"}, {"image": ["a.png"]}),
    *({"image": ["a.png", "b.png"]}, {"images": ["a.png", "b.png"], "image": "a.png"}, {"images": "a.png"}),
    *({"weight": 2}, {"weight": 0}, {"weight": float("nan")}, {"weight": True}, {"weight": "1"}),
    *({"images": []}, {"video": "a.mp4"}, {"label": False}, {"objects": {"bbox": [1]}}, {"messages": []}),
])  # fmt: skip


@st.composite
def records(draw):
    record = {"id": "1", **draw(KEYS), "conversations": []}
    for _ in range(draw(st.integers(1, 3))):
        hint = draw(st.one_of(st.none(), TEXTS))
        record["conversations"] += [
            {"from": "human", "value": draw(TEXTS), **draw(TURN_KEYS)},
            {"from": "gpt", "value": draw(TEXTS), "hint": hint, **draw(TURN_KEYS)},
        ]
    return record


@settings(max_examples=600, deadline=None)
@given(records(), st.booleans())
@example(make_record("1", "a.png", "", "<SPAN>A dog</CN>."), True)
@example(make_record("1", None, "Q?", "A", hint="\ud83d"), False)
def test_the_quick_look_finds_what_the_full_look_finds(record, hints):
    """A record with a fault would pass `data check` and stop a run of training hours later."""
    assert find_shape_problem(record) is None
    in_full = list(record_rules._find_faults_in_full(record, hints))
    assert list(find_faults(record, hints)) == in_full
    if record_rules._is_surely_faultless(record):
        assert not in_full


def test_good_records_take_the_quick_look():
    """Millions of good records would be looked at in full, at several times the time."""
    for image in (None, "a.png"):
        assert record_rules._is_surely_faultless(make_record("1", image, "What?", "<SPAN>A dog</CN>."))
