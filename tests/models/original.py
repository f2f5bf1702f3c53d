"""Randomly initialised checkpoints in the original LLaVA layout, written by hand, and what they compute.

Nothing of the library is used here: names, files and arithmetic are the layout's own.
"""

import io
import json
from dataclasses import dataclass, field

import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TAGS = ("<SPAN>", "</CN>", "</UN>")
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
LLAMA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
SENTENCES = [VICUNA_SYSTEM, LLAMA_SYSTEM, "Describe this image. USER: ASSISTANT: two cups shown, a dog."] * 3
QUESTION = "Describe this image."
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIDE, PATCH = 28, 14
LLAMA_3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
LLAMA_3_TEMPLATE = (  # as far as it concerns chats of text
    "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' }}"
    "{{ messages[0]['content'] | trim }}{{ '<|eot_id|>' }}"
    "{% for m in messages[1:] %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@dataclass
class Original:
    """The parts of a checkpoint, in memory."""

    llama: LlamaForCausalLM
    clip: CLIPVisionModel
    first: torch.nn.Linear
    second: torch.nn.Linear
    encode: object  # text without special tokens → ids
    bos: int
    fields: dict = field(default_factory=dict)  # of config.json

    def logits(self, picture, before, after):
        """Of `before`, the picture, `after`: tower, two matrices, Llama. (1, length, rows)"""
        with torch.no_grad():
            states = self.clip(pixels(picture), output_hidden_states=True).hidden_states[-2][:, 1:]
            features = self.second(torch.nn.functional.gelu(self.first(states)))  # (1, patches, hidden)
            embed = self.llama.get_input_embeddings()
            left, right = (
                embed(torch.tensor([ids])) for ids in ([self.bos, *self.encode(before)], self.encode(after))
            )
            return self.llama(inputs_embeds=torch.cat([left, features, right], dim=1)).logits

    def ids(self, before, after, image):
        patches = (SIDE // PATCH) ** 2
        return [self.bos, *self.encode(before), *[image] * patches, *self.encode(after)]


def pixels(picture):
    """Padded to a square with the mean colour, then scaled: what training did to every picture."""
    width, height = picture.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in MEAN))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    clip = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return clip(square, return_tensors="pt")["pixel_values"]


def make(rows, encode, bos, *, seed=0, **llama):
    """A checkpoint of random weights with `rows` embedding rows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.1,
        **llama,
    )
    clip = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    fields = {
        "vocab_size": rows,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    first, second = torch.nn.Linear(24, 32), torch.nn.Linear(32, 32)
    return Original(
        LlamaForCausalLM(config).eval(), CLIPVisionModel(clip).eval(), first, second, encode, bos, fields
    )


def config_json(original, **changes):
    multimodal = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": 24,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "tokenizer_padding_side": "right",
        "transformers_version": "4.43.1",
    }
    return json.dumps(original.fields | multimodal | changes)


def tower_state(original):
    """The tower's tensors as CLIP has always been saved: below `vision_model`."""
    state = original.clip.state_dict()
    return {
        name if name.startswith("vision_model.") else f"vision_model.{name}": value
        for name, value in state.items()
    }


def projector_state(original, prefix="model."):
    return {
        f"{prefix}mm_projector.{place}.{name}": value.detach().clone()
        for place, layer in ((0, original.first), (2, original.second))
        for name, value in layer.named_parameters()
    }


def full_state(original, tower=False):
    state = {name: value.clone() for name, value in original.llama.state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # old checkpoints have such buffers
    state |= projector_state(original)
    if tower:
        state |= {
            f"model.vision_tower.vision_tower.{name}": value for name, value in tower_state(original).items()
        }
    return state


def write_tower(original, folder):
    folder.mkdir(parents=True)
    torch.save(tower_state(original) | {"logit_scale": torch.ones(1)}, folder / "pytorch_model.bin")
    vision = {
        key: getattr(original.clip.config, key)
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
        )
    }
    (folder / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": vision, "text_config": {}})
    )
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": SIDE,
        "crop_size": SIDE,
        "resample": 3,
        "image_mean": MEAN,
        "image_std": STD,
        "do_resize": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def write_full(original, folder, kind="bin", shards=3, tower=False, **changes):
    """A full checkpoint, in `shards` files of `kind` and an index, or in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config_json(original, **changes))
    state = full_state(original, tower)
    stem, ending, save = (
        ("pytorch_model", "bin", torch.save) if kind == "bin" else ("model", "safetensors", save_file)
    )
    names = list(state)
    weight_map = {}
    for number in range(shards):
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{ending}"
        part = {name: state[name] for name in names[number::shards]}
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder


def write_vicuna_tokenizer(folder, legacy=None, tags=TAGS):
    """tokenizer.model as SentencePiece writes it, and the settings of transformers 4.43 around it."""
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    first = pieces.get_piece_size()
    added = {
        str(first + i): {
            "content": tag,
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
            "special": False,
        }
        for i, tag in enumerate(tags)
    }
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": 2048,
        "padding_side": "right",
        "added_tokens_decoder": added,
    }
    if legacy is not None:
        settings["legacy"] = legacy
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps({tag: first + i for i, tag in enumerate(tags)}))
    return pieces, first + len(tags)


def write_llama_tokenizer(folder, template=LLAMA_3_TEMPLATE):
    """A byte-level BPE with Llama-3's special tokens, then the tags, which someone saved as special ones."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in (*LLAMA_3_SPECIAL, *TAGS)])
    bos = backend.token_to_id("<|begin_of_text|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A $B",
        special_tokens=[("<|begin_of_text|>", bos)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=template,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer, bos
