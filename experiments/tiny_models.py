"""Build tiny LLaVA and Qwen2.5-VL: the real classes, processors and chat templates, with small sizes.

They serve tests (random weights, a forward in milliseconds on a CPU) and the scenes, on which they are
trained. Nothing else in the library knows that they are tiny.

    >>> from experiments.tiny_models import build_tiny_llava
    >>> model, processor = build_tiny_llava(seed=0)

The processors use the PIL image backend: torchvision's pixels differ slightly.
"""

import io
import tempfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from reverse.errors import RequestError
from reverse.models.families import LLAVA, QWEN2_5_VL, Family
from reverse.models.processors.picture_processors import Qwen2_5_VLProcessor, pil_image_processor

SPECIAL_TOKENS = {  # by the name of the family, in the order of their ids
    LLAVA.name: ("<unk>", "<s>", "</s>", "<pad>", "<image>"),
    QWEN2_5_VL.name: (
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
        "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    ),
}  # fmt: skip
_ROLES = {  # of special tokens
    LLAVA.name: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    QWEN2_5_VL.name: {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
_TEXT_SIZES = {"max_position_embeddings": 1024}

SENTENCES = (
    "USER: Describe this image. ASSISTANT: The image shows a dog and two cups on a table.",
    "USER: Is there a cat in the picture? ASSISTANT: No, there is no cat, but there is a horse.",
    "USER: How many people are in the image? ASSISTANT: There are three people near the car.",
    "USER: What is on the left? ASSISTANT: A red bus stands in front of a traffic light.",
    "system You are a helpful assistant. user What colour is the umbrella? assistant It is blue.",
    "(Hint: potential incorrect phrases -> two cups, a chair) Please answer yes or no.",
    "A man rides a bicycle down the street; a bird sits on the bench, and a boat lies at the shore.",
    "In the kitchen there is a bottle, a bowl with an apple and an orange, a knife and a spoon.",
)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 600,
    *,
    style: str = "bytes",
    family: Family = LLAVA,
) -> Any:
    """Train a small tokenizer on `texts`; text that never occurred in them still encodes and decodes exactly.

    Args:
        texts: the vocabulary is learnt from them.
        vocab_size: the largest number of ids, special tokens included; at least 300 (256 bytes are in it).
        style: "bytes", a byte-level BPE as of Llama-3 and Qwen, or "sentencepiece", a SentencePiece BPE with
            byte fallback as of Llama-2 and Vicuna (then a `LlamaTokenizer`; LLaVA only).
        family: decides the special tokens.

    Returns:
        A tokenizer of transformers, padding on the left. LLaVA's puts `<s>` before a text, Qwen's nothing.

    Raises RequestError for an unknown style, a vocabulary smaller than 300, or "sentencepiece" for
    Qwen2.5-VL.
    """
    if vocab_size < 300:
        raise RequestError(
            f"vocab_size must be at least 300, got {vocab_size}: 256 bytes and the special tokens"
        )
    if style == "bytes":
        return _train_bytes(texts, vocab_size, family)
    if style == "sentencepiece" and family is LLAVA:
        return _train_sentencepiece(texts, vocab_size)
    raise RequestError(
        f"style must be 'bytes' or, for LLaVA, 'sentencepiece', got {style!r} for {family.name}"
    )


def build_tiny_llava(
    tokenizer: Any = None,
    *,
    seed: int = 0,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    image_size: int = 112,
    patch_size: int = 16,
    tied: bool = False,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA-1.5 with a CLIP tower and a Llama, random weights in float32, the same for the same seed.

    Args:
        tokenizer: from `train_tokenizer`; by default a byte-level one of 600 ids.
        seed: of the weights.
        vision: fields of `CLIPVisionConfig` other than the defaults (2 layers of 64, 4 heads).
        text: fields of `LlamaConfig` other than the defaults (2 layers of 64, 4 heads, 1,024 positions).
        image_size: pictures are brought to this many pixels a side (shorter side, then cropped).
        patch_size: a picture takes `(image_size // patch_size) ** 2` tokens.
        tied: whether the head shares the embeddings' rows (it does not in LLaVA-1.5).

    Returns:
        The model in eval mode, and its `LlavaProcessor`.
    """
    tokenizer = tokenizer if tokenizer is not None else _default_tokenizer(LLAVA)
    side = image_size // patch_size
    token_of = _special_ids(tokenizer)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **_sizes(vision, image_size=image_size, patch_size=patch_size, projection_dim=64)
        ),
        text_config=LlamaConfig(**_sizes(text, vocab_size=len(tokenizer), **_TEXT_SIZES, **token_of)),
        image_token_index=tokenizer.convert_tokens_to_ids(LLAVA.image_token),
        image_seq_length=side**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",  # the class token is dropped
        tie_word_embeddings=tied,
    )
    model = _random(LlavaForConditionalGeneration, config, seed)
    model.generation_config = GenerationConfig(**token_of)
    processor = LlavaProcessor(
        image_processor=pil_image_processor(
            "CLIPImageProcessor",
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
        ),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token
        image_token=LLAVA.image_token,
        chat_template=LLAVA.chat_template,
    )
    return model, processor


def build_tiny_qwen(
    tokenizer: Any = None,
    *,
    seed: int = 0,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    image_size: int = 112,
    patch_size: int = 14,
    tied: bool = True,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Any]:
    """A Qwen2.5-VL, random weights in float32, the same for the same seed.

    Args:
        tokenizer: from `train_tokenizer(family=QWEN2_5_VL)`; by default a byte-level one of 600 ids.
        seed: of the weights.
        vision: fields of the vision configuration other than the defaults (2 layers of 64, 4 heads).
        text: fields of the text configuration other than the defaults (2 layers of 64, 4 heads of which 2
            hold keys and values, 1,024 positions).
        image_size: the largest picture has `image_size ** 2` pixels; proportions are kept, and smaller
            pictures stay smaller (down to four merged patches).
        patch_size: a picture takes one token for each two by two patches of this side.
        tied: whether the head shares the embeddings' rows (as in Qwen2.5-VL-3B; 7B does not).

    Returns:
        The model in eval mode, and its processor: `Qwen2_5_VLProcessor`, which takes pictures and no videos.
    """
    tokenizer = tokenizer if tokenizer is not None else _default_tokenizer(QWEN2_5_VL)
    token_of = _special_ids(tokenizer)
    text_sizes = _sizes(text, num_key_value_heads=2, vocab_size=len(tokenizer), **_TEXT_SIZES, **token_of)
    head = text_sizes["hidden_size"] // text_sizes["num_attention_heads"]
    text_sizes.setdefault(
        "rope_parameters",
        {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": _mrope_section(head // 2)},
    )
    vision_sizes = _sizes(
        vision,
        patch_size=patch_size,
        window_size=8 * patch_size,
        out_hidden_size=text_sizes["hidden_size"],
    )
    vision_sizes["depth"] = vision_sizes.pop("num_hidden_layers")
    vision_sizes["num_heads"] = vision_sizes.pop("num_attention_heads")
    vision_sizes.setdefault("fullatt_block_indexes", [vision_sizes["depth"] - 1])
    config = Qwen2_5_VLConfig(
        text_config=text_sizes,
        vision_config=vision_sizes,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    model = _random(Qwen2_5_VLForConditionalGeneration, config, seed)
    ends = [token_of["eos_token_id"], tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=token_of["pad_token_id"])
    size = {"shortest_edge": (4 * patch_size) ** 2, "longest_edge": image_size**2}  # pixels of a picture
    pictures = pil_image_processor("Qwen2VLImageProcessor", size=size, patch_size=patch_size)
    return model, Qwen2_5_VLProcessor(pictures, tokenizer, chat_template=QWEN2_5_VL.chat_template)


@lru_cache(maxsize=2)
def _default_tokenizer_state(family: Family) -> str:
    return _train_bytes(SENTENCES, 600, family).backend_tokenizer.to_str()


def _default_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A fresh tokenizer at each call: adding tokens to it changes it."""
    from tokenizers import Tokenizer

    return _wrap(Tokenizer.from_str(_default_tokenizer_state(family)), family)


def _train_bytes(texts: Iterable[str], vocab_size: int, family: Family) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = SPECIAL_TOKENS[family.name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if "<s>" in special:
        bos = special.index("<s>")
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
        )
    return _wrap(backend, family)


def _wrap(backend: Any, family: Family) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=10**9,
        **_ROLES[family.name],
    )


def _train_sentencepiece(texts: Iterable[str], vocab_size: int) -> LlamaTokenizer:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type="bpe",
        vocab_size=vocab_size - 2,  # <pad> and <image> come after
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(written.getvalue())
        tokenizer = LlamaTokenizer.from_pretrained(folder, padding_side="left", add_bos_token=True)
    tokenizer.name_or_path = ""
    tokenizer.add_tokens([AddedToken("<pad>", special=True), AddedToken("<image>", special=True)])
    tokenizer.pad_token = "<pad>"
    return tokenizer


def _special_ids(tokenizer: Any) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _sizes(given: Mapping[str, Any] | None, **fields: Any) -> dict[str, Any]:
    """Two layers of 64 with 4 heads, unless `fields` or, above all, the caller's `given` say otherwise."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**small, **fields, **(given or {})}


def _mrope_section(half_head: int) -> list[int]:
    """Frequencies for time, height and width: 1 to 1.5 to 1.5, as published (16, 24, 24 of 64)."""
    side = 3 * half_head // 8
    return [half_head - 2 * side, side, side]


def _random(model_class: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()
