"""Without these, a converted checkpoint could say other things than the one it was made from."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoProcessor, LlavaForConditionalGeneration
from typer.testing import CliRunner

import reverse
from reverse.cli import app
from reverse.models import family_of, load, prepare_inputs
from reverse.models.conversion.converter import convert
from reverse.tokens import TokenIds, find_token_ids
from reverse.training.data.encoding import Encoder, Turn
from tests.models import original as layout

BEFORE = f"{layout.VICUNA_SYSTEM} USER: "
AFTER = f"\n{layout.QUESTION} ASSISTANT:"
WIDE = (60, 40)


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    """(parts in memory, folder with tokenizer and tower) of a Vicuna-like checkpoint with the three
    tokens."""
    root = tmp_path_factory.mktemp("vicuna")
    pieces, rows = layout.write_vicuna_tokenizer(root / "words")
    parts = layout.make(rows, pieces.encode, bos=1)
    layout.write_tower(parts, root / "tower")
    return parts, root


@pytest.fixture
def write(vicuna, tmp_path):
    """`write(**how)`: a full checkpoint in a fresh folder; (folder, tower)."""
    parts, root = vicuna

    def call(name="src", **how):
        folder = layout.write_full(parts, tmp_path / name, **how)
        for file in (root / "words").iterdir():
            shutil.copyfile(file, folder / file.name)
        return folder, root / "tower"

    return call


@pytest.fixture(scope="module")
def converted(vicuna, tmp_path_factory):
    """A converted checkpoint, only to be read."""
    parts, root = vicuna
    folder = tmp_path_factory.mktemp("converted")
    layout.write_full(parts, folder / "src")
    for file in (root / "words").iterdir():
        shutil.copyfile(file, folder / "src" / file.name)
    convert(folder / "src", folder / "out", vision=root / "tower")
    return folder / "out"


def check(out, parts, picture, before=BEFORE, after=AFTER):
    """Prompt ids, pixels and logits of the folder `out` are those of `parts`."""
    model, processor = load(out)
    picture = picture(size=WIDE)
    inputs = prepare_inputs(processor, [picture], [layout.QUESTION], family_of(model))
    image = model.config.image_token_index
    assert inputs["input_ids"][0].tolist() == parts.ids(before, after, image)
    assert torch.equal(inputs["pixel_values"], layout.pixels(picture))
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = parts.logits(picture, before, after)
    rows = expected.shape[-1]
    assert (logits[..., :rows] - expected).abs().max() <= 1e-5
    assert expected.std() > 0.1
    assert find_token_ids(processor) == TokenIds(rows - 3, rows - 2, rows - 1)
    assert image == rows and logits.shape[-1] == rows + 1
    return model, processor


@pytest.mark.parametrize(
    "how",
    [
        {"kind": "bin", "shards": 3},
        {"kind": "safetensors", "shards": 2},
        {"kind": "safetensors", "shards": 1},
        {"kind": "bin", "shards": 1, "model_type": "llava"},
    ],
    ids=["bin shards", "safetensors shards", "one file", "the model_type of the first checkpoints"],
)
def test_a_full_checkpoint(how, write, vicuna, picture, tmp_path):
    """A matrix under a wrong name, a padded picture cropped or a token beside its row changes every
    answer."""
    src, tower = write(**how)
    report = convert(src, tmp_path / "out", vision=tower)
    check(tmp_path / "out", vicuna[0], picture)
    assert report.found == "original LLaVA" and report.tokens is not None
    assert not list(tmp_path.glob(".out.*"))


def test_a_checkpoint_that_holds_its_tower(write, vicuna, picture, tmp_path):
    """A tower that was trained along would be replaced by the published one."""
    src, _ = write(tower=True)
    other = layout.make(vicuna[0].fields["vocab_size"], None, bos=1, seed=5)
    elsewhere = layout.write_tower(other, tmp_path / "other")
    convert(src, tmp_path / "out", vision=elsewhere)  # for its configuration alone
    check(tmp_path / "out", vicuna[0], picture)
    with pytest.raises(FileNotFoundError, match=r"not its configuration.*--vision TOWER"):
        convert(src, tmp_path / "out2")


def test_several_output_shards(write, vicuna, picture, tmp_path, monkeypatch):
    """A checkpoint larger than one shard would have a wrong index, or not fit into memory."""
    from reverse.models.checkpoints import tensor_files

    sizes = []
    save = tensor_files.save_file
    monkeypatch.setattr(
        tensor_files,
        "save_file",
        lambda state, *a, **k: (sizes.append(sum(map(torch.numel, state.values()))), save(state, *a, **k)),
    )
    monkeypatch.setattr(tensor_files.ShardWriter.__init__, "__defaults__", (40_000,))
    src, tower = write()
    convert(src, tmp_path / "out", vision=tower)
    assert len(sizes) > 3 and max(sizes) * 4 <= 4 * 32 * 500
    assert not list((tmp_path / "out").glob("*.part.*"))
    check(tmp_path / "out", vicuna[0], picture)


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
@pytest.mark.parametrize("of", ["llama", "original"])
def test_a_lora_folder(ending, of, vicuna, picture, tmp_path):
    """The published LoRA checkpoints would lose the LoRA, its scale, or the projector that was trained
    along."""
    parts, root = vicuna
    base, src = tmp_path / "base", tmp_path / "src"
    rows = parts.fields["vocab_size"]
    trained = layout.make(rows, parts.encode, bos=1)
    if of == "llama":
        trained.llama.save_pretrained(base)
    else:
        stale = layout.make(rows, parts.encode, bos=1)
        torch.nn.init.zeros_(stale.first.weight)  # the projector from before training
        layout.write_full(stale, base)
    for file in (root / "words").iterdir():
        shutil.copyfile(file, base / file.name)
    trained.clip = parts.clip
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"])
    wrapped = get_peft_model(trained.llama, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    wrapped.save_pretrained(src)
    edit(src / "adapter_config.json", base_model_name_or_path=str(base))
    if ending == "bin":
        from safetensors.torch import load_file

        torch.save(load_file(src / "adapter_model.safetensors"), src / "adapter_model.bin")
        (src / "adapter_model.safetensors").unlink()
    (src / "config.json").write_text(layout.config_json(parts))
    rest = layout.projector_state(trained, prefix="base_model.model.model.")
    prefix = "module." if ending == "bin" else ""
    torch.save({prefix + name: value for name, value in rest.items()}, src / "non_lora_trainables.bin")

    report = convert(src, tmp_path / "out", vision=root / "tower")  # adapter_config.json names the base
    assert report.found == "original LLaVA, LoRA"
    trained.llama = wrapped.merge_and_unload().eval()  # peft's own arithmetic
    check(tmp_path / "out", trained, picture)
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match="name it with --base BASE"):
        convert(src, tmp_path / "out2", vision=root / "tower")


LLAMA_TEXT = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    f"Today Date: 26 Jul 2024\n\n{layout.LLAMA_SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "<image>\nDescribe this image.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.mark.parametrize("template", [layout.LLAMA_3_TEMPLATE, None], ids=["its own template", "none"])
def test_llama_3(template, picture, tmp_path):
    """Another template, a second beginning of text, an end that is not known, or frequencies that are not
    scaled."""
    tokenizer, bos = layout.write_llama_tokenizer(tmp_path / "src", template)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    parts = layout.make(
        len(tokenizer),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        bos=bos,
        num_key_value_heads=2,
        rope_parameters={"rope_theta": 500000.0, **scaling},
    )
    parts.fields |= {"rope_theta": 500000.0, "rope_scaling": scaling}
    tower = layout.write_tower(parts, tmp_path / "tower")
    src = layout.write_full(parts, tmp_path / "src", kind="safetensors")
    convert(src, tmp_path / "out", vision=tower)
    before, after = LLAMA_TEXT.removeprefix("<|begin_of_text|>").split("<image>")
    model, processor = check(tmp_path / "out", parts, picture, before, after)
    assert processor.apply_chat_template(chat(), add_generation_prompt=True) == LLAMA_TEXT
    ends = [
        tokenizer.convert_tokens_to_ids(token) for token in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    ]
    assert model.generation_config.eos_token_id == ends
    ids = list(find_token_ids(processor))
    assert processor.decode(ids, skip_special_tokens=True) == "".join(layout.TAGS)


def test_a_template_of_another_kind(picture, tmp_path):
    """A checkpoint trained on other chats would be asked in a form that it never saw, and nobody told."""
    tokenizer, bos = layout.write_llama_tokenizer(tmp_path / "src", "{{ messages[0]['content'] }}[SEP]")
    parts = layout.make(len(tokenizer), None, bos=bos)
    tower = layout.write_tower(parts, tmp_path / "tower")
    layout.write_full(parts, tmp_path / "src")
    with pytest.raises(ValueError, match=r"own chat template writes 'Answer\.\[SEP\]'"):
        convert(tmp_path / "src", tmp_path / "out", vision=tower)


def chat(*turns):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": layout.QUESTION}]}
    return [*turns, user]


def test_the_vicuna_chat(converted):
    """A word more or less before the question is a prompt that training never saw."""
    processor = AutoProcessor.from_pretrained(converted)
    text = processor.apply_chat_template(chat(), add_generation_prompt=True)
    assert text == f"<s>{layout.VICUNA_SYSTEM} USER: <image>\nDescribe this image. ASSISTANT:"
    more = [{"role": "assistant", "content": "A dog."}, {"role": "user", "content": "Where?"}]
    assert processor.apply_chat_template([*chat(), *more], add_generation_prompt=True) == (
        f"<s>{layout.VICUNA_SYSTEM} USER: <image>\nDescribe this image. ASSISTANT: A dog.</s>USER: Where? "
        f"ASSISTANT:"
    )
    system = chat({"role": "system", "content": [{"type": "text", "text": "Be brief."}]})
    assert processor.apply_chat_template(system).startswith("<s>Be brief. USER: <image>\n")


def test_one_beginning_of_text(converted, picture):
    """Two of them are a prompt that training never saw; none, on a server that adds none to chats, is
    another."""
    processor = AutoProcessor.from_pretrained(converted)
    messages = chat()
    messages[0]["content"][0]["image"] = picture(size=WIDE)
    ids = processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    ids = ids[0] if isinstance(ids[0], list) else ids
    assert ids.count(1) == 1 and ids[0] == 1
    assert processor.tokenizer("A dog").input_ids[0] == 1


@pytest.mark.parametrize(
    "text",
    [
        "I see <SPAN>two cups</CN> shown, <SPAN>a dog</UN>.",
        "<SPAN>two</CN><SPAN>a</CN>",
        "</CN>  two  ",
        "two cups",
    ],
)
def test_spaces_of_legacy_tokenizers(text, converted, vicuna):
    """The ids after a tag would not be those of training, or the text come back with spaces that nobody
    wrote."""
    tokenizer = AutoProcessor.from_pretrained(converted).tokenizer
    encode, rows = vicuna[0].encode, vicuna[0].fields["vocab_size"]
    expected, rest = [], text
    while rest:  # slow tokenizers: every stretch between added tokens is encoded for itself
        at = min((rest.index(tag) for tag in layout.TAGS if tag in rest), default=len(rest))
        expected += encode(rest[:at]) if at else []
        tag = next((tag for tag in layout.TAGS if rest[at:].startswith(tag)), "")
        expected += [rows - 3 + layout.TAGS.index(tag)] if tag else []
        rest = rest[at + len(tag) :]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == expected
    assert tokenizer.decode(ids) == text


def test_spaces_of_tokenizers_that_are_not_legacy(vicuna, picture, tmp_path):
    """A tokenizer without a space after every token would put the question right behind the picture,
    unseen."""
    parts, root = vicuna
    src = layout.write_full(parts, tmp_path / "src")
    layout.write_vicuna_tokenizer(src, legacy=False)
    convert(src, tmp_path / "out", vision=root / "tower")
    check(tmp_path / "out", parts, picture)


def test_it_generates(converted, picture):
    """What loads might still not decode: hints find the user's turn through the template."""
    model, processor = load(converted)
    result = reverse.generate(
        model,
        processor,
        picture(size=WIDE),
        layout.QUESTION,
        threshold=0.002,
        max_new_tokens=24,
        max_attempts=4,
    )
    assert result.phrases is not None and not any(tag in result.text for tag in layout.TAGS)
    pieces = reverse.stream(
        model,
        processor,
        picture(size=WIDE),
        layout.QUESTION,
        threshold=0.002,
        max_new_tokens=24,
        max_attempts=4,
    )
    assert "".join(pieces) == result.text


