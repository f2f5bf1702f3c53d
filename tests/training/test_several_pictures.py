"""Records with several pictures are trained as the processor reads the whole conversation, or refused."""

import copy
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from reverse.data.negatives import find_pairs, make_lexicon_negatives
from reverse.data.negatives import read_turns as turns_to_swap
from reverse.data.records.importer import import_records
from reverse.data.records.published_set import open_records
from reverse.data.records.record_rules import check_shape
from reverse.data.records.schema import ANSWER_TYPE
from reverse.data.records.set_check import check_set
from reverse.data.records.subsets import subsample
from reverse.data.records.viewer import write_page
from reverse.models import family_of
from reverse.models.inputs.prompt_inputs import prepare_inputs
from reverse.training.data.collator import Collator
from reverse.training.data.encoding import Encoder, Turn
from reverse.training.data.first_pass import check_records
from reverse.training.data.labels import IGNORE
from reverse.training.data.packing import row_positions
from reverse.training.data.record_check import find_bad, inspect_records
from reverse.training.data.training_sets import RecordDataset
from reverse.training.optim.loss import LossConfig, loss_in_forward
from reverse.training.sft import SFTConfig, train
from tests.training.test_whole_conversations import MAKE, QUESTIONS

SIZES = {"a.png": (112, 112), "b.png": (112, 168), "c.png": (84, 140)}
ANSWER = "<SPAN>The first</CN> and <SPAN>two cups</UN>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("several")
    for seed, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(path / name)
    (path / "cut.png").write_bytes((path / "a.png").read_bytes()[:2000])
    return path


def record(images, *questions, key="images"):
    turns = []
    for k, question in enumerate(questions):
        answer = ANSWER if k == 0 else f"It is <SPAN>{k} dogs</CN>."
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "x", key: list(images), "conversations": turns}


TWO, THREE = ("a.png", "b.png"), ("c.png", "a.png", "b.png")
GOOD = {
    "in front": record(TWO, "<image>\n<image>\nWhich is red?", "And?"),
    "nowhere": record(TWO, "Which is red?", "And?"),
    "behind": record(TWO, "Which is red?\n<image><image>"),
    "a list of image": record(TWO, "<image> <image> Which?", key="image"),
    "over the turns": record(TWO, "<image>\nWhat is it?", "And here?\n<image>", "Are they alike?"),
    "only later": record(TWO, "Hello?", "<image>\n<image>\nWhich?"),
    "between words": record(THREE, "First: <image>\nthen\n<image>, which?", "Or <image>?"),
    "between words, one behind": record(THREE, " One <image> two <image> three <image> ", "Well?"),
    "pictures alone": record(THREE, "<image>\n<image>\n", "Which?\n<image>"),
    "one twice": record(("a.png", "a.png"), "<image>\n<image>\nAre they alike?"),
}
WRONG = {
    "too few": record(TWO, "<image>\nWhich?"),
    "too many": record(TWO, "<image>\n<image>\n<image>\nWhich?"),
    "too many over the turns": record(TWO, "<image>\nWhich?", "<image><image>"),
    "too few over the turns": record(THREE, "<image>\nWhich?", "And?", "<image>"),
    "an answer": record(TWO, "<image>\n<image>\nWhich?"),
    "a blank first question": record(TWO, " ", "<image><image> Which?"),
    "a blank later question": record(TWO, "<image><image> Which?", " "),
    "twice for one": record(("a.png",), "<image>\n<image>\nWhich?"),
}
WRONG["an answer"]["conversations"][1]["value"] = "An <image>"


def write(folder, records, name="records.json"):
    (folder / name).write_text(json.dumps(records), encoding="utf-8")
    return folder / name


def whole(model, processor, one, folder):
    """What `generate()` prefills for the last question of a conversation of this record."""
    questions = [turn["value"].strip() for turn in one["conversations"][::2]]
    pictures = iter([folder / name for name in one.get("images", one.get("image"))])
    chat, first = [], not any("<image>" in question for question in questions)
    for k, question in enumerate(questions):
        content = [{"type": "text", "text": question}]
        here = question.count("<image>")
        if first and k == 0:
            here = len(one.get("images", one.get("image")))
            content = [{"type": "text", "text": "<image>" * here + question}]
        chat.append({"role": "user", "content": content})
        answer = one["conversations"][2 * k + 1]["value"]
        chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return prepare_inputs(processor, [list(pictures)], [chat[:-1]], family_of(model))


