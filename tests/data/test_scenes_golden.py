"""What the scenes world draws and says: the bundled models and all figures were made with exactly this."""

import hashlib
import json

from reverse.data.negatives import make_lexicon_negatives
from reverse.data.scenes import (
    SPLITS,
    make_questions,
    make_scene,
    make_scene_records,
    render_scene,
    write_caption,
    write_negative_caption,
)
from reverse.data.scenes.benchmark_files import make_pope_questions
from reverse.data.scenes.benchmark_questions import (
    make_amber_questions,
    make_haloquest_question,
    make_mme_questions,
    make_mmhal_question,
)
from reverse.data.scenes.published_formats import make_coco_annotations
from reverse.data.scenes.text_questions import make_text_question

# SHA-256, first 16 digits; a change needs a new WORLD_VERSION and new bundled models.
GOLDEN: dict[str, str] = {
    "pictures": "e0c2238c93fe923b",
    "truth": "3b8455b87cb414c7",
    "masks": "489ee9128fd643d6",
    "captions": "12e67b23350c3ef7",
    "negatives": "cd2349a252ce6acd",
    "questions": "d68d6360d1017221",
    "records": "836a0e68659075d1",
    "text questions": "33fd62917004e27e",
    "benchmarks": "04cb33e0f4976d1a",
    "pope": "6cc8678966442b68",
    "lexicon negatives": "1a70c51a9c461bd0",
}


def digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()[:16]


def test_the_world_is_the_one_that_the_models_learned():
    """Without it: a change of wording or of the order of draws makes other data than the figures' with the
    same seeds, and nothing notices."""
    scenes = [make_scene(split, index) for split in SPLITS for index in range(50)]
    captions = [write_caption(scene) for scene in scenes]
    asked = [question for scene in scenes for question in make_questions(scene)]
    records = [record for scene in scenes for record in make_scene_records(scene)]
    right = [record for record in records if not record["id"].endswith("-neg")]
    parts = {
        "pictures": hashlib.sha256(b"".join(render_scene(scene).tobytes() for scene in scenes)).hexdigest()[
            :16
        ],
        "truth": digest([[scene.id, scene.theme, scene.truth] for scene in scenes]),
        "masks": digest([make_coco_annotations(scene) for scene in scenes]),
        "captions": digest([made.text for made in captions]),
        "negatives": digest(
            [
                [false.text, false.hint]
                for scene, made in zip(scenes, captions, strict=True)
                for false in [write_negative_caption(scene, made)]
            ]
        ),
        "questions": digest([[q.kind, q.question, q.answer, q.negative, q.hint] for q in asked]),
        "records": digest(records),
        "text questions": digest(
            [
                [q.question, q.answer, q.negative, q.hint]
                for seed in range(200)
                for q in [make_text_question(seed)]
            ]
        ),
        "benchmarks": digest(
            [
                [
                    make_amber_questions(scene),
                    make_mme_questions(scene),
                    make_mmhal_question(scene),
                    make_haloquest_question(scene),
                ]
                for scene in scenes
            ]
        ),
        "pope": digest(
            [make_pope_questions(scenes, setting, 0) for setting in ("random", "popular", "adversarial")]
        ),
        "lexicon negatives": digest(
            [[made, sorted(counts.items()), failed] for made, counts, failed in make_lexicon_negatives(right)]
        ),
    }
    assert parts == GOLDEN