def test_it_can_be_trained_further(converted, picture):
    """Training would tokenise the question otherwise than decoding, or lose the words around tags."""
    model, processor = load(converted)
    answer = "There is <SPAN>a dog</CN> and <SPAN>two cups</UN>"
    ids = Encoder(processor).row([Turn(layout.QUESTION, answer)], 4).ids.tolist()
    prompt = prepare_inputs(processor, [picture()], [layout.QUESTION], family_of(model))["input_ids"][0]
    assert ids[: len(prompt)] == prompt.tolist()
    assert processor.decode(ids[len(prompt) :]).strip() == answer + "</s>"


def test_transformers_alone_loads_it(converted):
    """Names that our loader maps and others do not would leave random weights behind."""
    model, info = LlavaForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    settings = json.loads((converted / "processor_config.json").read_text())
    assert settings["image_processor"]["do_pad"] is True
    assert settings["image_processor"]["image_processor_type"] == "LlavaImageProcessor"
    assert settings["patch_size"] == layout.PATCH and settings["num_additional_image_tokens"] == 1
    assert model.config.image_seq_length == 4
    assert model.generation_config.eos_token_id == 2


def test_pictures_that_were_not_padded(write, tmp_path, picture):
    """A checkpoint trained on cropped pictures would see padded ones."""
    src, tower = write(image_aspect_ratio="square")
    convert(src, tmp_path / "out", vision=tower)
    _, processor = load(tmp_path / "out")
    assert not getattr(processor.image_processor, "do_pad", False)


