"""Keys of other libraries' records are taken or refused by name, the same in `data check` and training."""

import json

import numpy as np
import pytest
from PIL import Image

from reverse.data.records.importer import import_records
from reverse.data.records.record_rules import check_shape, find_unsupported_keys
from reverse.data.records.schema import MODEL_PLACEHOLDERS, make_record, picture_of, pictures_of
from reverse.data.records.set_check import check_set
from reverse.training.data.encoding import Encoder
from reverse.training.data.first_pass import check_records
from reverse.training.data.record_check import find_bad
from reverse.training.data.training_sets import RecordDataset


@pytest.fixture(params=["llava", "qwen"])
def encoder(request):
    return Encoder(request.getfixturevalue(f"tiny_{request.param}")[1])


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(noise).save(tmp_path / name)
    return tmp_path


def record(question="Q?", image=None, turn=None, question_turn=None, **keys):
    made = make_record("x", image, question, "A dog.") | keys
    made["conversations"][0] |= question_turn or {}
    made["conversations"][1] |= turn or {}
    return made


UNSEEN = {  # the key: a record that has it
    "video": record(video="a.mp4"),
    "videos": record(videos=["a.mp4"]),
    "audio": record(audio="a.wav"),
    "system": record(system="Answer in French."),
    "tools": record(tools="[{}]"),
    "messages": record(messages=[{"role": "user", "content": "Q?"}]),
    "history": record(history=[["Q?", "A."]]),
    "rejected": record(rejected={"from": "gpt", "value": "B."}),
    "label": record(label=False),
    "objects": record("Where is <bbox>?", objects={"bbox": [[1, 2, 3, 4]]}),
    "loss": record(turn={"loss": False}),
    "weight": record(turn={"weight": 0}),
    "image ": record(turn={"image": "a.png"}),
}
HARMLESS = [
    record(image="a.png", images=["a.png"]),
    record(images=[]),
    record(images=None, video=None, videos=[], system="", tools="", messages=[]),
    record(source="coco", width=3, objects={"bbox": []}, label="cat", note={"video": "a.mp4"}, bbox=[1]),
    record(turn={"loss": True, "weight": 1, "score": 0.3}),
    record(label=True),
    record(video=False, audio=False, system=False),  # tables of many sources have such columns
    record(question_turn={"loss": False, "weight": 0}),  # questions are not trained anyway
]


