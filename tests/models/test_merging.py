"""Without these, a merged checkpoint could differ from what was trained, or be built on a wrong base."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from reverse.models import default_threshold, family_of, load, prepare_inputs, set_default_threshold
from reverse.models.adapters.adapter_card import CARD, base_fingerprint, write_adapter_card
from reverse.models.adapters.merging import merge_adapter
from reverse.tokens import find_token_ids

KINDS = {"llava": ("llava", False), "qwen": ("qwen", True), "qwen-untied": ("qwen", False)}
PROJECTOR = {"llava": "multi_modal_projector", "qwen": "merger"}


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def train(model, processor, family, seed=1, **settings):
    """The model under a LoRA with trained rows and projector, everything of it moved at random."""
    ids = list(find_token_ids(processor))
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)",
        trainable_token_indices={"embed_tokens": ids, "lm_head": ids},
        modules_to_save=[PROJECTOR[family]],
        **settings,
    )
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return wrapped.eval()


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tiny, tmp_path_factory, picture):
    """(base folder, adapter folder, inputs, the unmerged model's logits in float32 and float64, family)."""
    name, tied = KINDS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    model, processor = tiny(name, tied=tied, init_std=0.05)
    base = save(model, processor, root / "base")
    wrapped = train(model, processor, name)
    wrapped.save_pretrained(root / "adapter")
    write_adapter_card(root / "adapter", wrapped, processor, base=base, threshold=0.02)
    inputs = prepare_inputs(processor, [picture()], ["What is <SPAN>there</CN>?"], family_of(model))
    with torch.no_grad():
        logits = wrapped(**inputs).logits, wrapped.double()(**inputs).logits
    return base, root / "adapter", inputs, logits, name


@pytest.fixture
def llava(tiny, tmp_path):
    """(base folder, adapter folder, model) of a LLaVA, to be spoilt."""
    model, processor = tiny("llava")
    base = save(model, processor, tmp_path / "base")
    wrapped = train(model, processor, "llava")
    wrapped.save_pretrained(tmp_path / "adapter")
    write_adapter_card(tmp_path / "adapter", wrapped, processor, base=base)
    return base, tmp_path / "adapter", wrapped


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_merged_is_unmerged(trained, tmp_path):
    """Matrices, token rows or the projector would be left behind, and the checkpoint say other things."""
    base, adapter, inputs, (logits, logits64), _ = trained
    report = merge_adapter(adapter, tmp_path / "out")  # the card names the base
    model, processor = load(tmp_path / "out")
    merge_adapter(adapter, tmp_path / "out64", dtype=torch.float64)
    with torch.no_grad():
        assert (model(**inputs).logits - logits).abs().max() <= 1e-5
        assert (load(tmp_path / "out64")[0](**inputs).logits - logits64).abs().max() <= 1e-6
        before = load(base)[0](**inputs).logits
    assert (before - logits).abs().max() > 1e-2  # the adapter does something
    assert report.checked and report.layers > 0 and report.rows in (3, 6) and report.modules
    assert default_threshold(model) == 0.02
    assert find_token_ids(processor) == find_token_ids(load(base)[1])
    assert not list(tmp_path.glob(".out.*"))


def test_everything_trained_arrives(trained, tmp_path):
    """Equal logits on one prompt could hide a row of `</UN>` that was not merged."""
    base, adapter, _, _, name = trained
    merge_adapter(adapter, tmp_path / "out", base=base)
    merged, processor = load(tmp_path / "out")
    model = load(base)[0]
    ids = list(find_token_ids(processor))
    moved = {
        name
        for (name, old), new in zip(model.named_parameters(), merged.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    trained_parts = (
        PROJECTOR[name],
        "q_proj.weight",
        "v_proj.weight",
        "down_proj.weight",
        "embed_tokens",
        "lm_head",
    )
    assert all(any(part in name for part in trained_parts) for name in moved)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(one, get)().weight for one in (model, merged))
        assert (old != new).any(dim=1).nonzero().flatten().tolist() == sorted(ids)


def test_all_that_was_written_is_read(trained, tmp_path):
    """A name that stock transformers does not know would leave random weights behind."""
    merge_adapter(trained[1], tmp_path / "out")
    name = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0]
    _, info = getattr(transformers, name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_merged_checkpoint_needs_transformers_only(llava, tmp_path):
    """A server without peft and this library could not load the result."""
    merge_adapter(llava[1], tmp_path / "out")
    code = (
        "import sys; sys.modules['peft'] = sys.modules['reverse'] = None\n"
        "import transformers\n"
        f"path = {str(tmp_path / 'out')!r}\n"
        "transformers.LlavaForConditionalGeneration.from_pretrained(path)\n"
        "assert '<SPAN>' in transformers.AutoTokenizer.from_pretrained(path).get_vocab()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_the_fingerprint_is_the_bases(trained, tmp_path):
    """Training would change the fingerprint, and every right base be refused; or dtype would."""
    base, adapter, *_ = trained
    model, _ = load(base)
    recorded = json.loads((adapter / CARD).read_text())["fingerprint"]
    assert base_fingerprint(model) == recorded
    assert base_fingerprint(model, kind="plain") != recorded
    assert base_fingerprint(model.to(torch.bfloat16)) == recorded
    assert base_fingerprint(PeftModel.from_pretrained(load(base)[0], adapter)) == recorded
    with torch.no_grad():
        model.get_parameter("model.language_model.layers.1.mlp.up_proj.weight").add_(0.1)
    assert base_fingerprint(model) != recorded


def test_dtype_of_the_merged(trained, tmp_path):
    """A 7B model would come out twice as large, or the option do nothing."""
    merge_adapter(trained[1], tmp_path / "out", dtype=torch.bfloat16)
    files = (tmp_path / "out").glob("*.safetensors")
    assert {value.dtype for file in files for value in load_file(file).values()} == {torch.bfloat16}


def test_float16_is_the_same_base(llava, tmp_path):
    """Half precision rounds the weights that are compared: the right base would be refused."""
    _, adapter, wrapped = llava
    merged = merge_adapter(adapter, tmp_path / "half", dtype="float16")
    assert merged.checked
    assert {t.dtype for t in load_file(tmp_path / "half/model.safetensors").values()} == {torch.float16}
    # … and so it is where training itself was in float16
    card = json.loads((adapter / CARD).read_text())
    half = wrapped.half()
    (adapter / CARD).write_text(
        json.dumps(card | {"fingerprint": base_fingerprint(half), "dtype": "float16"})
    )
    assert merge_adapter(adapter, tmp_path / "again").checked


def test_packed_weights_leave_out_what_is_packed(llava):
    """A base in four bits has other numbers in its matrices, and would pass for another base."""
    _, _, wrapped = llava
    plain = base_fingerprint(wrapped, kind="plain")

    class Params4bit(torch.nn.Parameter):
        pass

    layer = next(m for n, m in wrapped.named_modules() if n.endswith("gate_proj"))
    packed = torch.zeros(8, 1)
    layer.weight = Params4bit(packed, requires_grad=False)
    assert type(layer.weight).__name__ == "Params4bit"
    assert base_fingerprint(wrapped) == plain


def other_weights(base, adapter, tiny):
    model, processor = tiny("llava", seed=7)
    save(model, processor, base)


def other_family(base, adapter, tiny):
    shutil.rmtree(base)
    save(*tiny("qwen"), base)


def other_shapes(base, adapter, tiny):
    (adapter / CARD).unlink()
    save(*tiny("llava", text={"hidden_size": 32}), base)


def fewer_layers(base, adapter, tiny):
    (adapter / CARD).unlink()
    save(*tiny("llava", text={"num_hidden_layers": 1}), base)


def no_tokens(base, adapter, tiny):
    from experiments.tiny_models import build_tiny_llava

    save(*build_tiny_llava(), base)


def other_vocabulary(base, adapter, tiny):
    from experiments.tiny_models import SENTENCES, train_tokenizer

    model, processor = tiny("llava", tokenizer=train_tokenizer(SENTENCES[:2], 400))
    save(model, processor, base)


def same_ids_other_words(base, adapter, tiny):
    """The adapter brings a tokenizer whose words have other ids, the three tokens the same."""
    _, processor = load(base)
    processor.save_pretrained(adapter)
    file = adapter / "tokenizer.json"
    state = json.loads(file.read_text())
    vocabulary = state["model"]["vocab"]
    one, two = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(state))


WRONG = {
    other_weights: "has other weights than the base",
    other_family: "trained on 'llava'.*is Qwen2.5-VL",
    other_shapes: "does not fit LlavaForConditionalGeneration",
    fewer_layers: "does not fit .*layers.1",
    no_tokens: r"does not know <SPAN>.*reverse tokens add",
    other_vocabulary: "vocabulary is another one",
    same_ids_other_words: "tokenizer that gives .* differ",
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda one: one.__name__)
def test_a_wrong_base_is_refused(spoil, llava, tiny, tmp_path):
    """A LoRA on a foreign base talks nonsense, and nothing says why."""
    base, adapter, _ = llava
    spoil(base, adapter, tiny)
    with pytest.raises(ValueError, match=WRONG[spoil]):
        merge_adapter(adapter, tmp_path / "out", base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_folders_that_are_no_adapter(llava, tmp_path):
    """An empty folder, two adapters or another method would end in a traceback of peft."""
    base, adapter, _ = llava
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no adapter_config.json .it holds nothing"):
        merge_adapter(tmp_path / "empty", tmp_path / "out", base=base)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        merge_adapter(tmp_path / "nowhere", tmp_path / "out", base=base)
    shutil.copytree(adapter, tmp_path / "run" / "one")
    report = merge_adapter(tmp_path / "run", tmp_path / "out")
    assert report.layers == 6
    shutil.copytree(adapter, tmp_path / "run" / "two")
    with pytest.raises(ValueError, match=r"holds 2 adapters .'one', 'two'"):
        merge_adapter(tmp_path / "run", tmp_path / "out2", base=base)
    edit(adapter / "adapter_config.json", peft_type="IA3")
    with pytest.raises(ValueError, match="type 'IA3': only LoRA"):
        merge_adapter(adapter, tmp_path / "out2", base=base)
    (adapter / "adapter_model.safetensors").unlink()
    edit(adapter / "adapter_config.json", peft_type="LORA")
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model.safetensors or"):
        merge_adapter(adapter, tmp_path / "out2", base=base)
    with pytest.raises(FileExistsError, match="not empty"):
        merge_adapter(adapter, tmp_path / "out")


def test_damaged_adapters(llava, tmp_path):
    """A file cut off, a matrix missing or a NaN would make a checkpoint that looks whole."""
    _, adapter, _ = llava
    file = adapter / "adapter_model.safetensors"
    whole, state = file.read_bytes(), load_file(file)
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged or cut off"):
        merge_adapter(adapter, tmp_path / "out")
    file.unlink()
    name = next(name for name in state if "lora_B" in name)
    for spoilt, words in (
        ({key: value for key, value in state.items() if key != name}, "it has no .*lora_B"),
        (state | {"base_model.model.other.lora_A.weight": torch.zeros(1)}, "unknown is"),
        (state | {name: state[name] * float("nan")}, "not finite"),
    ):
        torch.save(spoilt, adapter / "adapter_model.bin")
        with pytest.raises(ValueError, match=words):
            merge_adapter(adapter, tmp_path / "out")
    torch.save(state, adapter / "adapter_model.bin")
    merge_adapter(adapter, tmp_path / "out")


class Evil:
    def __reduce__(self):
        return (open, ("ran.txt", "w"))


def test_a_pickle_that_runs_code_is_refused(llava, tmp_path, monkeypatch):
    """Merging a stranger's adapter would run the stranger's code."""
    base, adapter, _ = llava
    monkeypatch.chdir(tmp_path)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"a": Evil()}, adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match="something other than tensors"):
        merge_adapter(adapter, tmp_path / "out", base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_unnamed_base_is_refused(llava, tmp_path):
    """The hub would be asked for an empty name."""
    _, adapter, _ = llava
    (adapter / CARD).unlink()
    edit(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(FileNotFoundError, match="name it with --base"):
        merge_adapter(adapter, tmp_path / "out")


def test_the_threshold_of_the_base_stays(llava, tmp_path):
    """A calibrated base would fall back to its family's threshold."""
    base, adapter, _ = llava
    model, processor = load(base)
    set_default_threshold(model, 0.3)
    save(model, processor, base)
    merge_adapter(adapter, tmp_path / "out")
    assert default_threshold(load(tmp_path / "out")[0]) == 0.3
    edit(adapter / CARD, threshold=2)
    with pytest.raises(ValueError, match="threshold 2"):
        merge_adapter(adapter, tmp_path / "out2")