def test_a_base_without_the_tokens(vicuna, tmp_path, picture):
    """LLaVA-MORE's base exists in this layout only, and must be converted before it is trained."""
    _, root = vicuna
    src = tmp_path / "src"
    pieces, rows = layout.write_vicuna_tokenizer(src, tags=())
    parts = layout.make(rows, pieces.encode, bos=1)
    layout.write_full(parts, src)
    report = convert(src, tmp_path / "out", vision=root / "tower", dtype=torch.bfloat16)
    assert report.tokens is None
    model, _ = load(tmp_path / "out", require_tokens=False)
    assert model.dtype == torch.bfloat16 and model.config.image_token_index == rows


class Evil:
    def __reduce__(self):
        return (open, ("ran.txt", "w"))


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def hostile_pickle(src):
    torch.save({"model.norm.weight": Evil()}, src / "pytorch_model-00001-of-00003.bin")


def no_tensors(src):
    torch.save([1, 2], src / "pytorch_model-00001-of-00003.bin")


def index_outside(src):
    file = src / "pytorch_model.bin.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["lm_head.weight"] = "../secret.bin"
    file.write_text(json.dumps(index))


def missing_shard(src):
    (src / "pytorch_model-00002-of-00003.bin").unlink()


def damaged_shard(src):
    file = src / "pytorch_model-00002-of-00003.bin"
    file.write_bytes(file.read_bytes()[:3000])