@pytest.mark.parametrize("name", GOOD)
def test_rows_are_what_the_processor_makes_of_the_whole(tiny_any, folder, name):
    """A picture in another's place, or one id too many, and a model is trained on what it never meets."""
    model, processor = tiny_any
    one = GOOD[name]
    check_shape(one)
    dataset = RecordDataset(write(folder, [one]), folder, Encoder(processor))
    item = dataset[0]
    row, expected = item.rows[0], whole(model, processor, one, folder)
    prompt = expected["input_ids"][0].tolist()
    assert row.ids[: len(prompt)].tolist() == prompt
    last = one["conversations"][-1]["value"]
    assert row.ids[len(prompt) :].tolist() == dataset.encoder._answers([last])[0].tolist()
    said = processor.tokenizer.decode(row.ids[row.labels != IGNORE])
    assert said.count(dataset.encoder.end_text) == len(one["conversations"]) // 2 and "</UN>" in said
    assert not (row.labels == processor.image_token_id).any()
    batch = Collator(processor)([item])
    for key in {"pixel_values", "image_grid_thw"} & set(expected):
        assert torch.equal(batch[key], expected[key]), key
    if "mm_token_type_ids" in expected:
        assert torch.equal(batch["mm_token_type_ids"][:, : len(prompt)], expected["mm_token_type_ids"])
    count = len(one.get("images", one.get("image")))
    assert row.pictures == count
    assert (dataset.row(0, 1).ids == processor.image_token_id).sum() == count


@pytest.mark.parametrize("form", ["file", "imported"])
def test_check_and_training_judge_alike(tiny_any, folder, tmp_path, form):
    """A count that is wrong would end a run hours later, or train a picture that no question is about."""
    path = write(tmp_path, [*WRONG.values(), *GOOD.values()])
    if form == "imported":
        import_records(path, tmp_path / "set")
        path = tmp_path / "set"
    report = check_set(path, images=folder)
    kinds = {kind: seen["count"] for kind, seen in report.malformed.items()}
    assert kinds == {"miscounted_images": 4, "image_in_answer": 1, "misplaced_image": 1, "empty_question": 2}
    assert report.pictures["different"] == 3 and report.counts["pictures"] == 3
    assert report.notes["picture_not_asked_about"]["count"] == 1
    dataset = RecordDataset(path, folder, Encoder(tiny_any[1]))
    found = find_bad(dataset)
    assert [bad.number for bad in found] == list(range(len(WRONG)))
    assert "stands 1 times in the questions of a record with 2 pictures" in found[0].reason
    for number in range(len(WRONG)):
        with pytest.raises(ValueError, match=f"record {number}: "):
            dataset[number]


