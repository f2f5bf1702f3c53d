"""What generate() and the drop-in take, and how they refuse what they cannot take: the value and the mend."""

import math
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList

import reverse
from experiments.tiny_models import build_tiny_llava
from reverse.models import family_of, prepare_inputs

QUESTION = "Describe this image."


def huge_png(path, side=10_000):
    """A PNG of a few kilobytes that claims `side` x `side` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# ------------------------------------------------------------------ pictures
def test_missing_picture(ask, tmp_path):
    """A wrong path would end in an error from deep inside PIL or a network lookup."""
    with pytest.raises(FileNotFoundError, match=r"no such image: .*nothing\.png: check the path"):
        ask(images=str(tmp_path / "nothing.png"))


def test_truncated_picture(ask, picture, tmp_path):
    """Half a picture would be described as if the grey rest were in it."""
    path = tmp_path / "half.png"
    picture().save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.png is damaged or cut off .*download it again"):
        ask(images=str(path))


def test_what_is_no_picture(ask, tmp_path):
    """A text file would end in PIL's `UnidentifiedImageError`, which says no mend."""
    path = tmp_path / "notes.png"
    path.write_text("a dog")
    with pytest.raises(ValueError, match=r"notes\.png is not a picture .*save it again as PNG or JPEG"):
        ask(images=str(path))


def test_one_pixel(ask):
    """A picture of one pixel would crash in the image processor, or be hallucinated about."""
    with pytest.raises(ValueError, match=r"1x1 pixels, too small .*at least 8 a side"):
        ask(images=Image.new("RGB", (1, 1)))


def test_a_hundred_megapixels(ask, tmp_path):
    """A file of a few bytes would take 300 MB of memory before anything is checked."""
    with pytest.raises(ValueError, match=r"10000x10000 pixels, 100000000 of at most 50000000: scale it down"):
        ask(images=str(huge_png(tmp_path / "huge.png")))


def test_a_picture_of_the_wrong_kind(ask):
    """An array would be taken for a list of pictures, or fail without saying what is expected."""
    with pytest.raises(TypeError, match=r"must be a path, bytes or a PIL image, got int: open it first"):
        ask(images=7)


# ------------------------------------------------------------------ prompts
def test_more_placeholders_than_pictures(ask):
    """A placeholder typed into the prompt would crash in the processor, or shift the pictures."""
    with pytest.raises(ValueError, match=r"2 image placeholders for 1 pictures: .*take '<image>' out"):
        ask(prompt="<image> What is the same as in <image>?")


