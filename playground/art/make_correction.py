"""Draw one correction: the phrases of an answer as they are decoded, what is taken back, and what stays.

python playground/art/make_correction.py           # writes docs/img/correction.png

The answer is that of the bundled model on one of the pictures of `reverse demo`; nothing of it is made up.
"""

import re
from pathlib import Path

import matplotlib
from PIL import Image

import reverse

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "reverse" / "assets" / "demo" / "test-000040.png"
FIGURE = ROOT / "docs" / "img" / "correction.png"
ACCEPTED, REJECTED, PLAIN = "#d8f0dd", "#f8d7da", "#222222"
PIECES = re.compile(r"<SPAN>(.*?)</(?:CN|UN)>|([^<]+)")


def pieces_of(tagged: str) -> list[tuple[str, bool]]:
    """Words of an answer and whether they belong to a phrase; a phrase is one piece."""
    found = []
    for phrase, between in PIECES.findall(tagged):
        if phrase:
            found.append((phrase, True))
        else:
            found.extend((word, False) for word in between.split())
    return found


def main() -> None:
    model, processor = reverse.load("tiny-llava")
    plain = reverse.generate(model, processor, str(PICTURE), "Describe this image.", mode="plain")
    checked = reverse.generate(model, processor, str(PICTURE), "Describe this image.")
    rejected = checked.trace[0]

    figure = plt.figure(figsize=(9.6, 3.1), dpi=150)
    left = figure.add_axes((0.005, 0.03, 0.3, 0.94))
    left.imshow(Image.open(PICTURE))
    left.axis("off")
    canvas = figure.add_axes((0.315, 0.0, 0.68, 1.0))
    canvas.axis("off")
    canvas.set_xlim(0, 1)
    canvas.set_ylim(0, 1)
    renderer = figure.canvas.get_renderer()

    def write(top: float, title: str, pieces: list[tuple[str, bool]], bad: str | None) -> float:
        """Write one answer below `top`; returns the lower edge."""
        canvas.text(0, top, title, fontsize=9, color="#666666", va="top")
        x, y = 0.0, top - 0.12
        for text, is_phrase in pieces:
            wrong = is_phrase and text == bad
            colour = REJECTED if wrong else ACCEPTED
            box = (
                {"boxstyle": "round,pad=0.22", "facecolor": colour, "edgecolor": "none"}
                if is_phrase
                else None
            )
            shown = canvas.text(x, y, text, fontsize=10.5, color=PLAIN, va="top", bbox=box)
            width = shown.get_window_extent(renderer).transformed(canvas.transData.inverted()).width
            if x + width > 1.0:
                x, y = 0.0, y - 0.125
                shown.set_position((x, y))
            if wrong:
                canvas.plot([x, x + width], [y - 0.035, y - 0.035], color="#b02a37", linewidth=1.6, zorder=5)
            x += width + (0.022 if is_phrase else 0.016)
        return y - 0.16

    below = write(0.97, "without checking", pieces_of(plain.tagged), rejected.phrase)
    canvas.annotate(
        f'"{rejected.phrase}": p(</UN>) = {rejected.p_un:.2f}, above the threshold.\n'
        "Rewind the KV cache to the phrase before it and decode again.",
        (0.0, below + 0.015), fontsize=9, color="#b02a37", va="top",
    )  # fmt: skip
    write(below - 0.2, "with REVERSE, in the same call", pieces_of(checked.tagged), None)
    figure.savefig(FIGURE, facecolor="white")
    print(f"{FIGURE}: {rejected.phrase!r} {rejected.p_un:.3f}, {len(checked.trace)} attempts")


if __name__ == "__main__":
    main()
