"""Print how many scenes per second one core makes, as one JSON line: `python -m reverse.data.scenes`."""

import json
import os
import platform
from time import perf_counter

from reverse.data.scenes import make_scene, make_scene_records, render_scene
from reverse.data.scenes.reasoning import draw_reasoning_picture, make_reasoning_picture


def measure_throughput(seconds: float = 3.0) -> dict[str, float | int | str]:
    """Measure scenes, pictures and records per second on one core (no PNG), with cached sprites."""
    spent = {"make_scene": 0.0, "render": 0.0, "scene_records": 0.0}
    for index in range(1500):
        render_scene(make_scene("train", index))
    done, end = 0, perf_counter() + seconds
    while perf_counter() < end:
        start = perf_counter()
        scene = make_scene("train", 1500 + done)
        made = perf_counter()
        render_scene(scene)
        drawn = perf_counter()
        make_scene_records(scene)
        spent["make_scene"] += made - start
        spent["render"] += drawn - made
        spent["scene_records"] += perf_counter() - drawn
        done += 1
    total = sum(spent.values())
    reasoning = measure_reasoning(seconds / 2)
    return {
        "scenes_per_second": round(done / total),
        **{f"{step}_us": round(1e6 * time / done) for step, time in spent.items()},
        "reasoning_pictures_per_second": round(reasoning),
        "side": 112,
        "cores_used": 1,
        "cores": os.cpu_count() or 0,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def measure_reasoning(seconds: float) -> float:
    """Measure pictures of the reasoning world per second on one core, with cached sprites and grounds."""
    warm = 3000
    for index in range(warm):
        draw_reasoning_picture(make_reasoning_picture("train", index))
    done, start = 0, perf_counter()
    while perf_counter() < start + seconds:
        draw_reasoning_picture(make_reasoning_picture("train", warm + done))
        done += 1
    return done / (perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps(measure_throughput()))
