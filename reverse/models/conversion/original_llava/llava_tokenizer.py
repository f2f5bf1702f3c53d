"""Tokenizer and chat template of a converted checkpoint: the same ids as in training for the same question.

The three tokens keep their ids, and `<image>` comes after them. Two things are kept that loading the
tokenizer alone would lose:

- The original reads Llama's SentencePiece the "legacy" way: every stretch of text after an added token begins
  with a space of its own (`</CN>.` is `</CN>`, `▁`, `.`), even where a space is there already. Decoding takes
  exactly that space away again, so that text comes back as it was.
- It tokenises the texts before and after a picture separately. If the tokenizer needs a space to give the
same
  ids, the template writes it; both are compared when the checkpoint is made.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, normalizers
from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerFast

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.settings_files import read_settings
from reverse.models.families import LLAVA
from reverse.models.processors.template_checks import check_bounded
from reverse.tokens.spans import TAGS
from reverse.tokens.vocabulary import ensure_ordinary_tags

TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_PADS = ("<pad>", "<|finetune_right_pad_id|>", "<unk>")
_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")  # any of them ends an answer of Llama-3.1

# What the published checkpoints were trained to see before the first question.
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_LLAMA_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

_PARTS = (
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
)
_SYSTEM = (
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set message = messages[0] %}"
    + _PARTS
    + "{% set system = parts | map(attribute='text') | join(' ') %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set system = SYSTEM_HERE %}{% set turns = messages %}{% endif %}"
)
_IMAGES = (
    "{% for part in parts %}{% if part['type'] == 'image' %}{{ '<image>GAP_HERE\n' }}{% endif %}{% endfor %}"
)
_TEXTS = "{% set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"

# "<s>A chat … USER: <image>\nDescribe this image. ASSISTANT: A dog.</s>"
_VICUNA = (
    _SYSTEM + "{{ bos_token + 'LEAD_HERE' + system + ' ' }}"
    "{% for message in turns %}" + _PARTS + _TEXTS + "{% if message['role'] == 'user' %}"
    "{{ 'USER: ' }}" + _IMAGES + "{{ text + ' ' }}"
    "{% else %}{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + text + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n…<|eot_id|><|start_header_id|>user…"
_LLAMA_3 = (
    _SYSTEM + "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nDATES_HERE' }}"
    "{{ system | trim }}{{ '<|eot_id|>' }}"
    "{% for message in turns %}"
    + _PARTS
    + _TEXTS
    + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ text | trim }}{{ '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}" + _IMAGES + "{{ text | trim }}{{ '<|eot_id|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_PROBE = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": "Where?"},
]


def read_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerFast, str | None]:
    """Read the tokenizer of a folder of the original layout, with `<image>`, and its chat template if it has
    one.

    It pads on the left. Raises MissingFileError if there is no tokenizer, CheckpointError for damaged files.
    """
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise MissingFileError(
            f"{str(folder)!r} has no tokenizer ({' or '.join(TOKENIZERS)}): name the base that was trained "
            "with --base BASE (base=)"
        )
    file = folder / "tokenizer_config.json"
    settings = read_settings(file) if file.is_file() else {}
    try:
        if (folder / "tokenizer.json").is_file():
            found = PreTrainedTokenizerFast.from_pretrained(str(folder), trust_remote_code=False)
        else:
            legacy = settings.get("legacy") is not False  # transformers 4 took an absent field for true
            found = LlamaTokenizer.from_pretrained(str(folder), legacy=legacy, trust_remote_code=False)
        if getattr(found.backend_tokenizer.pre_tokenizer, "prepend_scheme", None) == "always":
            _read_as_legacy(found.backend_tokenizer)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the tokenizer of {str(folder)!r} is damaged ({error!s:.200}): fetch it again"
        ) from error
    template = found.chat_template
    found.add_tokens([AddedToken(LLAVA.image_token, special=True, normalized=False)])
    ensure_ordinary_tags(found)
    if _is_legacy(found.backend_tokenizer):
        _decode_as_written(found.backend_tokenizer)
    vocabulary = found.get_vocab()
    pad = found.pad_token or next((token for token in _PADS if token in vocabulary), found.eos_token)
    named = {name: getattr(found, name) for name in ("bos_token", "eos_token", "unk_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=found.backend_tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=settings.get("model_max_length") or 10**9,
        pad_token=pad,
        **{name: token for name, token in named.items() if token is not None},
    )
    return tokenizer, template


def special_ids(tokenizer: Any) -> dict[str, Any]:
    """Return the ids that begin a text, end an answer (for Llama-3.1 also those that end a turn) and pad."""
    vocabulary = tokenizer.get_vocab()
    ends = sorted({tokenizer.eos_token_id, *(vocabulary[token] for token in _ENDS if token in vocabulary)})
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": tokenizer.pad_token_id,
    }


def chat_template(tokenizer: Any, own: str | None) -> str:
    """Return the chat template of training: Vicuna v1, or Llama-3's with or without dates.

    The tokens of the vocabulary and the tokenizer's `own` template decide. Raises CheckpointError if none
    fits.
    """
    vocabulary = tokenizer.get_vocab()
    if "<|start_header_id|>" in vocabulary and "<|eot_id|>" in vocabulary:
        return _llama_3(tokenizer, own)
    if tokenizer.bos_token == "<s>" and tokenizer.eos_token == "</s>":
        lead = _find_gap(tokenizer, tokenizer.bos_token, _VICUNA_SYSTEM)
        return _fill(_VICUNA, tokenizer, SYSTEM_HERE=json.dumps(_VICUNA_SYSTEM), LEAD_HERE=lead)
    raise CheckpointError(
        f"the tokenizer begins a text with {tokenizer.bos_token!r} and ends it with {tokenizer.eos_token!r}, "
        "which is neither Vicuna's (<s>, </s>) nor Llama-3's (<|start_header_id|>, <|eot_id|>): its chats "
        "are not known"
    )


def _llama_3(tokenizer: Any, own: str | None) -> str:
    fields = {"SYSTEM_HERE": json.dumps(_LLAMA_SYSTEM)}
    dated, plain = (_fill(_LLAMA_3, tokenizer, DATES_HERE=dates, **fields) for dates in (_LLAMA_DATES, ""))
    if own is None:
        return dated
    check_bounded(tokenizer.name_or_path or "the checkpoint", own, {"bos_token": tokenizer.bos_token})
    wanted = _render(tokenizer, own)
    for template in (dated, plain):
        if _render(tokenizer, template) == wanted:
            return template
    raise CheckpointError(
        f"the tokenizer's own chat template writes {wanted[:160]!r}…, and Llama-3.1's is "
        f"{_render(tokenizer, dated)[:160]!r}…: take chat_template out of its tokenizer_config.json to use "
        "that one"
    )


def _render(tokenizer: Any, template: str) -> str:
    return tokenizer.apply_chat_template(
        _PROBE, chat_template=template, tokenize=False, add_generation_prompt=True
    )


def _fill(template: str, tokenizer: Any, **fields: str) -> str:
    fields["GAP_HERE"] = _find_gap(tokenizer, LLAVA.image_token, "\nWho?")
    for field, value in fields.items():
        template = template.replace(field, value)
    return template


def _find_gap(tokenizer: Any, token: str, text: str) -> str:
    """Find the text ("" or a space) after `token` with which `text` gets the same ids as alone."""
    alone = tokenizer.encode(text, add_special_tokens=False)
    for gap in ("", " "):
        if tokenizer.encode(token + gap + text, add_special_tokens=False)[1:] == alone:
            return gap
    raise CheckpointError(
        f"the tokenizer gives {text!r} other ids after {token!r} than alone, with and without a space: "
        "prompts cannot be what training saw"
    )


def _is_legacy(backend: Any) -> bool:
    """Whether the tokenizer puts a space before every stretch of text, whatever it begins with."""
    return backend.normalizer is not None and "Prepend" in str(backend.normalizer)


def _read_as_legacy(backend: Any) -> None:
    """Put a space before every stretch of text, as SentencePiece does even if there is one already.

    The `Metaspace` that transformers 5 uses instead leaves it out then.
    """
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None


def _decode_as_written(backend: Any) -> None:
    """Remove the space that the tokenizer puts after a tag when it decodes."""
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(content=" ", left=1),
    ]
    steps += [decoders.Replace(Regex(f"{tag} "), tag) for tag in TAGS]
    backend.decoder = decoders.Sequence(steps)
