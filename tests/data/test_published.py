"""The imported set is the published file, whatever happened on the way; json.load is the oracle."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import pytest

from reverse.data.records import importer
from reverse.data.records.importer import import_records
from reverse.data.records.published_set import FileRecords, ImportedRecords, open_records, scan_records
from reverse.data.records.schema import make_record
from reverse.files.json_scanning import Broken
from reverse.training.data.encoding import Encoder
from reverse.training.data.training_sets import RecordDataset

SHAPES = (
    {},
    {"id": 7},
    {"id": 0.5},
    {"model": "", "nested": {"a": [1, None, {"id": 1}]}},
    {"id": None},
    {"image": None},
    {"half": "\ud83d", "long": 10**30, "nothing": {}},
)


def unusual_records(count, seed=0):
    """Records of every shape that passes: further keys, no picture, several turns, any id, any text."""
    rng = random.Random(seed)
    records = []
    for k in range(count):
        record = make_record(
            f"{k:06d}", f"coco/train2017/{k}.jpg", "What?", f"<SPAN>ein Hündchen {k}</CN> 😀\u2028"
        )
        if k % 3 == 0:
            del record["image"]
        for _ in range(rng.randrange(3)):
            record["conversations"] += [
                {"from": "human", "value": '\\" ]}, {'},
                {"from": "gpt", "value": "\t"},
            ]
        record |= SHAPES[k % len(SHAPES)]
        if k % 11 == 0:
            del record["id"]
        records.append(dict(sorted(record.items(), reverse=k % 2 == 0)))
    return records


def write(path, records, form="list"):
    if form == "lines":
        path.write_text("\n".join(json.dumps(record) for record in records))
    else:
        path.write_text(json.dumps(records, indent=2 if form == "indented" else None))
    return path


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(importer, "SHARD_BYTES", 8000)
    monkeypatch.setattr(importer, "BATCH", 7)


@pytest.mark.parametrize("form", ["list", "indented", "lines"])
def test_what_is_read_is_what_was_published(form, tmp_path, small_shards):
    """A field lost or a null made of nothing would change what is trained on."""
    records = unusual_records(200)
    path = write(tmp_path / "all.json", records, form)
    manifest = import_records(path, tmp_path / "set")
    imported = open_records(tmp_path / "set")
    assert isinstance(imported, ImportedRecords) and len(manifest["shards"]) > 3
    again = pickle.loads(pickle.dumps(imported))
    for opened in (imported, again, open_records(path)):
        assert [opened[k] for k in range(len(opened))] == records
        assert [list(opened[k]) for k in range(len(opened))] == [list(record) for record in records]
    assert [item.value for item in scan_records(tmp_path / "set")] == records
    assert manifest["records"] == 200 and manifest["left_out"] == 0
    assert manifest["answers"] == sum(len(record["conversations"]) // 2 for record in records)
    assert manifest["with_picture"] == sum(record.get("image") is not None for record in records)
    whole = path.read_bytes()
    for k in (0, 77, 199):
        place = int(imported.where(k).split("byte ")[1].split()[0])
        assert whole[place:].startswith(imported.text(k).encode())
    with pytest.raises(IndexError):
        imported[200]


def test_records_are_found_by_id(tmp_path, small_shards):
    """`view --id 12` would not find the record whose id is the number 12."""
    records = [make_record(name, None, "a", "b") for name in ("1", "2", "1", 1, None, 1.5)]
    path = write(tmp_path / "all.json", records)
    import_records(path, tmp_path / "set")
    for opened in (open_records(tmp_path / "set"), open_records(path)):
        assert (opened.find("1"), opened.find("1.5"), opened.find("3")) == ([0, 2, 3], [5], [])


@pytest.mark.parametrize("form", ["list", "lines"])
@pytest.mark.parametrize("stop", [1, 3000, 20_000, 60_000])
def test_a_stopped_import_goes_on_to_the_same_set(form, stop, tmp_path, small_shards, monkeypatch):
    """A killed import would be read as whole, or would lose or repeat records."""
    records = unusual_records(200)
    path = write(tmp_path / "all.json", records, form)
    whole = import_records(path, tmp_path / "whole")
    monkeypatch.setattr("reverse.files.json_window.CHUNK", 512)

    def progress(done, total):
        if done >= stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_records(path, tmp_path / "set", progress=progress)
    with pytest.raises(ValueError, match="was not imported to the end"):
        open_records(tmp_path / "set")
    kept = {shard.name: shard.stat().st_mtime_ns for shard in (tmp_path / "set").glob("*.arrow")}
    assert bool(kept) == (stop > 8000)
    assert import_records(path, tmp_path / "set") == whole
    for name, changed in kept.items():
        assert (tmp_path / "set" / name).stat().st_mtime_ns == changed  # not made again
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    for shard in (tmp_path / "whole").glob("*.arrow"):
        assert (tmp_path / "set" / shard.name).read_bytes() == shard.read_bytes()


def test_killed_for_good(tmp_path):
    """What `finally` tidies up after an exception stays behind after kill -9."""
    records = unusual_records(4000)
    path = write(tmp_path / "all.json", records)
    code = (
        "import sys; from reverse.data.records import importer; importer.SHARD_BYTES = 50_000\n"
        "import os; sync = os.fsync\n"
        "def slow(d): sync(d); print(flush=True)\n"
        "os.fsync = slow\n"
        "importer.import_records(sys.argv[1], sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "set")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        for _ in range(9):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    with pytest.raises(ValueError, match="was not imported to the end"):
        open_records(tmp_path / "set")
    import_records(path, tmp_path / "set")
    imported = open_records(tmp_path / "set")
    assert [imported[k] for k in range(len(imported))] == records
    assert not list((tmp_path / "set").rglob("*.tmp")) and not (tmp_path / "set" / "parts").exists()


def test_finished_is_left_and_others_are_refused(tmp_path, small_shards):
    """Running a command twice would cost an hour, or put two files into one set."""
    path = write(tmp_path / "all.json", unusual_records(50))
    manifest = import_records(path, tmp_path / "set")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()}
    assert import_records(path, tmp_path / "set") == manifest
    os.utime(path, (time.time(), time.time() + 9))  # copied again: the same bytes
    assert import_records(path, tmp_path / "set") == manifest
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()} == before
    other = write(tmp_path / "other.json", unusual_records(51))
    with pytest.raises(ValueError, match="another"):
        import_records(other, tmp_path / "set")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="thesis"):
        import_records(path, tmp_path / "mine")
    with pytest.raises(ValueError, match="is a file"):
        import_records(path, other)
    with pytest.raises(FileNotFoundError, match="gone"):
        import_records(tmp_path / "gone", tmp_path / "new")


def test_a_source_that_changes_is_no_set(tmp_path, small_shards):
    """Half of one download and half of another would be a set."""
    path = write(tmp_path / "all.json", unusual_records(200))

    def progress(done, total):
        os.utime(path, (1, 1))

    with pytest.raises(ValueError, match="changed while"):
        import_records(path, tmp_path / "set", progress=progress)


@pytest.mark.parametrize("form", ["list", "lines"])
def test_corrupt_records_stop_or_are_listed(form, tmp_path, small_shards):
    """A set would lose records in silence, or one bad record would cost the whole."""
    records = unusual_records(60)
    texts = [json.dumps(record) for record in records]
    bad = {
        10: texts[10].replace('"from"', '"from', 1),
        20: json.dumps({"id": "no turns"}),
        30: json.dumps(make_record("x", None, "a", "b") | {"image": 3}),
        40: "171717171",
        59: json.dumps({"conversations": [{"from": "human", "value": "unanswered"}] * 3}),
    }
    for k, text in bad.items():
        texts[k] = text
    data = "\n".join(texts) if form == "lines" else f"[{', '.join(texts)}]"
    path = tmp_path / "all.json"
    path.write_text(data)
    offset = data.index(bad[10])
    name = "line 11" if form == "lines" else "item 10"
    with pytest.raises(ValueError, match=rf"{name} \(byte {offset}\).*--skip-corrupt"):
        import_records(path, tmp_path / "set")
    with pytest.raises(ValueError, match=rf"{name} \(byte {offset}\)"):
        FileRecords(path)
    manifest = import_records(path, tmp_path / "set", skip_corrupt=True)
    good = [record for k, record in enumerate(records) if k not in bad]
    imported = open_records(tmp_path / "set")
    assert [imported[k] for k in range(len(imported))] == good
    assert [broken["number"] for broken in manifest["corrupt"]] == list(bad) and manifest["left_out"] == 5
    assert [broken["offset"] for broken in manifest["corrupt"]] == [data.index(text) for text in bad.values()]
    assert "relative path" in manifest["corrupt"][2]["reason"]
    found = [item.number for item in scan_records(path) if isinstance(item, Broken)]
    assert found == list(bad)


def test_a_record_cut_off_at_the_end_is_one(tmp_path, small_shards):
    """The manifest would say that two records of a half-finished download are lost where one is."""
    records = unusual_records(100)
    whole = write(tmp_path / "all.json", records).read_bytes()
    path = tmp_path / "cut.json"
    path.write_bytes(whole[: whole.rindex(b"ndchen")])
    manifest = import_records(path, tmp_path / "set", skip_corrupt=True)
    assert (manifest["records"], manifest["left_out"]) == (99, 1)
    assert [broken["number"] for broken in manifest["corrupt"]] == [99]
    assert "cut off" in manifest["corrupt"][0]["reason"]


def test_nothing_but_broken_records(tmp_path):
    """An empty set would be trained on for zero steps, without an error."""
    path = tmp_path / "all.json"
    for text in ("[]", "", "[1, 2]", "\x00\xff"):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no records"):
            import_records(path, tmp_path / "set", skip_corrupt=True)


def test_a_damaged_set_is_refused(tmp_path, small_shards):
    """A set copied in part would be trained on in part."""
    path = write(tmp_path / "all.json", unusual_records(100))
    import_records(path, tmp_path / "set")
    shard = tmp_path / "set" / "data-00001.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="data-00001"):
        open_records(tmp_path / "set")
    shard.unlink()
    with pytest.raises(ValueError, match="data-00001"):
        open_records(tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_text('{"kind": "reverse records", "format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        open_records(tmp_path / "set")


def test_two_imports_do_not_share_a_folder(tmp_path, small_shards):
    """Each would rename the other's half-written shards."""
    path = write(tmp_path / "all.json", unusual_records(100))

    def progress(done, total):
        with pytest.raises(ValueError, match="being written by another process"):
            import_records(path, tmp_path / "set")

    import_records(path, tmp_path / "set", progress=progress)


def test_training_reads_an_imported_set(tiny_llava, tmp_path, picture):
    """The set at full size could be imported and not trained on."""
    records = [make_record(str(k), "a.png", "What?", f"<SPAN>a dog {k}</CN>") for k in range(5)]
    path = write(tmp_path / "all.json", records)
    import_records(path, tmp_path / "set")
    picture().save(tmp_path / "a.png")
    encoder = Encoder(tiny_llava[1])
    one, other = RecordDataset(path, tmp_path, encoder), RecordDataset(tmp_path / "set", tmp_path, encoder)
    other = pickle.loads(pickle.dumps(other))
    assert len(one) == len(other) == 5
    for k in range(5):
        assert one.record(k) == other.record(k) == records[k]
        assert one[k].rows[0].ids.tolist() == other[k].rows[0].ids.tolist()
