"""Rows are the ids of whole conversations, for every way in which tokenizers treat the start of a text."""

import copy
import random

import pytest
from tokenizers import normalizers, pre_tokenizers

from experiments.tiny_models import SENTENCES, build_tiny_llava, build_tiny_qwen, train_tokenizer
from reverse.models.checkpoints.loading import find_checkpoint
from reverse.models.conversion.original_llava.llava_tokenizer import chat_template
from reverse.models.processors.picture_processors import load_processor
from reverse.tokens import TAGS
from reverse.training.data import encoding_check
from reverse.training.data.encoding import Encoder, Turn
from reverse.training.data.labels import IGNORE
from tests.training.test_encoding import LLAMA31

NO_END = (  # llava-1.5-hf's: no end of turn
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SPACED_END = (  # a blank before the end of turn
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def sentencepiece(scheme):
    """A Llama-2 tokenizer as `legacy` and `add_prefix_space` make it."""
    tokenizer = train_tokenizer(SENTENCES, 500, style="sentencepiece")
    backend = tokenizer.backend_tokenizer
    if scheme == "prepend":  # as older conversions write it: a normalizer, and no pre-tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    return with_tags(build_tiny_llava(tokenizer)[1])


def byte_level(add_prefix_space):
    processor = build_tiny_llava()[1]
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=add_prefix_space, use_regex=True
    )
    return with_tags(processor)


def with_tags(processor):
    processor.tokenizer.add_tokens(list(TAGS))  # as they are, whatever blanks the tokenizer puts around them
    return processor


def templated(template):
    processor = sentencepiece("first")
    if template == LLAMA31:
        processor.tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>"], special_tokens=True)
    processor.chat_template = template or chat_template(processor.tokenizer, None)
    return processor


def bundled(name):
    return load_processor(*find_checkpoint(name))


MAKE = {
    "legacy_false": lambda: sentencepiece("first"),
    "legacy_true": lambda: sentencepiece("always"),
    "no_prefix_space": lambda: sentencepiece("never"),
    "prepending_normalizer": lambda: sentencepiece("prepend"),
    "bytes": lambda: byte_level(False),
    "bytes_with_prefix_space": lambda: byte_level(True),
    "qwen": lambda: with_tags(build_tiny_qwen()[1]),
    "system_prompt": lambda: templated(None),
    "trimming_template": lambda: templated(LLAMA31),
    "no_end_of_turn": lambda: templated(NO_END),
    "blank_before_the_end": lambda: templated(SPACED_END),
    "tiny-llava": lambda: bundled("tiny-llava"),
    "tiny-qwen": lambda: bundled("tiny-qwen"),
}
QUESTIONS = [
    "Describe this image.",
    "Is it (red)",
    "user",
    "How many? 7",
    "狗 🦒é",
    "A\n\nB",
    "x  y",
    "USER: a",
]
ANSWERS = [
    "<SPAN>Yes</CN>",
    "There is <SPAN>a dog</CN> and <SPAN>two cups</UN>",
    "No.",
    "狗。",
    "a\n\nb\n",
    "A ",
]
ANSWERS += [" Two.", "  <SPAN>Two</CN> cups. ", "¿é🦒", "USER: ASSISTANT:", "<SPAN> a</CN><SPAN>b</CN>!"]
HINTS = [(), (), ("Two cups",), ("a chair", "two (red) dogs", "狗")]


def draw_turns(rng):
    return [
        Turn(rng.choice(QUESTIONS), rng.choice(ANSWERS), rng.choice(HINTS)) for _ in range(rng.randint(1, 4))
    ]


def whole(processor, turns, picture, end=None):
    """The oracle: the conversation as the template renders it, tokenised at once; `end` is put in by hand."""
    messages = []
    for k, turn in enumerate(turns):
        hint = ", ".join(hint.lower() for hint in turn.hints)
        asked = turn.question + (f" (Hint: potential incorrect phrases -> {hint})" if hint else "")
        content = [{"type": "image"}] if picture and k == 0 else []
        messages += [
            {"role": "user", "content": [*content, {"type": "text", "text": asked}]},
            {"role": "assistant", "content": [{"type": "text", "text": turn.answer + (end or "")}]},
        ]
    text = processor.apply_chat_template(messages, tokenize=False)
    if end:
        text = text.replace(end + " ", end)  # the template's blank after an answer
    bos = processor.tokenizer.bos_token
    return processor.tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))


@pytest.mark.parametrize("name", MAKE)
def test_rows_are_the_ids_of_the_whole_conversation(name):
    """308 of 400 records had a "▁" too many where a later question begins: no prefill has it."""
    processor = MAKE[name]()
    encoder, tokenizer, rng = Encoder(processor), processor.tokenizer, random.Random(0)
    count = 400 if name in ("legacy_false", "legacy_true") else 80
    compared = 0
    for k in range(count):
        turns, picture = draw_turns(rng), k % 3 > 0
        try:
            row = encoder.row(turns, 1 if picture else None)
        except ValueError as error:  # a blank that byte-level tokenizers join with the template's newline
            assert "cannot be tokenised apart" in str(error)
            assert any(turn.answer[0].isspace() for turn in turns)
            continue
        expected = whole(processor, turns, picture, "</s>" if name == "no_end_of_turn" else None)
        ids = row.ids.tolist()
        assert ids == expected[: len(ids)]
        assert tokenizer.decode(expected[len(ids) :]).strip() == ""
        targets = row.ids[row.labels != IGNORE].tolist()
        assert targets.count(int(encoder.end[0])) == len(turns) and targets[-1] == int(encoder.end[0])
        compared += 1
    assert compared >= 0.45 * count


def test_a_tokenizer_that_reads_parts_otherwise_is_refused_at_the_start(monkeypatch):
    """A model would be trained on prompts that it is never asked, for a whole run."""
    processor = sentencepiece("first")
    monkeypatch.setattr(Encoder, "_after_end", lambda self, part: self._tokenise(part))  # as it was
    with pytest.raises(ValueError, match=r"the parts give \['▁USER'.* and the whole \['US'.*legacy=False"):
        Encoder(processor)


def test_probes_cost_no_memory_and_are_not_cut(monkeypatch):
    """Probes would fill the cache of questions, or fail for a `max_length` that records never reach."""
    encoder = Encoder(sentencepiece("first"), max_length=3)
    assert encoder._pieces == {}
    assert Encoder(copy.copy(encoder.processor), cache=0)._pieces == {}
    calls = []
    monkeypatch.setattr(encoding_check, "whole_ids", lambda *a: calls.append(a) or [])
    with pytest.raises(ValueError, match="does not read the parts"):
        Encoder(encoder.processor)
    assert calls
