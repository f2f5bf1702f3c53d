"""Arguments of calls that were taken without a word, or ended in an error of Python."""

import pytest

import reverse


def test_requests_that_are_none(tiny_llava):
    """`'int' object is not iterable` does not say what is expected."""
    with pytest.raises(TypeError, match="iterable of mappings with images and prompt, got 5"):
        list(reverse.generate_many(*tiny_llava, 5))


def test_a_stop_that_is_a_number(tiny_llava):
    """A stop that is a number would end in an error from inside, which does not say what is expected."""
    with pytest.raises(TypeError, match="a text or a list of texts, got 5: try"):
        reverse.generate(*tiny_llava, None, "What?", threshold=0.5, stop_strings=5)


def test_a_second_question_in_the_drop_in(tiny_llava):
    """A blank answer would stay blank though the caller asked for another try."""
    with pytest.raises(ValueError, match=r"open_ended asks a second question.*use reverse\.generate"):
        reverse.retrospective(tiny_llava[1], threshold=0.5, open_ended=True)


def test_the_processor_of_another_family(tiny_llava, tiny_qwen, picture):
    """The pictures' placeholders would be blamed, and the processor be looked for last."""
    for (model, _), (_, processor) in ((tiny_llava, tiny_qwen), (tiny_qwen, tiny_llava)):
        with pytest.raises(
            ValueError, match=r"the processor is a .*, and the model is of .*: take both from"
        ):
            reverse.generate(model, processor, picture(), threshold=0.5, max_new_tokens=2)
