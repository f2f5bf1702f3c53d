"""The three tokens in a checkpoint: add them, find them, keep them ordinary.

`<SPAN>`, `</CN>` and `</UN>` are *ordinary* added tokens, so decoding with `skip_special_tokens=True` keeps
them. Their rows start at the mean of the rows in use, plus a little seeded noise: a row of plain noise has
logits unlike those of any trained token, and LoRA recipes that freeze the embeddings would never change it.

    add_tokens(model, processor)          # a checkpoint on disk: `reverse tokens add BASE OUT`
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AddedToken

from reverse.errors import DataError, RequestTypeError
from reverse.model_building import building_alone
from reverse.tokens.spans import CN, SPAN, TAGS, UN, TokenIds

NOISE = 0.02  # of the standard deviation of the rows in use: enough to tell the three rows apart


def find_token_ids(tokenizer: Any) -> TokenIds:
    """Return the ids of the three tokens.

    Args:
        tokenizer: a tokenizer, or a processor that holds one.

    Raises:
        DataError: a token is not in the vocabulary.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    vocabulary = tokenizer.get_vocab()
    missing = [tag for tag in TAGS if tag not in vocabulary]
    if missing:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'!r} does not know "
            f"{', '.join(missing)}: add the tokens with `reverse tokens add BASE OUT` and train the result"
        )
    return TokenIds(span=vocabulary[SPAN], cn=vocabulary[CN], un=vocabulary[UN])


def ensure_ordinary_tags(tokenizer: Any) -> None:
    """Make the three tokens ordinary, in place, if a checkpoint was saved with them as special tokens.

    `skip_special_tokens=True` would remove special tokens, and with them all phrases. Ids do not change.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    present = [tag for tag in TAGS if tag in tokenizer.get_vocab()]
    if all(_is_ordinary(tokenizer, tag) for tag in present):
        return
    tokenizer.add_tokens(
        [_make_token(tag) for tag in present]
    )  # if they were entries of the vocabulary proper
    # Adding a token again keeps its special flag; rewriting the state of the backend removes it.
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        if token["content"] in TAGS:
            token.update(special=False, normalized=False)
    backend.__setstate__(json.dumps(state).encode())
    if set(TAGS) & set(tokenizer.extra_special_tokens):
        others = [token for token in tokenizer.extra_special_tokens if token not in TAGS]
        tokenizer.extra_special_tokens = others
        tokenizer.init_kwargs.pop("extra_special_tokens", None)


def add_tokens(
    model: Any,
    tokenizer: Any,
    *,
    init: str | Mapping[str, str] = "mean",
    seed: int = 0,
) -> TokenIds:
    """Add the three tokens to a tokenizer and give them rows in the model, both in place.

    Spare embedding rows are used if the model has any (Qwen2.5-VL: 151,936 rows for about 151,700 ids;
    llava-1.5-hf: 32,064 for 32,002); otherwise input and output embeddings grow. They never shrink, and tied
    embeddings stay tied. Tokens that exist already keep their rows, so a second call changes nothing.

    Args:
        model: a transformers model with embeddings of shape (rows, hidden).
        tokenizer: its tokenizer, or a processor that holds one.
        init: the start of a new row: "mean" of the rows in use, or a phrase ("a correct phrase ends") for the
            mean of the rows of its tokens; or a mapping from a tag to either.
        seed: random seed of the noise added to each row (0.02 of the standard deviation of the rows in use).

    Raises:
        DataError: `init` names something that is not a tag, or a phrase without tokens; or the tokenizer
            changes the text around tags.
        RequestTypeError: `seed` is not a whole number.
    """
    if not isinstance(seed, int):
        raise RequestTypeError(f"seed must be a whole number, got {seed!r}: try 0")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    starts = _read_init(init)
    before = tokenizer.get_vocab()
    tokenizer.add_tokens([_make_token(tag) for tag in TAGS if tag not in before])
    ensure_ordinary_tags(tokenizer)
    new_tags = [tag for tag in TAGS if tag not in before]
    if new_tags:
        _fix_spaces(tokenizer)
    ids = find_token_ids(tokenizer)

    rows = model.get_input_embeddings().weight.shape[0]
    needed = max(tokenizer.get_vocab().values()) + 1
    to_fill = {tokenizer.convert_tokens_to_ids(tag): starts[tag] for tag in new_tags}
    to_fill |= {row: "mean" for row in range(rows, needed) if row not in to_fill}
    to_fill |= {i: starts[tag] for tag, i in zip(TAGS, ids, strict=True) if i >= rows}
    used = sorted(i for tag, i in before.items() if i < rows and i not in to_fill)
    if needed > rows:
        with building_alone(), torch.random.fork_rng(devices=[]):  # the rows drawn here are overwritten below
            model.resize_token_embeddings(needed, mean_resizing=False)
    _fill_rows(model, tokenizer, to_fill, used, seed)
    return ids


def check_token_init(tokenizer: Any, init: str | Mapping[str, str]) -> None:
    """Check `init` as `add_tokens` does, before a model is read for it. Raises DataError."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    for start in set(_read_init(init).values()) - {"mean"}:
        if not isinstance(start, str) or not tokenizer.encode(start, add_special_tokens=False):
            raise DataError(f"init={start!r} has no tokens: give a phrase, or 'mean'")


