"""The scenes world: pictures whose truth is known, and captions that err as published ones do.

    >>> scene = make_scene("test", 123)
    >>> picture = render(scene)                  # uint8 (112, 112, 3)
    >>> scene.truth                              # COCO name -> count
    >>> caption(scene).text                      # tagged, by a prejudiced annotator

`python -m reverse.data.scenes` prints how many scenes a second this machine makes.
"""

from reverse.data.scenes.captions import Caption, Negative, Phrase, caption, negative
from reverse.data.scenes.export import write_scenes
from reverse.data.scenes.names import Mention, find_objects
from reverse.data.scenes.questions import Question, questions, scene_records
from reverse.data.scenes.render import render
from reverse.data.scenes.world import SPLITS, Scene, SceneObject, make_scene

__all__ = [
    "SPLITS", "Caption", "Mention", "Negative", "Phrase", "Question", "Scene", "SceneObject", "caption",
    "find_objects", "make_scene", "negative", "questions", "render", "scene_records", "write_scenes",
]  # fmt: skip
