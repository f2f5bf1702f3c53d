"""Without these, the published Qwen2.5-VL checkpoint would lose tower, head or tags on its way to today."""

import json

import pytest
import torch
from safetensors.torch import save_file

import reverse
from reverse.models import family_of, load, prepare_inputs
from reverse.models.conversion.converter import convert
from reverse.tokens import find_token_ids
from tests.models import original as layout

OLD_QWEN = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def write_old_qwen(model, processor, folder, prefix=("visual.", "model.")):
    """The files of transformers 4.49: one flat configuration, the names of then, tags saved as special
    tokens."""
    processor.save_pretrained(folder)
    text, vision = model.config.text_config, model.config.vision_config
    config = {key: getattr(model.config, key) for key in OLD_QWEN}
    config |= {
        key: getattr(text, key)
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "rms_norm_eps",
            "num_key_value_heads",
            "vocab_size",
            "max_position_embeddings",
            "hidden_act",
            "initializer_range",
        )
    }
    config |= {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": text.rope_parameters["mrope_section"]},
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.49.0",
        "use_sliding_window": False,
        "eos_token_id": 2,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "in_chans": 3,
            **{
                key: getattr(vision, key)
                for key in (
                    "depth",
                    "fullatt_block_indexes",
                    "hidden_size",
                    "num_heads",
                    "intermediate_size",
                    "out_hidden_size",
                    "patch_size",
                    "spatial_merge_size",
                    "window_size",
                    "hidden_act",
                    "temporal_patch_size",
                    "tokens_per_second",
                )
            },
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 0], "repetition_penalty": 1.05})
    )
    (folder / "processor_config.json").unlink()
    pictures = processor.image_processor
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
                "min_pixels": pictures.size["shortest_edge"],
                "max_pixels": pictures.size["longest_edge"],
                "patch_size": pictures.patch_size,
                "merge_size": 2,
                "temporal_patch_size": 2,
                "image_mean": list(pictures.image_mean),
                "image_std": list(pictures.image_std),
            }
        )
    )
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    words = json.loads((folder / "tokenizer.json").read_text())
    for token in words["added_tokens"]:
        token["special"] = token["special"] or token["content"] in layout.TAGS
    (folder / "tokenizer.json").write_text(json.dumps(words))
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("model.visual."):
            state[prefix[0] + name.removeprefix("model.visual.")] = value.clone()
        elif name.startswith("model.language_model."):
            state[prefix[1] + name.removeprefix("model.language_model.")] = value.clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


@pytest.mark.parametrize(
    "prefix", [("visual.", "model."), ("model.visual.", "model.language_model.")], ids=["4.49", "4.52"]
)
def test_qwen_of_transformers_4(prefix, tiny, picture, tmp_path):
    """The published checkpoint would lose its tower, its tied head or its tags on the way to today."""
    model, processor = tiny("qwen", init_std=0.05)
    write_old_qwen(model, processor, tmp_path / "src", prefix)
    report = convert(tmp_path / "src", tmp_path / "out")
    assert report.found == "Qwen2.5-VL" and report.tokens == find_token_ids(processor)
    again, loaded = load(tmp_path / "out")
    inputs = prepare_inputs(processor, [picture()], [layout.QUESTION], family_of(model))
    now = prepare_inputs(loaded, [picture()], [layout.QUESTION], family_of(model))
    assert all(torch.equal(now[name], inputs[name]) for name in inputs)
    with torch.no_grad():
        assert (again(**now).logits - model(**inputs).logits).abs().max() <= 1e-5
    assert again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()
    assert again.generation_config.repetition_penalty == 1.05
    raw = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert not any(token["special"] for token in raw["added_tokens"] if token["content"] in layout.TAGS)
    result = reverse.generate(again, loaded, picture(), layout.QUESTION, max_new_tokens=5)
    assert result.usage is not None


def test_qwen_that_does_not_fit(tiny, tmp_path):
    """A head that was trained apart would be dropped, a missing layer be random."""
    model, processor = tiny("qwen")
    src = tmp_path / "src"
    state = write_old_qwen(model, processor, src)
    save_file(
        state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}, src / "model.safetensors"
    )
    convert(src, tmp_path / "out")
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1}, src / "model.safetensors")
    with pytest.raises(ValueError, match=r"ties head and embeddings"):
        convert(src, tmp_path / "out2")
    state.pop("visual.merger.ln_q.weight")
    save_file(state, src / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 tensor .*visual.merger.ln_q.weight"):
        convert(src, tmp_path / "out2")
    with pytest.raises(ValueError, match="needs neither --vision nor --base"):
        convert(src, tmp_path / "out2", vision=src)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]
