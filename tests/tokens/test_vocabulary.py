"""Without these, a checkpoint could lose, duplicate or hide the three tokens, or change rows it must not."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer, LlamaTokenizer

from experiments.tiny_models import SENTENCES, build_tiny_llava, build_tiny_qwen, train_tokenizer
from reverse.models.families import LLAVA, QWEN2_5_VL
from reverse.tokens import (
    CN,
    SPAN,
    TAGS,
    UN,
    add_tokens,
    ensure_ordinary_tags,
    find_token_ids,
    remove_tags,
)

BUILDERS = [build_tiny_llava, build_tiny_qwen]
STYLES = [("bytes", LLAVA), ("bytes", QWEN2_5_VL), ("sentencepiece", LLAVA)]


def rows_of(model):
    """Copies of the input and output embeddings, each (rows, hidden)."""
    return [
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    ]


@pytest.fixture(scope="module", params=STYLES, ids=lambda style: f"{style[0]}-{style[1].name}")
def tagged_tokenizer(request):
    style, family = request.param
    tokenizer = train_tokenizer(SENTENCES, 600, style=style, family=family)
    builder = build_tiny_llava if family is LLAVA else build_tiny_qwen
    add_tokens(*builder(tokenizer))
    return tokenizer


@pytest.mark.parametrize("build", BUILDERS)
def test_embeddings_grow_by_three_when_none_are_spare(build):
    """The new ids would have no rows, or rows would stand spare that the model can emit."""
    model, processor = build()
    before = model.get_input_embeddings().weight.shape[0]
    assert before == len(processor.tokenizer)
    add_tokens(model, processor)
    assert [len(rows) for rows in rows_of(model)] == [before + 3] * 2
    assert model.config.get_text_config().vocab_size == before + 3


@pytest.mark.parametrize("build", BUILDERS)
def test_spare_rows_are_used_and_nothing_shrinks(build):
    """Qwen2.5-VL's 151,936 rows would shrink to the tokenizer's size, as resizing to len(tokenizer) does."""
    model, processor = build(text={"vocab_size": 700})
    ids = add_tokens(model, processor)
    assert max(ids) < 700
    assert [len(rows) for rows in rows_of(model)] == [700] * 2
    assert model.config.get_text_config().vocab_size == 700


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("spare", [0, 64])
def test_new_rows_are_the_mean_of_the_used_rows(build, spare):
    """A row of plain noise gives logits unlike any token's, and spare rows would pull the mean away."""
    model, processor = build()
    used = len(processor.tokenizer)
    model, processor = build(text={"vocab_size": used + spare})
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight[used:] = 100.0  # spare rows say nothing
    before = rows_of(model)
    ids = add_tokens(model, processor)
    for old, new in zip(before, rows_of(model), strict=True):
        assert torch.equal(new[:used], old[:used])
        mean, spread = old[:used].mean(dim=0), old[:used].std(dim=0)
        for i in ids:
            assert ((new[i] - mean).abs() <= 0.02 * 6 * spread).all()
        assert not torch.equal(new[ids.cn], new[ids.un])


def test_a_phrase_can_start_a_row():
    """`init` would be taken for a word and ignored."""
    model, processor = build_tiny_llava()
    phrase = processor.tokenizer.encode("a dog", add_special_tokens=False)
    before = rows_of(model)
    ids = add_tokens(model, processor, init={UN: "a dog"})
    for old, new in zip(before, rows_of(model), strict=True):
        assert torch.allclose(new[ids.un], old[phrase].mean(dim=0), atol=0.02 * 6 * 0.03)
        assert not torch.allclose(new[ids.cn], old[phrase].mean(dim=0), atol=0.02 * 6 * 0.03)


def test_init_is_checked():
    """A misspelt tag would fall back to the mean without a word."""
    with pytest.raises(ValueError, match="</NO>"):
        add_tokens(*build_tiny_llava(), init={"</NO>": "mean"})


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_stays_tied(build, tied):
    """Growing would part the two embeddings, and the saved model would differ from the one in memory."""
    model, processor = build(tied=tied)
    add_tokens(model, processor)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inputs.data_ptr() == outputs.data_ptr()) == tied


@pytest.mark.parametrize("build", BUILDERS)
def test_adding_twice_changes_nothing(build):
    """A second run of the command would wipe trained rows."""
    model, processor = build()
    first = add_tokens(model, processor)
    with torch.no_grad():
        model.get_input_embeddings().weight[first.un] = 3.0  # as if trained
    before = rows_of(model)
    assert add_tokens(model, processor, seed=1) == first
    assert all(torch.equal(a, b) for a, b in zip(before, rows_of(model), strict=True))