def _make_token(tag: str) -> AddedToken:
    return AddedToken(tag, special=False, normalized=False)


def _is_ordinary(tokenizer: Any, tag: str) -> bool:
    token = tokenizer.added_tokens_decoder.get(tokenizer.convert_tokens_to_ids(tag))
    return (
        token is not None
        and not token.special
        and not token.normalized
        and tag not in tokenizer.all_special_tokens
    )


def _read_init(init: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(init, str):
        return dict.fromkeys(TAGS, init)
    unknown = set(init) - set(TAGS)
    if unknown:
        raise DataError(f"init names {', '.join(sorted(unknown))}: the tokens are {', '.join(TAGS)}")
    return dict.fromkeys(TAGS, "mean") | dict(init)


def _fix_spaces(tokenizer: Any) -> None:
    """Make text around a tag decode to what was encoded, or raise DataError.

    SentencePiece tokenizers of the Llama-2 family with `legacy=True` put a space before the first piece after
    every added token: `<SPAN>dog` becomes `<SPAN> dog`
    (https://github.com/huggingface/transformers/pull/24565). With `legacy=False` only the start of a text
    gets one.
    """
    probe = f"I see {SPAN}two cups{CN}, {SPAN}a dog{UN}."
    if _round_trip(tokenizer, probe) == probe:
        return
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    if getattr(pre_tokenizer, "prepend_scheme", None) == "always":
        pre_tokenizer.prepend_scheme = "first"
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.legacy = False
        tokenizer.init_kwargs["legacy"] = False
    decoded = _round_trip(tokenizer, probe)
    if decoded != probe:
        raise DataError(
            f"the tokenizer turns {probe!r} into {decoded!r}: load it with legacy=False "
            "and without clean_up_tokenization_spaces, so that text around the tags stays as it is"
        )


def _round_trip(tokenizer: Any, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@torch.no_grad()
def _fill_rows(model: Any, tokenizer: Any, to_fill: dict[int, str], used: list[int], seed: int) -> None:
    """Write rows `to_fill` (id: start) of the input and output embeddings, each (rows, hidden)."""
    if not to_fill:
        return
    phrases = {}
    for start in set(to_fill.values()) - {"mean"}:
        phrases[start] = tokenizer.encode(start, add_special_tokens=False) if start.strip() else []
        if not phrases[start]:
            raise DataError(f"init={start!r} has no tokens: give a phrase, or 'mean'")
    weights = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None and output.weight.data_ptr() != weights[0].data_ptr():
        weights.append(output.weight)
    for which, weight in enumerate(weights):
        rows = weight.float()  # (rows, hidden)
        spread = rows[used].std(dim=0)  # (hidden,)
        mean = rows[used].mean(dim=0)
        for row, start in sorted(to_fill.items()):
            centre = mean if start == "mean" else rows[phrases[start]].mean(dim=0)
            generator = torch.Generator().manual_seed(((seed * 2 + which) * 1_000_003 + row) % 2**64)
            noise = torch.randn(centre.shape, generator=generator, dtype=torch.float32).to(centre.device)
            weight[row] = (centre + NOISE * spread * noise).to(weight.dtype)
