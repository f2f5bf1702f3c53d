"""All records are looked at before the first step: what would stop a run is found, and named."""

import copy
import json
import tracemalloc

import pytest
from PIL import Image
from tokenizers import Tokenizer
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.pictures.opening import find_missing_images, open_image
from reverse.data.records.importer import import_records
from reverse.data.records.schema import ANSWER_TYPE
from reverse.data.records.set_check import check_set
from reverse.data.scenes import write_scenes
from reverse.training.checkpoints import resuming as checkpointing
from reverse.training.checkpoints.resuming import prepare_folder
from reverse.training.data import first_pass
from reverse.training.data.encoding import Encoder
from reverse.training.data.first_pass import check_records, checked_file
from reverse.training.data.record_check import find_bad, inspect_records
from reverse.training.data.training_sets import RecordDataset
from reverse.training.recipes.recipe import load_recipe
from reverse.training.training_run import run_recipe
from tests.training.two import on_two

GOOD = "There is <SPAN>a dog</CN> and <SPAN>two cups</UN>"


def said(*texts, image=None, **further):
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {"id": "x", **({} if image is None else {"image": image}), "conversations": turns, **further}


BAD = {  # what is wrong: the record
    "closes no": said("Q?", "A dog</UN>"),
    "opens inside": said("Q?", "<SPAN>a <SPAN>dog</CN>"),
    "is never closed": said("Q?", "<SPAN>a dog"),
    "is empty": said("Q?", "<SPAN></CN>"),
    "at 2 is empty": said("Q?", "A <SPAN> \u00a0</CN>"),
    "</CN> in its question": said("Q</CN>?", "A dog"),
    "turn 1 has a blank answer": said("Q?", "A", "B?", "  "),
    "turn 0 has a blank question": said(" ", "A"),
    "cannot be part of an answer": said("<image>\nQ?", "An <image>", image="images/1.png"),
    "one <image> may stand": said("<image>\n<image>\nQ?", "A", image="images/1.png"),
    "with an image, got turn 0": said("<image>\nQ?", "A"),
    "with an image, got turn 1": said("<image>\nQ?", "A", "<image> B?", "C", image="images/1.png"),
    "the first turn takes": said("Q?", "dog " * 1200),
    "no such picture": said("<image>\nQ?", "A", image="images/none.png"),
    "no such picture: ": said("<image>\nQ?", GOOD, image="nowhere/1.png"),
    "leaves": said("<image>\nQ?", "A", image="../1.png"),
    "must be relative": said("<image>\nQ?", "A", image="/1.png"),
    "half of a surrogate pair in its question": said("Q? \ud83d", "A dog"),
    "half of a surrogate pair in its answer": said("Q?", "<SPAN>A \ud83d</CN>, and 1 < 2"),
    "turn 1 holds half of a surrogate pair": said("Q?", "A", "B?", "A cut \udc00"),
    "ures/\\ud83d": said("<image>\nQ?", "A", image="pictures/\ud83d.png"),
    "writes": said("Is \u29830\u2984 a sign?", "Yes"),  # the mark of an answer's place
    "human": {"id": "x", "conversations": said("Q?", "A")["conversations"][::-1]},
}
FINE = [
    said("Q?", GOOD),
    said("<image>\nQ?", GOOD, "And?", "<SPAN>Two</CN>", image="images/1.png"),
    said("<image>", "A dog", image="images/1.png"),  # a picture says enough
    said("Q?", "a < b and b > c, <b>bold</b>"),
    said("Is 鳥 a <bird>?", "Yes 🙂 </SPAN>"),
    said("Q?", "dog " * 100, "And?", "dog " * 1200),  # a later turn is left out, as ever
]


@pytest.fixture(params=["llava", "qwen"])
def encoder(request):
    return Encoder(request.getfixturevalue(f"tiny_{request.param}")[1], max_length=1000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (112, 112)).save(tmp_path / "images/1.png")
    return tmp_path


