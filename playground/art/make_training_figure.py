"""Draw what training on scenes gains, from its results: every seed's CHAIRi and coverage, both splits.

python playground/art/make_training_figure.py              # writes docs/img/scenes_training.png
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scenes_training.json"
FIGURE = ROOT / "docs" / "img" / "scenes_training.png"
NAMES = {"llava": "LLaVA", "qwen": "Qwen2.5-VL"}
COLOURS = {"llava": "#d1495b", "qwen": "#00798c"}
ROWS = {
    "twin": ("s", "plain twin"),
    "off": ("o", "tagged, checking off"),
    "on": ("^", "checking on"),
    "strict": ("D", "strict"),
}


def main() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    for panel, (split, title) in zip(
        panels, (("test", "test"), ("shift", "shift: objects on another theme's ground")), strict=True
    ):
        for family, colour in COLOURS.items():
            means = []
            for row, (marker, _) in ROWS.items():
                seeds = rows[family][split][row].values()
                x = [100 * seed["coverage"][0] for seed in seeds]
                y = [100 * seed["chair_i"][0] for seed in seeds]
                panel.scatter(
                    x, y, s=34, marker=marker, color=colour, edgecolor="white", linewidth=0.5, zorder=3
                )
                means.append((sum(x) / len(x), sum(y) / len(y)))
            corrected = means[1:]  # the twin is another model: no line leads to it
            panel.plot(*zip(*corrected, strict=True), color=colour, alpha=0.35, linewidth=1.2, zorder=2)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("coverage: true objects that are named, %")
        panel.set_ylim(bottom=0)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("CHAIRi: objects named that are not there, %")
    shapes = [
        plt.Line2D([], [], marker=marker, linestyle="", color="#555555", label=label)
        for marker, label in ROWS.values()
    ]
    families = [
        plt.Line2D([], [], marker="o", linestyle="", color=COLOURS[family], label=NAMES[family])
        for family in COLOURS
    ]
    panels[0].legend(handles=[*families, *shapes], fontsize=8, loc="upper left", frameon=False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


if __name__ == "__main__":
    main()
