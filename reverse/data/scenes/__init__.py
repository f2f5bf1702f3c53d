"""The scenes world: pictures whose truth is known, and captions that err as published ones do.

    >>> scene = make_scene("test", 123)
    >>> picture = render(scene)                  # uint8 (112, 112, 3)
    >>> scene.truth                              # COCO name -> count
    >>> caption(scene).text                      # tagged, by a prejudiced annotator

`python -m reverse.data.scenes` prints how many scenes a second this machine makes.
"""

from reverse.data.scenes.captions import Caption, Negative, Phrase, caption, negative
from reverse.data.scenes.object_names import Mention, find_objects
from reverse.data.scenes.published_formats import write_scenes
from reverse.data.scenes.rendering import render
from reverse.data.scenes.scene import SPLITS, Scene, SceneObject, make_scene
from reverse.data.scenes.scene_questions import Question, questions, scene_records

__all__ = [
    "SPLITS", "Caption", "Mention", "Negative", "Phrase", "Question", "Scene", "SceneObject", "caption",
    "find_objects", "make_scene", "negative", "questions", "render", "scene_records", "write_scenes",
]  # fmt: skip
