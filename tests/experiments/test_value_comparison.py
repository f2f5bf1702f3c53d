"""A value head against the confidence of tags: how judges of the same samples are compared."""

from PIL import Image

from experiments.reasoning.reasoning_measures import ask_questions
from experiments.value_comparison import VALUE, JudgedSamples, _Sampled, compare_judges, main
from reverse import Engine, Request
from reverse.data.scenes.reasoning import make_verified_draft, write_rationale
from reverse.files.text_reading import read_json
from reverse.models import load
from reverse.training.value_training import ValueConfig, _encode


def make_sampled():
    """Questions with two wrong samples and a right one; one judge knows, one is always mistaken."""
    found = []
    counted = [each for each in ask_questions("val", 30) if each.question.gold.kind == "number"]
    for number, asked in enumerate(counted[:6]):
        texts = ["Answer: 99"] * 3
        texts[number % 3] = write_rationale(asked.question, asked.question.truth)
        drafts = tuple(make_verified_draft(asked.question, text, role="sample") for text in texts)
        right = [float(draft.verdict == "right") for draft in drafts]
        scores = {VALUE: right, "product": [1 - each for each in right]}
        found.append(_Sampled(asked, drafts, scores, 10))
    return found


def test_a_judge_that_knows_finds_every_right_sample():
    """The figures of one judge could be those of another one, or belong to other samples."""
    found = compare_judges(make_sampled())
    assert found[VALUE]["auroc"][0] == 1 and found["product"]["auroc"][0] == 0
    assert found[VALUE]["best"] == [1, 1, 1] and found["product"]["best"] == [0, 0, 0]
    assert found[VALUE]["weighted"][0] == 1 and found["all"]["oracle"] == [1, 1, 1]
    assert found["all"]["best_by_value_over_product"] == [1, 1, 1]
    assert found["all"]["vote"][0] < 1


def test_a_run_judges_every_sample(tmp_path):
    """Minutes of sampling would end in an error."""
    main(["--smoke", "--out", str(tmp_path)])
    found = read_json(tmp_path / "value.json")
    assert set(found["judges"]) == {"min", "product", "mean", VALUE, "all"}
    assert found["head"]["steps"] > 0 and found["tokens_a_question"] > 30


def test_a_value_head_is_asked_about_the_text_it_was_trained_on(tmp_path):
    """Trained on another form of the answers, such as without tags, it would give values of no meaning."""
    model, processor = load("tiny-reasoner")
    engine, seen = Engine(model, processor), []

    class Samples(JudgedSamples):
        def run(self, request):
            asks = super().run(request)
            outcomes = yield next(asks)
            seen.append([outcome.node.ids for outcome in outcomes])
            try:
                asks.send(outcomes)
            except StopIteration as end:
                return end.value

    asked = ask_questions("val", 4)
    results = [
        engine.submit(
            Request(
                Image.fromarray(each.picture), each.question.text, mode=Samples(2, False), max_new_tokens=160
            )
        ).result()
        for each in asked
    ]
    compared = 0
    for each, result, ids in zip(asked, results, seen, strict=True):
        texts = [make_verified_draft(each.question, draft.text, role="sample") for draft in result.drafts]
        record = _Sampled(each, tuple(texts), {}, 0).record()
        Image.fromarray(each.picture).save(tmp_path / record.images[0])
        for sample in _encode(processor, [record], tmp_path, ValueConfig(held_out=0.0)):
            end = int(sample.places[-1]) + 1
            compared += 1
            assert any(sample.row.ids[:end].tolist() == list(own)[:end] for own in ids)
    assert compared > 2