def write(folder, records, name="records.json"):
    (folder / name).write_text(json.dumps(records))
    return folder / name


def opened(path, encoder, **options):
    return RecordDataset(path, path.parent, encoder, keep_broken=True, **options)


def test_each_fault_is_found_and_named(encoder, folder):
    """Each of these stops a run when it is drawn, after hours."""
    records = FINE + [record for bad in BAD.values() for record in (bad, FINE[0])]
    found = find_bad(opened(write(folder, records), encoder))
    assert [bad.number for bad in found] == list(range(len(FINE), len(records), 2))
    for bad, reason in zip(found, BAD, strict=True):
        assert reason in bad.reason, bad


def test_what_passes_can_be_trained(encoder, folder):
    """A fast check that passes what the encoder refuses would be no check; nor may it refuse the good."""
    dataset = opened(write(folder, FINE + list(BAD.values())), encoder)
    bad = {one.number for one in find_bad(dataset)}
    for number in range(len(dataset)):
        if number not in bad:
            assert len(dataset[number].rows[0].ids) <= 1000
    assert bad == set(range(len(FINE), len(dataset)))


def test_data_check_reports_what_no_model_takes(encoder, folder):
    """Training's refusal sends its reader to `reverse data check`, which found nothing wrong."""
    by_model = ("the first turn takes", "writes")
    for reason, record in BAD.items():
        report = check_set(write(folder, [FINE[0], record]), images=folder)
        assert report.ok == (reason in by_model), reason
    report = check_set(write(folder, FINE), images=folder)
    assert report.ok and not report.malformed
    near = said("Q?", "<span>a dog</cn>")
    assert not check_set(write(folder, [near])).ok
    assert len(find_bad(opened(write(folder, [near]), encoder))) == 1


