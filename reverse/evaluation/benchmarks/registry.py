"""The benchmarks, one record each, and their names.

    for bench in named("all"): print(bench.title)

Default settings are those of the paper (§5): the checkpoint's own threshold for captions and open questions,
0.5 where yes or no is wanted; temperature 0; blank answers are asked once more only on MMHal-Bench and
HaloQuest. AMBER's id lists are known by construction (1 to 1004, 1005 to 15220); of no other list the
hash is known here, so it is recorded with the answers instead of checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from reverse.errors import DataError
from reverse.evaluation.benchmarks import question_readers
from reverse.evaluation.benchmarks.benchmark import Bench, File, ids_digest
from reverse.evaluation.benchmarks.mme_files import HALLUCINATION

__all__ = ["BENCHES", "named"]

DATA = "playground/data/eval"
_BUNDLE = "evaluation bundle of the published REVERSE code"
_COCO = "COCO 2014 (cocodataset.org)"
_AMBER = "github.com/junyangwang0410/AMBER, data/"
_POPE = "github.com/RUCAIBox/POPE, output/"
_SINGLE_WORD = "\nAnswer the question using a single word or phrase."  # what LLaVA's POPE file asks with
_CAPTION, _SHORT, _OPEN = 1024, 128, 1024  # new tokens
_SHARED = "images"  # a root that holds all pictures in one folder, as that of scenes does

_COCO_IMAGES = ("chair_mscoco/coco/val2014", "pope/coco/val2014", "coco/val2014", "../coco/val2014", _SHARED)


def _coco_truth(name: str) -> File:
    places = tuple(f"{folder}/annotations/{name}_val2014.json" for folder in ("chair_mscoco/coco", "coco"))
    return File(places, f"COCO {name}, the truth", f"{_COCO}, annotations_trainval2014.zip", "score")


def _amber(name: str, title: str, file: str, kind: str, first: int, last: int) -> Bench:
    metadata = {
        stem: File((f"amber/metadata/{stem}{end}", f"amber/{stem}{end}"), what, _AMBER, "score")
        for stem, end, what in (
            ("annotations", ".json", "truth"),
            ("relation", ".json", "which words mean which object"),
            ("safe_words", ".txt", "words that are never wrong"),
        )
    }
    queries = File(
        (f"amber/questions/{file}.jsonl", f"amber/questions/{file}.json", f"amber/query/{file}.json"),
        f"{last - first + 1} queries",
        _AMBER + "query/",
    )
    return Bench(
        name,
        title,
        {"questions": queries} | metadata,
        ("amber/image", "amber/images", _SHARED),
        "AMBER's pictures (linked from its README), AMBER_1.jpg …",
        question_readers.amber,
        "caption" if kind == "caption" else "yes_no",
        _CAPTION if kind == "caption" else _SHORT,
        ids_sha256=ids_digest(range(first, last + 1)),
        count=last - first + 1,
    )


def _pope(name: str, title: str, stem: str, places: str, images: tuple[str, ...], source: str) -> Bench:
    files = {
        setting: File(
            tuple(f"pope/{place.format(stem=stem)}_{setting}.json" for place in places.split()),
            f"{setting} questions with labels",
            source,
            "score" if name == "pope" else "run",
        )
        for setting in question_readers.SETTINGS
    }
    if name != "pope":
        return Bench(
            name, title, files, images, "COCO val2014" if stem != "gqa" else "GQA images",
            question_readers.pope_set, "yes_no", _SHORT, suffix=_SINGLE_WORD, count=9000,
        )  # fmt: skip
    llava = File(
        ("pope/llava_pope_test.jsonl",), "all questions, LLaVA's ids", "LLaVA's evaluation files, eval.zip"
    )
    return Bench(
        name, title, {"llava": llava} | files, images, _COCO, question_readers.pope, "yes_no", _SHORT,
        suffix=_SINGLE_WORD, count=8910, alternatives=(("llava",), question_readers.SETTINGS),
    )  # fmt: skip


def _mme(name: str, title: str, tasks: tuple[str, ...] | None, count: int) -> Bench:
    files = {
        "lines": File(("MME/mme.jsonl",), "rows of the hub as JSON lines", "scenes, or your own export"),
        "parquet": File(
            ("MME/data", "MME/parquet"), "folder of parquet files, pictures inside", "hub: lmms-lab/MME"
        ),
        "release": File(
            ("MME/MME_Benchmark_release_version",),
            "folder of tasks with pictures",
            "MME, on request",
        ),
    }
    return Bench(
        name, title, files, ("MME/MME_Benchmark_release_version", "MME/images", _SHARED),
        "part of the above", question_readers.mme(tasks), "yes_no", _SHORT, count=count,
        alternatives=(("lines",), ("parquet",), ("release",)),
    )  # fmt: skip


_ALL = (
    Bench(
        "chair",
        "CHAIR-MSCOCO",
        {
            "questions": File(("chair_mscoco/chair-500.jsonl",), "500 questions", _BUNDLE),
            "instances": _coco_truth("instances"),
            "captions": _coco_truth("captions"),
        },
        _COCO_IMAGES,
        f"{_COCO}, val2014.zip",
        question_readers.chair,
        "caption",
        _CAPTION,
        count=500,
    ),
    _amber("amber-g", "AMBER-G", "query_generative", "caption", 1, 1004),
    _amber("amber-d", "AMBER-D", "query_discriminative", "yes_no", 1005, 15220),
    _pope("pope", "POPE (COCO)", "coco", "coco_pope/{stem}_pope coco/{stem}_pope",
        _COCO_IMAGES, _POPE + "coco/"),
    _pope(
        "pope-aokvqa", "POPE (A-OKVQA)", "aokvqa", "{stem}/{stem}_pope_seem {stem}/{stem}_pope",
        _COCO_IMAGES, "github.com/DAMO-NLP-SG/VCD, experiments/data/POPE/aokvqa/",
    ),
    _pope(
        "pope-gqa", "POPE (GQA)", "gqa", "{stem}/{stem}_pope_seem {stem}/{stem}_pope",
        ("pope/gqa/images", "gqa/images", "../gqa/images", _SHARED),
        "github.com/DAMO-NLP-SG/VCD, experiments/data/POPE/gqa/",
    ),
    _mme("mme-hall", "MME, hallucination subset", HALLUCINATION, 240),
    _mme("mme", "MME, full set", None, 2374),
    Bench(
        "mmhal",
        "MMHal-Bench",
        {
            "questions": File(
                ("mmhal/response_template.json", "MMHal-Bench/response_template.json"),
                "96 questions with reference answers",
                "hub: Shengcao1006/MMHal-Bench, test_data.zip",
            )
        },
        ("mmhal/images", "MMHal-Bench/images", _SHARED),
        "images/ of the same archive",
        question_readers.mmhal,
        "open",
        _OPEN,
        count=96,
    ),
    Bench(
        "haloquest",
        "HaloQuest",
        {
            "questions": File(
                ("haloquest/haloquest-eval.jsonl",), "questions, answers, types", _BUNDLE
            )
        },
        ("haloquest/eval_images", "haloquest/images", _SHARED),
        "the urls of github.com/google/haloquest",
        question_readers.haloquest,
        "open",
        _OPEN,
    ),
)  # fmt: skip

BENCHES = {bench.name: bench for bench in _ALL}
# The full set of MME holds its hallucination subset: "all" runs the subset, which is what is reported.
_GROUPS = {
    "all": tuple(name for name in BENCHES if name != "mme"),
    "amber": ("amber-g", "amber-d"),
    "pope-all": ("pope", "pope-aokvqa", "pope-gqa"),
    "chair-mscoco": ("chair",),
    "mme-hallucination": ("mme-hall",),
    "mmhal-bench": ("mmhal",),
    "pope-coco": ("pope",),
}


def named(*names: str) -> list[Bench]:
    """Benchmarks by name or group, in any case, each once. Raises ValueError for an unknown name."""
    return [BENCHES[name] for name in dict.fromkeys(_resolved(names))]


def _resolved(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        key = name.strip().lower().replace("_", "-")
        if key in BENCHES:
            yield key
        elif key in _GROUPS:
            yield from _GROUPS[key]
        else:
            known = ", ".join((*BENCHES, *_GROUPS))
            raise DataError(f"there is no benchmark {name!r}: known are {known}")