def test_fewer_placeholders_than_pictures(ask, picture):
    """The second picture would be dropped without a word."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    with pytest.raises(ValueError, match=r"1 image placeholders for 2 pictures: give fewer pictures, or"):
        ask(images=[[picture(0), picture(1)]], prompt=[chat])


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_empty_prompt(ask, empty):
    """An empty question would be answered, and a batch of lines from a file often holds one."""
    with pytest.raises(ValueError, match=r"prompt 0 is empty, got '.*': ask something"):
        ask(prompt=empty)


@pytest.mark.parametrize("nothing", [[], ()])
def test_no_picture_for_a_prompt(ask, nothing):
    """A folder that held no picture would give an empty list of answers, without a word."""
    with pytest.raises(
        ValueError, match=rf"images holds no picture .*got {re.escape(repr(nothing))}: give None"
    ):
        ask(images=nothing)


@pytest.mark.parametrize("images", [None, "kitchen.png"])
def test_no_question_at_all(ask, images):
    """A file that held no question would give an empty list of answers, without a word."""
    with pytest.raises(ValueError, match=r"prompt holds no question, got \[\]: try 'Describe this image.'"):
        ask(images=images, prompt=[])


@pytest.mark.parametrize("prompt", [None, 5])
def test_prompt_that_is_no_text(ask, prompt):
    """The error would be `object of type 'int' has no len()`, from a helper."""
    with pytest.raises(TypeError, match=rf"prompt must be a text.* got {type(prompt).__name__}: try"):
        ask(prompt=prompt)


def test_prompt_longer_than_the_context(ask):
    """Positions past the last one the model knows give noise, or an index error on a GPU."""
    with pytest.raises(
        ValueError, match=r"takes \d{4} tokens with its pictures.* is 1024: shorten the prompt"
    ):
        ask(prompt="dog " * 3000)


def test_prompt_longer_than_the_context_in_the_drop_in(drop_in):
    """Positions past the last one give noise, and transformers only warns of them."""
    with pytest.raises(ValueError, match=r"the prompt has \d{4} tokens.* is 1024: shorten the prompt"):
        drop_in(["dog " * 3000])


def test_prompt_without_the_chat_template(tiny_any):
    """A hint would be put into the middle of the question, or into the answer."""
    model, processor = tiny_any
    inputs = processor(text=["Describe nothing at all"], return_tensors="pt")
    with pytest.raises(ValueError, match=r"the prompt ends with ids .*apply_chat_template.*hints=0"):
        model.generate(
            **inputs, custom_generate=reverse.retrospective(processor, threshold=0.5), max_new_tokens=4
        )
    decoder = reverse.retrospective(processor, threshold=0.5, hints=0)
    ids = model.generate(**inputs, custom_generate=decoder, max_new_tokens=4)  # the mend works
    assert ids.shape[1] > inputs["input_ids"].shape[1]


def test_right_padding(tiny_any):
    """The shorter rows would be continued after their padding: plausible text about nothing."""
    model, processor = tiny_any
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for text in ("Hello", "What is to the left of the second dog?")
    ]
    inputs = processor(text=texts, return_tensors="pt", padding=True, padding_side="right")
    with pytest.raises(ValueError, match=r"padding on the right.*padding_side = 'left'"):
        model.generate(
            **inputs, custom_generate=reverse.retrospective(processor, threshold=0.5), max_new_tokens=4
        )


# ------------------------------------------------------------------ settings
@pytest.mark.parametrize("threshold", [0, 3.0, math.nan, -0.1])
def test_threshold_out_of_range(ask, threshold):
    """0 would reject everything, 3 and NaN nothing, and `resolved` would be True all the same."""
    with pytest.raises(ValueError, match=rf"threshold must lie in \(0, 1\], got {threshold}: .*try 0\.003"):
        ask(threshold=threshold)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("threshold", "0.1", r"got '0\.1' \(str\)"),
        ("threshold", True, r"got True \(bool\)"),
        ("top_p", "a", r"got 'a' \(str\)"),
        ("top_p", 0, "got 0: 1.0 keeps"),
        ("temperature_step", "a", r"got 'a' \(str\)"),
        ("temperature_rise", math.inf, "got inf"),
        ("hints", True, "got True"),
        ("local_attempts", 0, "got 0"),
        ("max_new_tokens", True, "got True"),
        ("batch_size", True, "got True"),
    ],
)
def test_settings_of_the_wrong_kind(ask, name, value, words):
    """The error would come from a comparison deep inside, or True count as one."""
    with pytest.raises(ValueError, match=rf"{name} must .*{words}"):
        ask(**{name: value})


def test_numbers_of_numpy_are_numbers(ask):
    """A threshold computed with numpy would be refused, or round every p to its own precision."""
    config = reverse.ResamplingConfig(threshold=np.float32(0.5), hints=np.int64(3), seed=np.int64(7))
    assert config == reverse.ResamplingConfig(threshold=0.5, hints=3, seed=7)
    assert {type(config.threshold), type(config.hints), type(config.seed)} == {float, int}
    assert ask(threshold=np.float32(0.5), max_new_tokens=np.int64(6)).ids == ask().ids


@pytest.mark.parametrize("call", [reverse.ResamplingConfig.paper, reverse.ResamplingConfig.released])
def test_unknown_changes_of_a_published_variant(call):
    """The error would name neither the class nor what it knows."""
    with pytest.raises(TypeError, match="unknown setting foo: ResamplingConfig has threshold"):
        call(foo=1)
    assert call(threshold=0.25).threshold == 0.25


def test_config_of_the_wrong_kind(ask, tiny_llava):
    """A dictionary would end in an AttributeError, and an empty one be taken for the defaults."""
    for config in ({}, {"threshold": 0.5}):
        with pytest.raises(TypeError, match=r"config must be a ResamplingConfig, got dict: give its fields"):
            ask(config=config)
        with pytest.raises(TypeError, match="config must be a ResamplingConfig, got dict"):
            reverse.retrospective(tiny_llava[1], config)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**20])
def test_seeds_beyond_64_bits(ask, drop_in, seed):
    """The error would be struct's, in the middle of an answer."""
    for call in (
        lambda: ask(seed=seed),
        lambda: ask(images=[None], seed=[seed]),
        lambda: reverse.ResamplingConfig(seed=seed),
        lambda: drop_in(settings={"seeds": [seed]}),
        lambda: drop_in(settings={"seed": 2**63 - 1}, num_return_sequences=2, do_sample=True),
    ):
        with pytest.raises(
            ValueError, match=r"seed must lie between -2\*\*63 and 2\*\*63 - 1, got -?\d+: try 0"
        ):
            call()
    ask(seed=2**63 - 1, do_sample=True)