def test_what_begins_with_a_newline_goes_to_the_encoder(tiny_qwen, folder):
    """Qwen2.5 and Llama-3.1 join newlines with the template's last one: the run stops when it is drawn."""
    processor = copy.deepcopy(tiny_qwen[1])
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    name = next(name for name in list(vocabulary)[::-1] if len(name) > 3)
    vocabulary["ĊĊ"] = vocabulary.pop(name)
    kept = [pair for pair in backend["model"]["merges"] if name not in "".join(pair)]
    backend["model"]["merges"] = [*kept, ["Ċ", "Ċ"]]
    split = {"type": "Split", "pattern": {"Regex": r"\s*[\r\n]+|\s+|[^\s]+"}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    backend["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split | {"invert": False}, level]}
    processor.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    texts = ("ok", "\nHello", "two\n\n", "\n\nHello", "(a)", "<SPAN>a</CN>")
    records = [said("Q?", text) for text in texts]
    dataset = opened(write(folder, records), Encoder(processor, max_length=1000))
    refused = []
    for k in range(len(dataset)):
        try:
            dataset[k]
        except ValueError:
            refused.append(k)
    assert refused and [bad.number for bad in find_bad(dataset)] == refused


def test_pictures_are_not_decoded_to_know_their_size(tiny_qwen, folder, monkeypatch):
    """Without data.max_pixels a picture of Qwen's may be longer than a row: the check took 30 ms a record."""
    processor, shown = copy.deepcopy(tiny_qwen[1]), []
    images = processor.image_processor
    side = images.patch_size * images.merge_size
    images.size = type(images.size)(shortest_edge=images.size["shortest_edge"], longest_edge=2000 * side**2)
    sizes, records = [(56, 56), (640, 480), (31, 1200), (8, 8), (1000, 999), (2000, 2000)], []
    for k, size in enumerate(sizes):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned
        Image.new("RGB", size).save(folder / f"images/{k}.jpg", exif=exif)
        records.append(said("<image>\nQ?", "A dog", image=f"images/{k}.jpg"))
    dataset = opened(write(folder, records), Encoder(processor, max_length=1500))
    refused = []
    for k, size in enumerate(sizes):
        picture = open_image(folder / f"images/{k}.jpg")
        assert dataset.pictures(picture)[1] == dataset.pictures.count(*size)
        try:
            dataset[k]
        except ValueError:
            refused.append(k)
    assert 0 < len(refused) < len(sizes)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(type(dataset.pictures), "_encode", lambda *args: pytest.fail("preprocessed"))
    assert check_records(dataset, folder / "run", identity={}, skip_bad=True, say=shown.append).bad == refused
    assert "data.max_pixels" in shown[1]


def test_half_of_a_surrogate_pair(encoder, folder, capsys):
    """An emoji that was cut through is a TypeError of the tokenizer, in the run or in the check itself."""
    hinted = said("Q?", "good")
    hinted["conversations"][1] |= {"A_type": ANSWER_TYPE, "hint": "a \ud800"}
    records = [said("Q?", GOOD)] * 5 + [said("Q?", "if a < b \ud83d then"), said("\udc00?", "b"), hinted]
    (folder / "records.json").write_text(json.dumps(records))
    sure = opened(folder / "records.json", encoder, hint_share=1.0)
    for number in (5, 6, 7):
        with pytest.raises(
            ValueError, match=rf"record {number}: turn 0 holds half of a surrogate pair"
        ) as error:
            sure[number]
        print(error.value)
    assert check_records(sure, folder / "run", identity={}, skip_bad=True, say=print).bad == [5, 6, 7]
    capsys.readouterr().out.encode("utf-8")
    never = opened(folder / "records.json", encoder, hint_share=0.0)
    assert [bad.number for bad in find_bad(never)] == [5, 6]
    assert len(never[7].rows[0].ids)  # a hint that is not drawn harms nobody


def test_tokens_in_a_text_are_bad_records(tiny_any, folder):
    """A few `<s>` of HTML in 1.3 million records: a false end of turn each, or no way to train the others."""
    processor = copy.deepcopy(tiny_any[1])
    processor.tokenizer.add_tokens(["[INST]"], special_tokens=True)  # without the bracket that is looked for
    end = processor.tokenizer.eos_token
    hinted = said("Q?", "good")
    hinted["conversations"][1] |= {"A_type": ANSWER_TYPE, "hint": f"a {end.upper()}"}
    wrong = [said("Q?", f"It is {end}new."), said(f"{end}?", "b"), said("Q [INST]?", "b"), hinted]
    wrong += [said("Q?", "say [INST]"), said("<image>\n[IN<image>ST]", "b", image="images/1.png")]
    wrong += [said("[IN<image>ST]", "b", image="images/1.png")]
    dataset = opened(write(folder, FINE * 2 + wrong), Encoder(processor, max_length=1000), hint_share=1.0)
    bad = list(range(2 * len(FINE), len(dataset)))
    found = find_bad(dataset)
    assert [one.number for one in found] == bad
    assert f"says {end!r} in its answer" in found[0].reason and "in its hint" in found[3].reason
    assert check_records(dataset, folder / "run", identity={}, skip_bad=True).bad == bad
    assert all(len(dataset[k].rows[0].ids) for k in range(len(dataset)))


def test_length_counts_the_picture_as_large_as_it_is(tiny_qwen, folder):
    """Qwen's pictures differ: the largest thinkable one would condemn a record that fits."""
    record = said("<image>\nQ?", "A dog", image="images/1.png")
    dataset = opened(write(folder, [record]), Encoder(tiny_qwen[1]))
    needed = len(dataset[0].rows[0].ids)
    Image.new("RGB", (56, 56)).save(folder / "images/1.png")
    least = len(dataset[0].rows[0].ids)
    assert least < needed
    for longest, count in ((needed, 0), (least, 0), (least - 1, 1)):
        tight = opened(folder / "records.json", Encoder(tiny_qwen[1], max_length=longest))
        assert len(find_bad(tight)) == count


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_turns_that_do_not_fit_are_counted(request, folder, name):
    """Answers vanished from what was trained, and neither a line nor training.json said so."""
    processor, lines = request.getfixturevalue(f"tiny_{name}")[1], []
    filler = "dog " * 30
    records = [said("Q?", "A", "And?", "dog " * 1200), said("Q?", "dog " * 1200)]
    for k in range(1, 40):  # about the edge: of some the last turn fits, of some it does not
        hinted = said("<image>\nQ?", "good", "And?", filler, *["More?", "dog " * k] * 3, image="images/1.png")
        hinted["conversations"][1] |= {"A_type": ANSWER_TYPE, "hint": "cat " * (k % 4)}
        records.append(hinted)
    records.append(said("<image>\nQ?", "A", "And?", "dog " * 1200, image="images/none.png"))
    tokens = len(Encoder(processor).row(RecordDataset.turns(
        opened(write(folder, records), Encoder(processor)), 22, records[22]), 3).ids)  # fmt: skip
    picture = opened(folder / "records.json", Encoder(processor)).pictures.most() if name == "llava" else 16
    dataset = opened(folder / "records.json", Encoder(processor, max_length=tokens + picture), hint_share=0.5)
    bad = [one.number for one in find_bad(dataset)]
    cut = {}
    for number in range(len(dataset)):
        if number not in bad and (turns := dataset[number].rows[0].cut):
            cut[number] = turns
    assert bad == [1, 41] and len({*cut.values()}) > 1 and 5 < len(cut) < 38
    assert inspect_records(dataset)[1] == cut
    for _ in range(2):  # looked at, and kept
        found = check_records(dataset, folder / "run", identity={}, skip_bad=True, say=lines.append).cut
        assert (found.records, found.turns) == (len(cut), sum(cut.values()))
        assert (
            f"{sum(cut.values()):,} turns of {len(cut):,} records do not fit in data.max_length" in lines[-1]
        )
        assert found.first == sorted(cut)[:10]
        dataset = opened(folder / "records.json", dataset.encoder, hint_share=0.5)


def test_broken_json_is_among_them(encoder, folder):
    """Of several broken records only the first would be told, one at each start."""
    lines = [json.dumps(FINE[0]), '{"id": 1, "conversations": [', json.dumps(FINE[1]), '{"id": 2}', "\udcff"]
    path = folder / "records.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    dataset = opened(path, encoder)
    found = find_bad(dataset)
    assert [bad.number for bad in found] == [1, 3, 4]
    assert "not valid JSON" in found[0].reason and "conversations" in found[1].reason
    with pytest.raises(ValueError, match=r"record 3 .*conversations"):
        dataset[3]
    with pytest.raises(ValueError, match="line 2"):
        RecordDataset(path, folder, encoder)
    dataset.leave_out([1, 3, 4])
    assert len(dataset) == 2 == len(dataset.lengths()) and len(dataset[1].rows[0].ids)


def test_shares_are_the_whole(tiny_llava, folder):
    """A record between two processes' shares would not be looked at."""
    dataset = opened(write(folder, FINE + list(BAD.values())), Encoder(tiny_llava[1], max_length=1000))
    whole = find_bad(dataset)
    for cut in range(len(dataset) + 1):
        assert find_bad(dataset, 0, cut) + find_bad(dataset, cut) == whole


def test_what_is_left_out_moves_nothing_else(tiny_llava, tmp_path):
    """Hints are drawn by a record's number: all that come after a bad one would be others."""
    write_scenes(tmp_path, "train", 4, 0)
    encoder = Encoder(tiny_llava[1])
    dataset = RecordDataset(tmp_path, tmp_path, encoder, hint_share=0.5, limit=20)
    before = [dataset[k].rows[0].ids.tolist() for k in range(20)]
    dataset.leave_out([0, 7])
    after = [dataset[k].rows[0].ids.tolist() for k in range(len(dataset))]
    assert after == [ids for k, ids in enumerate(before) if k not in (0, 7)]


def test_outcome_is_kept_for_the_same_data_only(tiny_llava, folder, monkeypatch):
    """A run that goes on would read 1.3 million records again; one on other data would not read them."""
    encoder = Encoder(tiny_llava[1], max_length=1000)
    records = FINE * 4 + [BAD["is empty"]]
    path, output, calls = write(folder, records), folder / "out/run", []
    find = inspect_records
    monkeypatch.setattr(first_pass, "inspect_records", lambda *args: calls.append(args) or find(*args))

    def again(identity="a", **options):
        dataset = opened(path, encoder)
        return check_records(dataset, output, identity={"sha256": identity}, **options).bad, len(dataset)

    with pytest.raises(ValueError, match=r"1 of 25 rec.*skip_bad=true\n  record 24: turn 0 .*empty.*"):
        again()
    assert not checked_file(output).exists()  # it may be mended
    assert again(skip_bad=True) == again(skip_bad=True) == ([24], 24)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="cannot be trained"):
        again()
    again(skip_bad=True, resume=False), again("b", skip_bad=True)
    assert len(calls) == 4
    checked_file(output).write_text("{")
    again("b", skip_bad=True)
    assert len(calls) == 5


def test_bad_records_cost_little_memory(tiny_llava, folder):
    """With the wrong folder all 1.3 million are bad, and the beginning of each would take a gigabyte."""
    record = said("<image>\nQ?", "A <SPAN>dog</CN> is here. " * 40, image="none/1.png")
    dataset = opened(write(folder, [record] * 2000), Encoder(tiny_llava[1], max_length=2000))
    tracemalloc.start()
    found = find_bad(dataset)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 2000 and kept < 250 * 2000, kept
    with pytest.raises(ValueError) as error:
        check_records(dataset, folder / "run", identity={})
    assert str(error.value).count('; the record: {"id": "x"') == first_pass.SHOWN


def test_half_of_the_data_is_not_left_out(tiny_llava, folder):
    """With the wrong folder of pictures, skip_bad would train on what has none, and say nothing."""
    dataset = opened(write(folder, [FINE[1]] * 30 + [FINE[0]] * 3), Encoder(tiny_llava[1], max_length=1000))
    dataset.image_root = folder / "images"
    with pytest.raises(ValueError, match=r"30 of 33 .*data.images(?s:.*)and 25 more: 5, 6.*…"):
        check_records(dataset, folder / "run", identity={}, skip_bad=True)


def test_pictures_are_looked_for_by_folder(tmp_path):
    """A link out of the folder would be followed, or a picture behind a harmless one missed."""
    (tmp_path / "root/a").mkdir(parents=True)
    for name in ("secret.png", "root/a/1.png", "root/2.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "root/a/in.png").symlink_to("1.png")
    (tmp_path / "root/a/out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "root/b").symlink_to("a")
    (tmp_path / "root/outside").symlink_to(tmp_path)
    good = ["a/1.png", "2.png", "./2.png", "a/in.png", "b/1.png", "a//1.png", "a/../2.png"]
    lost = ["a/3.png", "c/1.png", "a", "a/", "A/1.png"]
    refused = ["../secret.png", "a/out.png", "outside/secret.png", "/2.png", "a/\0.png", ""]
    missing, why = find_missing_images(tmp_path / "root", good + lost + refused)
    assert sorted(missing) == sorted(lost) and sorted(why) == sorted(refused)
    assert "leaves" in why["a/out.png"] and "relative" in why["/2.png"]


@pytest.fixture
def recipe(tiny, folder):
    model, processor = tiny("llava", init_std=0.02)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    settings = {
        "model": str(folder / "base"),
        "output": str(folder / "out"),
        "data": {"records": str(folder / "records.json"), "images": str(folder), "workers": 0},
        "tune": {"method": "lora", "rank": 4, "alpha": 8},
        "optim": {"steps": 2, "batch": 1, "global_batch": 2},
        "log": {"save_steps": 0},
    }
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    return str(folder / "recipe.yaml")


def test_a_run_names_what_it_leaves_out(recipe, folder, capsys):
    """A record would stop the run in the middle of it, or be dropped in silence."""
    write(folder, [*FINE, BAD["closes no"], *FINE, BAD["no such picture"]])
    with pytest.raises(ValueError, match="2 of 14 records"):
        run_recipe(load_recipe(recipe), quiet=True)
    assert not (folder / "out").exists() and not (folder / "out.checkpoints").exists()
    import_records(folder / "records.json", folder / "imported")
    for records, name in ((folder / "records.json", "one"), (folder / "imported", "two")):
        settings = [f"data.records={records}", f"output={folder / name}", "data.skip_bad=true"]
        settings.append("data.max_length=1000")
        manifest = run_recipe(load_recipe(recipe, settings))
        assert manifest["data"]["count"] == 12
        assert manifest["data"]["left_out"] == {"count": 2, "records": [6, 13]}
        assert manifest["data"]["cut"] == {"records": 2, "turns": 2}
        assert not checked_file(folder / name).exists()
        printed = capsys.readouterr().out
        assert f"{name}: left out 2 bad records" in printed
        assert f"{name}: 2 turns of 2 records do not fit in data.max_length=1000" in printed
    assert json.loads((folder / "one/training.json").read_text())["data"]["left_out"]["records"] == [6, 13]


def test_runs_from_before_skip_bad_go_on(recipe, folder):
    """A run that was finished or stopped before the key existed would be refused as another recipe's."""
    write(folder, FINE)
    run_recipe(load_recipe(recipe), quiet=True)
    path = folder / "out/training.json"
    manifest = json.loads(path.read_text())
    before = json.loads(path.read_text())
    del before["recipe"]["data"]["skip_bad"], before["data"]["left_out"], before["data"]["cut"]
    path.write_text(json.dumps(before))
    assert run_recipe(load_recipe(recipe), quiet=True) == before
    with pytest.raises(FileExistsError, match="another recipe"):
        run_recipe(load_recipe(recipe, ["data.skip_bad=true"]), quiet=True)
    checkpoints = folder / "some.checkpoints"
    settings = {"batch": 1, "notes": {name: manifest[name] for name in ("recipe", "data")}}
    stopped = {"batch": 1, "notes": {name: before[name] for name in ("recipe", "data")}}
    prepare_folder(checkpoints, stopped, resume=False)
    (checkpoints / "checkpoint-1").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing, "last_checkpoint", lambda folder: "checkpoint-1")
        prepare_folder(checkpoints, settings, resume=True)
        settings["notes"]["data"]["left_out"] = {"count": 1, "records": [3]}
        with pytest.raises(ValueError, match="other settings"):
            prepare_folder(checkpoints, settings, resume=True)
    assert (checkpoints / "checkpoint-1").is_dir()


def test_the_command_lists_them(recipe, folder):
    """Records and reasons would run into one line of thousands of characters."""
    write(folder, [*FINE, BAD["closes no"], *FINE, BAD["no such picture"]])
    result = CliRunner().invoke(app, ["train", recipe, "--quiet"])
    lines = [line for line in result.stderr.splitlines() if "record" in line]
    assert result.exit_code == 2 and "data.skip_bad=true" in lines[0], result.stderr
    assert lines[1].startswith("  record 6: ") and lines[2].startswith("  record 13: no such picture")


def test_processes_leave_out_the_same(recipe, folder):
    """Each would know of its own share alone: data of other lengths, and a hang at the end."""
    write(folder, [BAD["closes no"], *FINE, BAD["no such picture"]])
    settings = ("--set", "compute.parallel=ddp", "--set", "data.skip_bad=true")
    done = on_two("-m", "reverse", "train", recipe, *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((folder / "out/training.json").read_text())
    assert manifest["data"]["left_out"]["records"] == [0, 7] and manifest["processes"] == 2
    assert done.stdout.count("left out 2 bad records") == 1