def test_a_batch_of_them_trains_as_each_alone(tiny_any, folder):
    """Pictures given to another row, and the loss of every row is one of pictures that it is not about."""
    model, processor = tiny_any
    plain = {"id": "y", "conversations": record((), "Hello?")["conversations"]}
    one = {"id": "z", "image": "c.png", "conversations": record((), "<image>\nWhat?")["conversations"]}
    records = [GOOD["between words"], one, plain, GOOD["over the turns"]]
    dataset = RecordDataset(write(folder, records), folder, Encoder(processor))
    items = [dataset[k] for k in range(4)]
    collate = Collator(processor)

    def loss(batch):
        with torch.no_grad(), loss_in_forward(model, LossConfig()):
            return model(**batch)["loss"]  # the sum over targets

    alone = sum(loss(collate([item])) for item in items)
    assert math.isfinite(alone)
    torch.testing.assert_close(loss(collate(items)), alone, atol=1e-3, rtol=1e-5)
    packed = Collator(processor, packed=True, positions=row_positions(model, processor))(items)
    torch.testing.assert_close(loss(packed), alone, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(("family", "packing"), [("llava", False), ("qwen", True)])
def test_a_step_trains_them(tiny, folder, tmp_path, family, packing):
    """The trainer splits batches, packs them and averages: places where one picture a row may be assumed."""
    model, processor = tiny(family, init_std=0.02)
    records = [GOOD["between words"], GOOD["over the turns"]]
    dataset = RecordDataset(write(folder, records), folder, Encoder(processor))
    before = copy.deepcopy(model.state_dict())
    config = SFTConfig(
        str(tmp_path / "out"), steps=1, batch=2, log_steps=1, quiet=True, packing=packing,
        group_by_length=not packing,
    )  # fmt: skip
    manifest = train(model, processor, dataset, config)
    assert manifest["steps"] == 1 and all(math.isfinite(loss) for _, loss in manifest["losses"])
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("vision" in name or "visual" in name for name in changed)


def test_turns_that_do_not_fit_lose_their_pictures(tiny_any, folder):
    """Pictures of questions that were cut would have no ids to stand for them: an error in mid-run."""
    processor = tiny_any[1]
    path = write(folder, [GOOD["over the turns"]])
    dataset = RecordDataset(path, folder, Encoder(processor))
    row = dataset[0].rows[0]
    for longest, pictures, cut in ((len(row.ids), 2, 0), (len(row.ids) - 1, 2, 1), (len(row.ids) - 40, 1, 2)):
        tight = RecordDataset(path, folder, Encoder(processor, max_length=longest))
        item = tight[0]
        assert (item.rows[0].pictures, item.rows[0].cut) == (pictures, cut)
        assert (item.rows[0].ids == processor.image_token_id).sum() > 0
        shown = item.picture.get("image_grid_thw", item.picture["pixel_values"])
        assert len(shown) == pictures
        assert inspect_records(tight) == ([], {0: cut} if cut else {})


def test_hints_stand_where_decoding_writes_them(tiny_any, folder):
    """A hint before a later picture, or behind pictures without a word, is none that a model ever meets."""
    processor = tiny_any[1]
    one = json.loads(json.dumps(GOOD["pictures alone"]))
    for turn in one["conversations"][1::2]:
        turn |= {"value": "It is <SPAN>a dog</CN>.", "A_type": ANSWER_TYPE, "hint": "a cat"}
    dataset = RecordDataset(write(folder, [one]), folder, Encoder(processor), hint_share=1.0)
    turns = dataset.turns(0, one)
    assert not turns[0].hints and "a cat" in turns[1].hints
    encoder = dataset.encoder
    turn = Turn("One and", "A.", ("a cat",), (None, "One", None, "and"))
    said, plain = (encoder.row([each], [3, 5]).ids.tolist() for each in (turn, replace(turn, hints=())))
    end = len(encoder.hints.suffix_ids) + len(encoder._answers(["A."])[0])
    assert said == plain[:-end] + encoder.hints.ids(["a cat"]) + plain[-end:]


def test_a_template_that_shows_one_is_refused_by_name(tiny_any, folder):
    """The second picture of a record would be seen by no one, or every set refused for it."""
    processor = copy.deepcopy(tiny_any[1])
    processor.chat_template = processor.chat_template.replace(
        "{% if part['type'] == 'image' %}", "{% if part['type'] == 'image' and loop.first %}"
    )
    dataset = RecordDataset(
        write(folder, [GOOD["in front"], record(("a.png",), "Q?")]), folder, Encoder(processor)
    )
    [bad] = find_bad(dataset)
    assert bad.number == 0 and "the chat template writes" in bad.reason and "pictures" in bad.reason


def test_a_record_with_one_damaged_picture_is_replaced(tiny_llava, folder, caplog):
    """One picture of a million ended a run, or was trained without a picture that its questions are about."""
    path = write(folder, [record(("a.png", "cut.png"), "Q?"), record(TWO, "Which?")])
    report = check_set(path, images=folder)
    assert (report.pictures["damaged"], report.pictures["damaged_records"]) == (1, 1)
    dataset = RecordDataset(path, folder, Encoder(tiny_llava[1]))
    with pytest.raises(ValueError, match=r"record 0: .*cut\.png is damaged"):
        dataset[0]
    check_records(dataset, folder / "run", identity={}, skip_bad=True)
    assert dataset[0].rows[0].ids.tolist() == dataset[1].rows[0].ids.tolist()
    assert "the next record is trained in its place" in caplog.text


def test_every_picture_is_looked_for(tiny_any, folder):
    """A second picture that is not there would end the run when its record is drawn."""
    lost = record(("a.png", "none.png", "gone.png", "none.png"), "Q?")
    path = write(
        folder, [record(TWO, "Q?"), lost, record(("none.png",), "Q?"), record(("../a", "b.png"), "Q?")]
    )
    report = check_set(path, images=folder)
    found = report.pictures
    assert (found["missing"], found["missing_records"]) == (2, 2)
    assert (found["refused"], found["refused_records"]) == (1, 1)
    bad = find_bad(RecordDataset(path, folder, Encoder(tiny_any[1])))
    assert [one.number for one in bad] == [1, 2, 3]
    assert "no such picture" in bad[0].reason and "leaves" in bad[2].reason


def test_further_pictures_make_a_record_longer(tiny_any, folder):
    """Rows of two and of ten pictures in a batch: most of it would be padding."""
    records = [record(TWO[:count] * 3, "Q?") for count in (1, 2)]
    records += [
        {"id": "x", "conversations": records[0]["conversations"]},
        record(("a.png",), '"images": ["'),
    ]
    dataset = RecordDataset(write(folder, records), folder, Encoder(tiny_any[1]))
    texts = [len(dataset.records.text(k)) for k in range(4)]
    each = 4 * dataset.pictures.usual()
    assert dataset.lengths().tolist() == [texts[0] + 2 * each, texts[1] + 5 * each, -texts[2], texts[3]]


def test_a_plain_prompt_and_a_list_of_pictures_is_the_same(tiny_any, folder):
    """`generate()` takes pictures beside a question: a prompt that no record was trained on."""
    model, processor = tiny_any
    encoder = Encoder(processor)
    for one in (
        GOOD["in front"],
        GOOD["nowhere"],
        GOOD["behind"],
        GOOD["one twice"],
        record(TWO, "<image> a <image> b"),
    ):
        question = one["conversations"][0]["value"]
        pictures = [folder / name for name in one["images"]]
        prompt = prepare_inputs(processor, [pictures], [question], family_of(model))["input_ids"][0].tolist()
        dataset = RecordDataset(write(folder, [one]), folder, encoder)
        assert dataset[0].rows[0].ids[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize("name", MAKE)
def test_rows_are_the_ids_of_the_whole_for_every_tokenizer(name):
    """Where a text begins behind a picture, tokenizers put a "▁", a blank, or nothing."""
    processor, rng = MAKE[name](), random.Random(1)
    encoder = Encoder(processor)
    end = "</s>" if name == "no_end_of_turn" else ""
    compared = 0
    for _ in range(40):
        contents = [
            tuple(
                rng.choice([None, rng.choice(QUESTIONS), "\n" + rng.choice(QUESTIONS)])
                for _ in range(rng.randint(1, 4))
            )
            for _ in range(rng.randint(1, 3))
        ]
        contents[0] += (None, None, "Which?")
        answers = [rng.choice(["No.", "A dog", "<SPAN>Yes</CN>"]) for _ in contents]
        turns = [
            Turn("".join(filter(None, content)), answer, (), content)
            for content, answer in zip(contents, answers, strict=True)
        ]
        count = sum(content.count(None) for content in contents)
        row = encoder.row(turns, [1] * count)
        chat = []
        for content, answer in zip(contents, answers, strict=True):
            parts = [
                {"type": "image"} if text is None else {"type": "text", "text": text} for text in content
            ]
            chat.append({"role": "user", "content": parts})
            chat.append({"role": "assistant", "content": [{"type": "text", "text": answer + end}]})
        text = processor.apply_chat_template(chat, tokenize=False)
        text = text.replace(end + " ", end) if end else text
        bos = processor.tokenizer.bos_token
        expected = processor.tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
        ids = row.ids.tolist()
        assert ids == expected[: len(ids)] and not processor.tokenizer.decode(expected[len(ids) :]).strip()
        compared += 1
    assert compared == 40


def test_other_tools_pass_them_on(folder, tmp_path):
    """A record that lost a picture on the way would be refused, or be about the wrong one."""
    one = GOOD["over the turns"]
    records, _, _ = next(make_lexicon_negatives([GOOD["between words"]]))
    assert len(records) == 2 and all(r["images"] == list(THREE) for r in records)
    asked = [[turn["value"] for turn in r["conversations"][::2]] for r in records]
    assert asked[0] == asked[1] == [turn["value"] for turn in GOOD["between words"]["conversations"][::2]]
    nameless = [
        {k: v for k, v in record(names, "Q?").items() if k != "id"} for names in (TWO, ("a.png", "c.png"))
    ]
    for each, answer in zip(nameless, ("<SPAN>A cat</UN>", "<SPAN>A dog</CN>"), strict=True):
        each["conversations"][1]["value"] = answer
    assert (
        len(find_pairs(nameless)) == 1 and turns_to_swap(nameless[1], find_pairs(nameless))[0].problem is None
    )
    path = write(tmp_path, [one] * 3)
    subsample(path, tmp_path / "some.json", 2)
    assert json.loads((tmp_path / "some.json").read_text()) == [one] * 2
    import_records(path, tmp_path / "set")
    assert open_records(tmp_path / "set")[1] == one
    write_page(tmp_path / "look.html", open_records(path), [0], folder)
    page = (tmp_path / "look.html").read_text()
    assert page.count("<img ") == 2 and page.index("a.png") < page.index("b.png")
