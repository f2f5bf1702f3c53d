"""The scenes world: pictures whose truth is known, and captions with the errors of published ones.

    >>> scene = make_scene("test", 123)
    >>> picture = render(scene)                  # uint8 (112, 112, 3)
    >>> scene.truth                              # COCO name -> count
    >>> caption(scene).text                      # tagged, by a prejudiced annotator

`python -m reverse.data.scenes` prints how many scenes a second this machine makes.
"""

from reverse.data.scenes.captions import (
    Caption,
    NegativeCaption,
    ScenePhrase,
    write_caption,
    write_negative_caption,
)
from reverse.data.scenes.object_names import Mention, find_objects
from reverse.data.scenes.published_formats import write_scenes
from reverse.data.scenes.rendering import render_scene
from reverse.data.scenes.scene import SPLITS, Scene, SceneObject, make_scene
from reverse.data.scenes.scene_questions import SceneQuestion, make_questions, make_scene_records

__all__ = [
    "SPLITS",
    "Caption",
    "Mention",
    "NegativeCaption",
    "Scene",
    "SceneObject",
    "ScenePhrase",
    "SceneQuestion",
    "find_objects",
    "make_questions",
    "make_scene",
    "make_scene_records",
    "render_scene",
    "write_caption",
    "write_negative_caption",
    "write_scenes",
]  # fmt: skip