def write(folder, records, name="records.json"):
    (folder / name).write_text(json.dumps(records), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("form", ["file", "imported"])
def test_keys_that_would_be_ignored_are_refused_alike(encoder, folder, form):
    """A model would be taught answers about a video, or to a system prompt, that it never saw."""
    path = write(folder, [*UNSEEN.values(), *HARMLESS])
    if form == "imported":
        import_records(path, folder / "set")
        path = folder / "set"
    report = check_set(path, images=folder)
    assert report.malformed["unsupported_key"]["count"] == len(UNSEEN) and not report.ok
    assert set(report.malformed) == {"unsupported_key"} and not report.broken
    found = {bad.number: bad.reason for bad in find_bad(RecordDataset(path, folder, encoder))}
    assert list(found) == list(range(len(UNSEEN)))
    for reason, key in zip(found.values(), UNSEEN, strict=True):
        assert f'"{key.strip()}" is ' in reason
    dataset = RecordDataset(path, folder, encoder)
    for number in range(len(UNSEEN)):  # as they are drawn, where nobody looked before
        with pytest.raises(ValueError, match="which training does not know"):
            dataset[number]


def test_one_picture_may_stand_in_a_list(encoder, folder):
    """Records of LLaMA-Factory and ms-swift were trained without their picture."""
    forms = [
        record("Q?", image="a.png"), record("<image>\nQ?", images=["a.png"]),
        record("Q?", image=["a.png"]), record("<image>\nQ?", images="a.png"),
    ]  # fmt: skip
    path = write(folder, forms)
    report = check_set(path, images=folder)
    assert report.ok and report.pictures["different"] == 1 and report.sources["(no folder)"]["records"] == 4
    dataset = RecordDataset(path, folder, encoder)
    assert find_bad(dataset) == []
    items = [dataset[k] for k in range(4)]
    assert all(np.array_equal(item.rows[0].ids, items[0].rows[0].ids) for item in items)
    assert all(item.picture is not None for item in items)
    assert dataset.row(1, 3).ids.tolist() == dataset.row(0, 3).ids.tolist()


@pytest.mark.parametrize("images", [3, [None], [{"path": "a.png"}], [""], {"path": "a.png"}, ["a" * 5000]])
def test_lists_of_pictures_hold_paths(images):
    """An object in the place of a path ended the check with an error about dictionaries."""
    with pytest.raises(ValueError, match=r'r: "images" must be a relative path, got .*leave it out') as error:
        check_shape(record(images=images), "r")
    assert len(str(error.value)) < 200
    assert not list(find_unsupported_keys(record(images=images)))


def test_both_lists_count():
    """A picture that both keys name would count twice, one that a second names not at all."""
    assert pictures_of(record(image=["b.png"], images=["a.png", "b.png", "b.png"])) == [
        "a.png",
        *["b.png"] * 2,
    ]
    assert pictures_of(record(image="a.png", images=["a.png", "b.png"])) == ["a.png", "b.png"]
    assert picture_of(record(image="a.png", images=["b.png"])) == "a.png"
    assert picture_of(record(images=["b.png"])) == "b.png" and picture_of(record()) is None


@pytest.mark.parametrize("other", ["messages", "query", "instruction"])
def test_other_libraries_records_are_named(other):
    """`"conversations" must list …, got None` told nothing of why."""
    with pytest.raises(ValueError, match=rf'got None: it has "{other}", as other libraries'):
        check_shape({other: [{"role": "user", "content": "Q?"}]})


def test_placeholders_of_models_are_refused_alike(encoder, folder):
    """They are tokens to Qwen2.5-VL and text to LLaVA: one set, two meanings."""
    bad = [record(f"Is {token} it?") for token in MODEL_PLACEHOLDERS]
    bad.append(record(turn={"value": f"It is {MODEL_PLACEHOLDERS[0]}."}))
    path = write(folder, [*bad, record("Is <|this|> it?")])
    assert check_set(path).malformed["model_placeholder"]["count"] == len(bad)
    found = find_bad(RecordDataset(path, folder, encoder))
    assert [one.number for one in found] == list(range(len(bad)))
    assert all("the picture's place is <image>" in one.reason for one in found)


def damaged(folder):
    """Four records; the pictures of the second and third cannot be decoded."""
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:2000])
    (folder / "odd.png").write_bytes(b"P6 112 112 255\n" + bytes(3 * 112 * 112))
    return write(folder, [record(image=name) for name in ("a.png", "cut.png", "odd.png", "b.png")])


def test_check_decodes_as_training_does(folder):
    """A file whose header is good passed the check and ended the training."""
    path = damaged(folder)
    report = check_set(path, images=folder)
    assert not report.ok and report.pictures["damaged"] == report.pictures["damaged_records"] == 2
    reasons = [example["reason"] for example in report.pictures["damaged_examples"]]
    assert "cut.png is damaged or cut off" in reasons[0] and "odd.png is not a picture" in reasons[1]
    assert check_set(path, images=folder, decode=False).ok


def test_damaged_pictures_do_not_end_a_training_that_skips(tiny_llava, folder, caplog):
    """One picture of a million ended a run of days, although bad records were to be left out."""
    dataset = RecordDataset(damaged(folder), folder, Encoder(tiny_llava[1]))
    with pytest.raises(ValueError, match=r"record 1: .*cut\.png is damaged.*data check --images.*skip_bad"):
        dataset[1]
    check_records(dataset, folder / "out", identity={}, skip_bad=True)
    assert [dataset[k].picture is not None for k in range(4)] == [True] * 4
    assert len(caplog.records) == 2 and "the next record is trained in its place" in caplog.text
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of .* can be decoded: is .* the right folder"):
        dataset[0]


def test_a_system_turn_is_named():
    """ "leave one out" would have people drop a question or an answer of theirs."""
    made = record()
    made["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    with pytest.raises(ValueError, match="got 3 turns: write the first, of the system, at the head of"):
        check_shape(made)