def without(src, name):
    file = src / "pytorch_model.bin.index.json"
    index = json.loads(file.read_text())
    del index["weight_map"][name]
    file.write_text(json.dumps(index))


def strange_tensor(src):
    file = src / "pytorch_model-00001-of-00003.bin"
    state = torch.load(file, weights_only=True) | {"model.image_newline": torch.zeros(3)}
    torch.save(state, file)
    index = src / "pytorch_model.bin.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["model.image_newline"] = file.name
    index.write_text(json.dumps(found))


REFUSED = {
    "a pickle that runs code": (hostile_pickle, ValueError, "something other than tensors"),
    "a pickle of something else": (no_tensors, ValueError, "holds no named tensors but list"),
    "a path that leaves the folder": (
        index_outside,
        ValueError,
        r"lies in '\.\./secret\.bin', which is not a file",
    ),
    "a missing shard": (missing_shard, FileNotFoundError, "names 3 shards, and 1 are not there"),
    "a damaged shard": (damaged_shard, ValueError, "is refused"),
    "a missing layer": (
        lambda src: without(src, "model.layers.1.mlp.up_proj.weight"),
        ValueError,
        r"lacks 1 tensor .*layers.1.mlp.up_proj.weight",
    ),
    "no projector": (
        lambda src: without(src, "model.mm_projector.2.bias"),
        ValueError,
        r"lacks 1 tensor .*multi_modal_projector.linear_2.bias",
    ),
    "no head": (lambda src: without(src, "lm_head.weight"), ValueError, "no lm_head.weight"),
    "another LLaVA": (strange_tensor, ValueError, "unknown meaning .model.image_newline"),
    "another projector": (
        lambda src: edit(src / "config.json", mm_projector_type="linear"),
        ValueError,
        "mm_projector_type='linear'; known",
    ),
    "tiles": (
        lambda src: edit(src / "config.json", image_aspect_ratio="anyres"),
        ValueError,
        "'anyres'; known is",
    ),
    "another size": (lambda src: edit(src / "config.json", hidden_size=64), ValueError, "of another shape"),
    "another tower": (
        lambda src: edit(src / "config.json", mm_hidden_size=1024),
        ValueError,
        "the projector takes 1024",
    ),
    "code": (
        lambda src: edit(src / "config.json", auto_map={"AutoModel": "x.Y"}),
        ValueError,
        "run its own code",
    ),
    "another architecture": (
        lambda src: edit(src / "config.json", model_type="gpt2", architectures=["X"], mm_vision_tower=None),
        ValueError,
        "is a 'gpt2' .*known are an original LLaVA",
    ),
    "no tokenizer": (lambda src: (src / "tokenizer.model").unlink(), FileNotFoundError, "no tokenizer"),
    "too many words": (
        lambda src: (
            edit(src / "added_tokens.json")
            or layout.write_vicuna_tokenizer(src, tags=("a1", "b2", "c3", "d4"))
        ),
        ValueError,
        "gives 'd4' the id",
    ),
    "no configuration": (lambda src: (src / "config.json").unlink(), FileNotFoundError, "no config.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_and_damaged_sources_are_refused(name, write, tmp_path, monkeypatch):
    """Something not known would be converted to nonsense, or a stranger's code run."""
    harm, kind, words = REFUSED[name]
    monkeypatch.chdir(tmp_path)  # where a pickle that ran would leave its file
    src, tower = write()
    harm(src)
    with pytest.raises(kind, match=words):
        convert(src, tmp_path / "out", vision=tower)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_the_tower_is_asked_for(write, tmp_path):
    """The user must be told which tower to fetch and how to name it."""
    src, _ = write()
    with pytest.raises(FileNotFoundError, match=r"'openai/clip-vit-large-patch14-336'.*--vision TOWER"):
        convert(src, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        convert(src, tmp_path / "out", vision=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="leave --base out"):
        convert(src, tmp_path / "out", vision=tmp_path, base=tmp_path)


def test_what_needs_no_conversion(tmp_path, tiny):
    """A checkpoint of today would be written anew, or its refusal name no way on."""
    model, processor = tiny("llava")
    model.save_pretrained(tmp_path / "src")
    processor.save_pretrained(tmp_path / "src")
    with pytest.raises(ValueError, match="load it as it is"):
        convert(tmp_path / "src", tmp_path / "out")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="reverse merge ADAPTER OUT"):
        convert(tmp_path / "lora", tmp_path / "out")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(write, tmp_path, tiny):
    """A command that is not registered, or a refusal that is a traceback."""
    src, tower = write()
    result = run("convert", src, tmp_path / "out", "--vision", tower)
    assert result.exit_code == 0 and "original LLaVA, <SPAN> 400, </CN> 401, </UN> 402" in result.stdout
    result = run("convert", src, tmp_path / "out2")
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and "--vision TOWER" in result.stderr
    model, processor = tiny("llava")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    result = run(
        "merge", tmp_path / "lora", tmp_path / "merged", "--base", tmp_path / "base", "--dtype", "bfloat16"
    )
    assert result.exit_code == 0 and "no fingerprint" in result.stdout
    assert load(tmp_path / "merged")[0].dtype == torch.bfloat16
    result = run("merge", tmp_path / "base", tmp_path / "merged2")
    assert result.exit_code == 2 and "no adapter_config.json" in result.stderr
    with pytest.raises(ValueError, match="is a LoRA adapter: merge it first"):
        load(tmp_path / "lora")


def test_a_hub_id_that_cannot_be_fetched_is_named(monkeypatch):
    """The hub's own errors have no format of their own: the sentence about them would be lost."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    from reverse.models.checkpoints.weight_files import find_folder

    def fail(name, **_):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        FileNotFoundError, match=r"'nope/none', and it cannot be fetched .*\(offline\): check"
    ):
        find_folder("nope/none")