def test_unknown_mode(ask):
    """A misspelt mode would quietly decode in the default one."""
    with pytest.raises(ValueError, match=r"mode must be one of resample, plain, .*, got 'resampel'"):
        ask(mode="resampel")


def test_unknown_setting(ask, tiny_llava):
    """A misspelt threshold would be ignored, and the default one used."""
    with pytest.raises(TypeError, match=r"unknown setting tresholds: did you mean threshold\?"):
        ask(tresholds=0.5)
    with pytest.raises(TypeError, match="unknown setting tresholds"):
        reverse.retrospective(tiny_llava[1], tresholds=0.5)


def test_unknown_choice(ask):
    """A misspelt `on_exhausted` would fall through to the last branch of the policy."""
    with pytest.raises(ValueError, match="on_exhausted must be one of best, drop, got 'bets'"):
        ask(on_exhausted="bets")


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_no_room_for_an_answer(ask, value):
    """An answer of no tokens would be an empty text with `resolved=True`."""
    with pytest.raises(ValueError, match=f"max_new_tokens must be a whole number of at least 1, got {value}"):
        ask(max_new_tokens=value)


def test_no_room_for_an_answer_in_the_drop_in(drop_in):
    """An answer of no tokens would come from model.generate() without an error."""
    with pytest.raises(ValueError, match=r"max_new_tokens.* must be greater than 0, but is 0"):
        drop_in(max_new_tokens=0)


@pytest.mark.parametrize("value", [0, "8"])
def test_batch_size(ask, value):
    """A batch size of 0 would return no answers and no error."""
    with pytest.raises(ValueError, match=f"batch_size must be a whole number of at least 1, got {value!r}"):
        ask(batch_size=value)


@pytest.mark.parametrize("seed", [1.5, "a"])
def test_seed_of_the_wrong_kind(ask, seed):
    """A text would be read digit by digit as one seed a request."""
    with pytest.raises(TypeError, match=r"seed must be a whole number, or a list.*got .*: try 0"):
        ask(seed=seed)


def test_wrong_number_of_seeds(ask, drop_in):
    """Requests would share seeds, or the last of them get none."""
    with pytest.raises(ValueError, match="got 2 seeds for 1 requests: give one per request, or a number"):
        ask(seed=[1, 2])
    with pytest.raises(ValueError, match="got 3 seeds for 1 requests: give one per request"):
        drop_in(settings={"seeds": [1, 2, 3]})


def test_images_and_prompts_of_different_numbers(ask, picture):
    """Pictures would be paired with the wrong questions."""
    with pytest.raises(ValueError, match="got 1 images for 2 prompts: give one entry per prompt"):
        ask(images=[picture()], prompt=["Is there a dog?", "Is there a cat?"])


OVERRULED = ["max_new_tokens", "max_length", "top_k", "custom_generate", "num_return_sequences", "input_ids"]


@pytest.mark.parametrize("option", OVERRULED)
def test_options_that_would_be_overruled(ask, option):
    """`generation={"top_k": 50}` would be taken out without a word."""
    with pytest.raises(ValueError, match=rf"generation holds {option}, .*use the arguments max_new_tokens"):
        ask(generation={option: 2})


@pytest.mark.parametrize("processor", ["tiny-llava", None])
def test_a_name_is_no_processor(processor):
    """The error would be that a text has no vocabulary."""
    with pytest.raises(
        TypeError, match=r"must be a processor or a tokenizer, got .*reverse\.load\('tiny-llava'\)"
    ):
        reverse.retrospective(processor)


def test_results_of_a_refused_call(tiny_llava, picture):
    """After a call that failed, the results of the one before would pass for its own."""
    model, processor = tiny_llava
    inputs = prepare_inputs(processor, [picture()], [QUESTION], family_of(model))
    decoder = reverse.retrospective(processor, threshold=0.5)
    model.generate(**inputs, custom_generate=decoder, max_new_tokens=4)
    assert len(decoder.results) == 1
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(**inputs, custom_generate=decoder, max_new_tokens=4, num_beams=2)
    assert decoder.results == []


