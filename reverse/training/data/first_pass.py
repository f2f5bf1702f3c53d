"""Before the first step all records are looked at, so that none stops a run hours later.

    bad = find_bad(dataset)             # of a RecordDataset: [Bad(17, "no such picture: …"), …]
    checked = check_records(dataset, "out/run", identity={"sha256": …}, skip_bad=False)
    checked.bad, checked.cut            # numbers of records; how much of the others does not fit

Nearly all records are recognised as good at a glance: their tags match one pattern, and their texts are so
short that, at a byte an id, all turns fit. Longer texts are tokenised; where the largest thinkable picture
would leave no room for them, the picture's header says how large it is. What is left is encoded as in
training, which then says what is wrong, and how many turns do not fit. So the glance must never pass what the
encoder refuses or cuts, and need not know why it does. What `reverse data check` calls wrong is bad here too
(`reverse.data.records.record_rules`), and so are pictures that are not there; they are not decoded. Each
process of a run
looks at a share of the records and learns what the others found.

The outcome is kept in `OUTPUT.checked.json` until the run has ended, for this data, these settings and this
processor, so that a run that goes on does not look again.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reverse.data.pictures.opening import image_size, look_for_images, resolve_image
from reverse.data.records.record_rules import find_faults, has_unusual_keys
from reverse.data.records.schema import picture_of, pictures_of
from reverse.errors import DataError
from reverse.files.atomic_write import write_json
from reverse.files.text_reading import read_json
from reverse.tokens.spans import SPAN
from reverse.training.data.encoding import IMAGE, MARK, Encoder, Row, Turn
from reverse.training.data.training_sets import RecordDataset, may_be_hinted
from reverse.training.optim.parallel import exchange, is_first, processes, rank

__all__ = ["Bad", "Checked", "Cut", "check_records", "checked_file", "find_bad"]

FORMAT = 6  # of the file
SHOWN = 5  # bad records in a message
FIRST = 10  # numbers in a line
TOGETHER = 512  # long records that are tokenised in one call
LARGEST_SHARE = 0.5  # of records that may be left out: more are no bad records but a wrong setting
_HINT = 48  # ids that a hint takes beside its phrase, at a byte an id
_APART = 4  # ids that a text may take more where it stands between others


class Bad(NamedTuple):
    """A record that cannot be trained: its number in the file, and why."""

    number: int
    reason: str


class Cut(NamedTuple):
    """Of records that can be trained: how many lose turns that do not fit, and how many turns they lose."""

    records: int
    turns: int
    first: list[int]  # some of the records' numbers


class Checked(NamedTuple):
    """What was found: numbers of bad records, and what is cut of the others."""

    bad: list[int]
    cut: Cut


def check_records(
    dataset: RecordDataset,
    output: str | Path,
    *,
    identity: Mapping[str, Any],
    skip_bad: bool = False,
    resume: bool = True,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Checked:
    """Look at all records of `dataset`, which leaves out those that are bad from now on.

    Every process of a run calls it.

    Args:
        dataset: opened with `keep_broken`.
        output: of the run; what was found is kept beside it.
        identity: what the data are, JSON.
        skip_bad: leave bad records out; False: they are an error. Damaged pictures are found when they are
            drawn, and then the next record is trained, or it is an error.
        resume: take what an earlier start found, where it is of the same data and settings.
        say: is told what goes on.
        progress: is told how many records of this process' share were looked at, and how many there are.

    Raises:
        ValueError: there are bad records and `skip_bad` is not set, or more than half are bad.
    """
    dataset.replace_damaged = skip_bad  # pictures are decoded when they are drawn, and not before
    path, count = checked_file(output), len(dataset)
    key = json.loads(json.dumps({"format": FORMAT, **identity, **_settings(dataset)}))
    kept = _read(path, key) if resume and is_first() else None
    known = exchange(kept)[0]
    if known is None:
        say(f"checking {count:,} records")
        most, longest = dataset.pictures.most(), dataset.encoder.max_length
        if longest is not None and most >= longest and dataset.pictures.keeps_size:
            say(
                f"a picture may take {most:,} ids and a row holds {longest:,} (data.max_length): the sizes "
                "of all pictures are read, and what does not fit is bad; data.max_pixels makes them smaller"
            )
        began = time.monotonic()
        first, end = (count * k // processes() for k in (rank(), rank() + 1))
        bad, cut_turns = _look(dataset, first, end, progress)
        samples = [[*one, _beginning(dataset, one.number)] for one in bad[:SHOWN]]
        shares = exchange([[one.number for one in bad], samples, _summed(cut_turns)])
        numbers = sorted(number for share, _, _ in shares for number in share)
        shown = [one for _, some, _ in shares for one in some][:SHOWN]
        cuts = [Cut(*cut) for _, _, cut in shares]
        firsts = [number for cut in cuts for number in cut.first][:FIRST]
        cut = Cut(sum(cut.records for cut in cuts), sum(cut.turns for cut in cuts), firsts)
        say(f"checked {count:,} records in {time.monotonic() - began:.0f} s: {len(numbers):,} are bad")
    else:
        numbers, shown, cut = known["bad"], known["shown"], Cut(*known["cut"])
    if numbers and not skip_bad:
        mend = "mend them (`reverse data check` names what no model is trained on), or leave them out "
        raise DataError(_message(dataset, numbers, shown, count, mend + "with data.skip_bad=true"))
    if len(numbers) > LARGEST_SHARE * count:
        mend = "data.skip_bad leaves out half of them at most: is data.images the right folder?"
        raise DataError(_message(dataset, numbers, shown, count, mend))
    if known is None and is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "bad": numbers, "shown": shown, "cut": cut})
    if numbers:
        say(f"left out {len(numbers):,} bad records, the first of them {numbers[:FIRST]}: {shown[0][1]}")
        dataset.leave_out(numbers)
    if cut.records:
        say(
            f"{cut.turns:,} turns of {cut.records:,} records do not fit in data.max_length="
            f"{dataset.encoder.max_length} and are left out, from the end; the first records: {cut.first}"
        )
    return Checked(numbers, cut)


def checked_file(output: str | Path) -> Path:
    """Where the outcome is kept while a run goes on."""
    output = Path(output)
    return output.with_name(output.name + ".checked.json")


def find_bad(dataset: RecordDataset, first: int = 0, end: int | None = None) -> list[Bad]:
    """The records of items `first` to `end` that cannot be trained, in order."""
    return _look(dataset, first, end)[0]


def _look(
    dataset: RecordDataset,
    first: int = 0,
    end: int | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> tuple[list[Bad], dict[int, int]]:
    """Bad records, and of the others: how many turns do not fit (number of the record: turns)."""
    glance = _Glance(dataset)
    places: dict[str, int] = {}  # of a picture among the different ones
    shown = array("q")  # of each record, the place of its first picture, or -1
    further, of = array("q"), array("q")  # places of pictures beside the first, and their records' places
    numbers = dataset.kept[first:end].tolist()
    bad: dict[int, str] = {}
    cut: dict[int, int] = {}
    long: list[tuple[int, Mapping[str, Any]]] = []

    def encode(number: int, record: Mapping[str, Any]) -> None:
        reason, turns = glance.verdict(number, record)
        if reason is not None:
            bad[number] = reason
        elif turns:
            cut[number] = turns

    def tokenise_long() -> None:
        for (number, record), ids in zip(long, glance.counted([record for _, record in long]), strict=True):
            if not glance.fits(ids, picture_of(record)):
                encode(number, record)
        long.clear()

    for done, number in enumerate(numbers):
        if done % TOGETHER == 0:
            progress(done, len(numbers))
        place = -1
        if number in dataset.records.broken:
            bad[number] = dataset.records.broken[number]
        else:
            record = dataset.record(number)
            image = picture_of(record)
            if image is not None:
                place, *others = [places.setdefault(name, len(places)) for name in pictures_of(record)]
                further.extend(others)
                of.extend([done] * len(others))
            needed = glance.most_ids(record)
            if needed is None:
                encode(number, record)
            elif not glance.fits(needed, image):
                long.append((number, record))
        shown.append(place)
        if len(long) >= TOGETHER:
            tokenise_long()
    tokenise_long()
    missing, refused = look_for_images(dataset.image_root, places)
    lost = {name: f"no such picture: {dataset.image_root / name}" for name in missing} | refused
    if lost:
        why = {places[name]: reason for name, reason in lost.items()}
        pictures = np.concatenate([np.frombuffer(each, dtype=np.int64) for each in (shown, further)])
        records = np.concatenate([np.arange(len(shown)), np.frombuffer(of, dtype=np.int64)])
        for k in np.flatnonzero(np.isin(pictures, list(why))).tolist():
            bad.setdefault(numbers[records[k]], why[int(pictures[k])])
    for number in bad.keys() & cut.keys():  # its picture is not there
        del cut[number]
    return [Bad(number, _shown(bad[number])) for number in sorted(bad)], cut


def _summed(cut: Mapping[int, int]) -> Cut:
    return Cut(len(cut), sum(cut.values()), sorted(cut)[:FIRST])


class _Glance:
    """Tells records that are good beyond doubt; encodes the others."""

    def __init__(self, dataset: RecordDataset):
        # Without a cache: what is encoded here is odd, and would fill the one that training lives on.
        encoder = dataset.encoder
        self.dataset = dataset
        self.encoder = Encoder(encoder.processor, max_length=encoder.max_length, cache=0)
        self.most = dataset.pictures.most()
        self._ids_of = lru_cache(maxsize=4 * TOGETHER)(self._ids_of_picture)
        longest = encoder.max_length
        # Ids of the template, those of the two letters counted twice.
        two = [len(Encoder(encoder.processor).row([Turn("a", "a")] * k, None).ids) + 16 for k in (1, 2)]
        template, self.later = two[0], two[1] - two[0] + 4  # of the first turn, of each after it
        self.room = None if longest is None else longest - template

    def most_ids(self, record: Mapping[str, Any]) -> int | None:
        """No less than the ids of its texts; None where encoding may fail for another reason than length."""
        said = record["conversations"]
        needed = (len(said) // 2 - 1) * self.later
        if has_unusual_keys(record) or next(find_faults(record), None) is not None:
            return None
        for k in range(0, len(said), 2):
            question, answer = said[k]["value"], said[k + 1]["value"]
            hint = said[k + 1].get("hint") or ""
            if question.count("<") != question.count(IMAGE):
                return None
            # Tokenizers may merge newlines and signs with the template's last ones.
            if not (answer[0].isalnum() or answer.startswith(SPAN)):
                return None
            if not question.isascii() and MARK[0] in question:
                return None
            asked = question.replace(IMAGE, "") + "\n" + hint.lower() if hint else question.replace(IMAGE, "")
            if self.encoder.not_in_question.search(asked) or self.encoder.not_in_answer.search(answer):
                return None
            hint = hint if hint and may_be_hinted(said[k + 1]) else ""
            needed += _most_ids(question) + _most_ids(answer) + (_most_ids(hint) + _HINT if hint else 0)
        return needed

    def fits(self, ids: int, image: str | None) -> bool:
        """Whether so many ids of texts find room beside the picture, which is looked at if need be."""
        if self.room is None or ids <= self.room - (self.most if image is not None else 0):
            return True
        if image is None or not self.dataset.pictures.keeps_size:
            return False
        try:
            return ids <= self.room - self._ids_of(image)
        except (ValueError, OSError):
            return False

    def counted(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of each record's texts, and more: each alone takes about as many as beside the template's.

        All are tokenised in one call, on as many processors as the tokenizer takes.
        """
        texts: list[str] = []
        added, ends = [], []
        for record in records:
            said = record["conversations"]
            hints = [turn["hint"] for turn in said[1::2] if turn.get("hint") and may_be_hinted(turn)]
            texts += [turn["value"] for turn in said] + hints
            ends.append(len(texts))
            added.append((len(said) // 2 - 1) * self.later + len(hints) * _HINT)
        if not texts:
            return []
        tokenizer = self.encoder.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        ids: Any  # counted only: made into no lists where that can be spared
        if backend is not None:
            ids = backend.encode_batch_fast(texts, add_special_tokens=False)
        else:
            ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        lengths = [len(each) + _APART for each in ids]
        begins = [0, *ends[:-1]]
        return [more + sum(lengths[a:b]) for more, a, b in zip(added, begins, ends, strict=True)]

    def verdict(self, number: int, record: Mapping[str, Any]) -> tuple[str | None, int]:
        """Why this record cannot be trained, None where it can, and how many of its turns do not fit."""
        for fault in find_faults(record, hints=False):  # those that are drawn are the encoder's to look at
            return fault.message, 0
        try:
            return None, self._row(self.dataset.turns(number, record), pictures_of(record)).cut
        except FileNotFoundError:
            return None, 0  # the picture's absence is found with the others'
        except (ValueError, OSError) as error:
            return str(error), 0

    def _row(self, turns: list[Turn], images: Sequence[str]) -> Row:
        """As in training; the pictures' sizes are read only where they matter."""
        most = [self.most] * len(images)
        if not (images and self.dataset.pictures.keeps_size):
            return self.encoder.row(turns, most)
        if self.room is None or self.room > self.most:
            try:
                row = self.encoder.row(turns, most)
                if not row.cut:
                    return row
            except ValueError:  # if it is not for the length, it comes again
                pass
        return self.encoder.row(turns, [self._ids_of(image) for image in images])

    def _ids_of_picture(self, image: str) -> int:
        return self.dataset.pictures.count(*image_size(resolve_image(self.dataset.image_root, image)))


def _most_ids(text: str) -> int:
    """An id stands for a byte at least; where texts are normalised, one beyond ASCII may become two."""
    if text.isascii():
        return len(text)
    size = len(text.encode("utf-8", "replace"))
    return size + 2 * (size - len(text))  # of two bytes or more each, so half of them at least are surplus


def _settings(dataset: RecordDataset) -> dict[str, Any]:
    """What of the settings and the processor decides which records are bad."""
    processor = dataset.encoder.processor
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    texts = [str(processor.chat_template), str(processor.image_processor)]
    texts += [] if backend is None else [backend.to_str()]
    return {
        "images": str(dataset.image_root.resolve()),
        "items": len(dataset),
        "max_length": dataset.encoder.max_length,
        "hint_share": dataset.hint_share,
        "seed": dataset.seed,
        "processor": hashlib.sha256("\n".join(texts).encode("utf-8", "replace")).hexdigest(),
    }


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was found before, of the same data and settings."""
    try:
        found = read_json(path)
        return found if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _message(dataset: RecordDataset, numbers: list[int], shown: list[Any], count: int, mend: str) -> str:
    """`shown`: number, reason and beginning of the first ones."""
    lines = [
        f"data.records: {len(numbers):,} of {count:,} records of {dataset.path} cannot be trained: {mend}"
    ]
    lines += [f"  record {number}: {reason}; the record: {record}" for number, reason, record in shown]
    more = [str(number) for number in numbers[len(shown) :]]
    if more:
        lines.append(f"  and {len(more):,} more: {', '.join(more[:20])}{', …' if len(more) > 20 else ''}")
    return "\n".join(lines)


def _shown(reason: str) -> str:
    """As a terminal takes it: a name of a picture may hold half of a surrogate pair."""
    return reason if reason.isascii() else reason.encode("utf-8", "backslashreplace").decode("utf-8")


def _beginning(dataset: RecordDataset, number: int) -> str:
    return dataset.records.raw(number)[:300].decode("utf-8", "replace")