def test_the_seed_decides_the_rows():
    """Two runs of one recipe would start from different models."""
    rows = []
    for seed in (0, 0, 1):
        model, processor = build_tiny_llava()
        torch.manual_seed(torch.seed())
        ids = add_tokens(model, processor, seed=seed)
        rows.append(rows_of(model)[0][list(ids)])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_bfloat16_rows_are_close_to_the_mean():
    """A mean summed in bfloat16 over a large vocabulary is far off."""
    model, processor = build_tiny_llava()
    model = model.to(torch.bfloat16)
    used = model.get_input_embeddings().weight.float()
    ids = add_tokens(model, processor)
    new = model.get_input_embeddings().weight
    assert new.dtype == torch.bfloat16
    assert torch.allclose(new[ids.un].float(), used.mean(dim=0), atol=0.02 * 6 * 0.03)


@pytest.mark.parametrize("build", BUILDERS)
def test_saved_and_loaded_they_are_the_same(build, tmp_path):
    """Ids or rows would move when the checkpoint is read again."""
    model, processor = build()
    ids = add_tokens(model, processor)
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert find_token_ids(tokenizer) == ids
    assert all(torch.equal(a, b) for a, b in zip(rows_of(model), rows_of(again), strict=True))


def test_missing_tokens_are_named_with_the_mend():
    """The user would meet a KeyError deep in decoding."""
    tokenizer = train_tokenizer(SENTENCES, 400)
    with pytest.raises(ValueError, match=r"<SPAN>.*reverse tokens add BASE OUT"):
        find_token_ids(tokenizer)
    tokenizer.add_tokens([AddedToken(SPAN), AddedToken(CN)])
    with pytest.raises(ValueError, match="does not know </UN>"):
        find_token_ids(tokenizer)


@pytest.mark.parametrize("way", ["add_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("saved", [False, True])
def test_tags_saved_as_special_become_ordinary(way, saved, tmp_path):
    """`skip_special_tokens=True` would take every tag out of the answer before it is read."""
    tokenizer = train_tokenizer(SENTENCES, 400)
    if way == "add_tokens":
        tokenizer.add_tokens([AddedToken(tag, special=True) for tag in TAGS])
    else:
        tokenizer.add_special_tokens({"extra_special_tokens": list(TAGS)})
    if saved:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = find_token_ids(tokenizer)
    text = f"{SPAN}a dog{CN} and {SPAN}a cat{UN}"
    ensure_ordinary_tags(tokenizer)
    assert find_token_ids(tokenizer) == ids
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(encoded, skip_special_tokens=True) == text
    assert not set(TAGS) & set(tokenizer.all_special_tokens)
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.decode(encoded, skip_special_tokens=True) == text


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from([*TAGS, " ", "  ", ".", ", ", "\n", "a dog", "two cups", "É", "狗", "🐶"]),
            st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00▁"), max_size=5),
        ),
        max_size=12,
    )
)
def test_each_tag_is_one_id_and_text_stays_as_it_was(tagged_tokenizer, parts):
    """Tags that are cut into pieces cannot be watched, and lost spaces would change the answer."""
    text = "".join(parts)
    if remove_tags(text) != "".join(part for part in parts if part not in TAGS) or any(
        token in text for token in tagged_tokenizer.all_special_tokens
    ):
        return
    if isinstance(tagged_tokenizer, LlamaTokenizer):
        text = text.lstrip(" ")  # one space at the very start cannot be told from SentencePiece's own
    ids = tagged_tokenizer.encode(text, add_special_tokens=False)
    tags = find_token_ids(tagged_tokenizer)
    assert [i for i in ids if i in tags] == [
        dict(zip(TAGS, tags, strict=True))[p] for p in parts if p in TAGS
    ]
    assert tagged_tokenizer.decode(ids) == text


def test_legacy_sentencepiece_is_put_right(tmp_path):
    """A Vicuna tokenizer read the legacy way puts a space after every tag: `<SPAN> dog`."""
    tokenizer = train_tokenizer(SENTENCES, 600, style="sentencepiece")
    tokenizer.save_pretrained(tmp_path)
    settings_file = tmp_path / "tokenizer_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"legacy": True}))
    legacy = AutoTokenizer.from_pretrained(tmp_path)
    text = f"I see {SPAN}two cups{CN}, {SPAN}a dog{UN}."
    model, _ = build_tiny_llava(legacy)
    add_tokens(model, legacy)
    assert legacy.decode(legacy.encode(text, add_special_tokens=False)) == text
    legacy.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.encode(text) == legacy.encode(text)