# ------------------------------------------------------------------ models and ways of decoding
def test_model_without_the_tokens(ask, picture):
    """Nothing would ever be rejected: the answer would pass as checked."""
    model, processor = build_tiny_llava(seed=0)
    with pytest.raises(
        ValueError, match=r"does not know <SPAN>, </CN>, </UN>: .*reverse tokens add BASE OUT"
    ):
        reverse.generate(model, processor, images=picture(), prompt=QUESTION, threshold=0.5)
    with pytest.raises(ValueError, match="does not know <SPAN>"):
        reverse.retrospective(processor)
    plain = reverse.generate(model, processor, images=picture(), mode="plain", max_new_tokens=4)
    assert plain.resolved is None and plain.usage.kept == 4


def test_beams(drop_in):
    """Beams would arrive as more rows, each rolled back alone: four answers instead of one."""
    with pytest.raises(ValueError, match="num_beams=4 cannot be rolled back row by row: use num_beams=1"):
        drop_in(num_beams=4)


def test_static_cache(drop_in):
    """A static cache has one length for all rows: what is taken back would stay in it."""
    with pytest.raises(
        ValueError, match="cache of StaticLayer cannot be rewound: leave cache_implementation"
    ):
        drop_in(cache_implementation="static")


def test_stopping_criterion_that_needs_scores(drop_in):
    """It would fail with an error about NoneType from inside the caller's code."""

    class Sure(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return scores.max(dim=-1).values > 9

    with pytest.raises(ValueError, match=r"criterion Sure failed .*scores are None.*input_ids alone"):
        drop_in(stopping_criteria=StoppingCriteriaList([Sure()]))


@pytest.mark.parametrize(
    "options",
    [{"prompt_lookup_num_tokens": 3}, {"dola_layers": "low"}, {"penalty_alpha": 0.6, "top_k": 4}],
    ids=["lookup", "dola", "contrastive"],
)
def test_other_ways_of_decoding(drop_in, options):
    """Contrastive, assisted and DoLa decoding would be asked for and silently not done."""
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=rf"cannot be combined with resampling.*leave out.*{name}={value}"):
        drop_in(**options)


@pytest.mark.parametrize("option", [{"top_k": 5}, {"top_p": 0.9}])
def test_sampling_options_of_the_drop_in(drop_in, option):
    """They would be taken out without a word, and the caller believe that the tail is cut."""
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=rf"{name}={value}.*retrospective\(\.\.\., top_k"):
        drop_in(do_sample=True, **option)
    drop_in(do_sample=True, settings=option)  # the mend works
    drop_in(do_sample=True, top_k=0, top_p=1.0, settings=option)


@pytest.mark.parametrize("option", [{"min_p": 0.1}, {"typical_p": 0.5}, {"eta_cutoff": 0.001}])
def test_other_ways_to_cut_the_distribution(ask, drop_in, option):
    """They would be applied before the temperature, which is no way of sampling that anyone asked for."""
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=rf"{name}={value} is not supported.*use the settings top_k"):
        drop_in(do_sample=True, **option)
    with pytest.raises(ValueError, match=rf"{name}={value} is not supported"):
        ask(do_sample=True, generation=option)


def test_a_checkpoint_that_samples_by_default(tiny, picture):
    """Published Qwen2.5-VL brings do_sample, top_k=1, a temperature near 0: refused, or obeyed."""
    model, processor = tiny("qwen")
    settings = {"images": picture(), "prompt": QUESTION, "threshold": 0.5, "max_new_tokens": 12}
    expected = [
        reverse.generate(model, processor, **settings, do_sample=warm, seed=seed).ids
        for warm, seed in ((False, 0), (True, 0), (True, 1))
    ]
    model.generation_config.update(do_sample=True, top_k=1, top_p=0.001, temperature=0.000001)
    again = [
        reverse.generate(model, processor, **settings, do_sample=warm, seed=seed).ids
        for warm, seed in ((False, 0), (True, 0), (True, 1))
    ]
    assert again == expected and len(set(expected)) == 3
    inputs = prepare_inputs(processor, [picture()], [QUESTION], family_of(model))
    decoder = reverse.retrospective(processor, threshold=0.5)
    with pytest.raises(ValueError, match=r"top_k=1, top_p=0\.001 \(or the checkpoint's"):
        model.generate(**inputs, custom_generate=decoder, max_new_tokens=4)
    model.generate(**inputs, custom_generate=decoder, max_new_tokens=4, top_k=0, top_p=1.0)


@pytest.mark.parametrize("option", ["output_scores", "output_hidden_states"])
def test_outputs_of_every_step(drop_in, option):
    """The field would come back as None, and the caller's next line fail."""
    with pytest.raises(ValueError, match=f"{option}=True cannot be returned .*leave it out"):
        drop_in(return_dict_in_generate=True, **{option: True})
