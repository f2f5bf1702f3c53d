"""Draw the sprite atlas of the scenes world: 67 COCO objects, one 64-pixel emoji each.

The library ships the result (`reverse/data/scenes/art/atlas.png` and `atlas.json`), so nobody needs this
script or the font to use scenes; it is kept so that the art can be checked and made again:

    apt-get install fonts-noto-color-emoji
    python playground/art/make_atlas.py            # writes into reverse/data/scenes/art/

The glyphs are Noto Color Emoji's (Google; font under OFL-1.1, images under Apache-2.0).
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
ART = Path(__file__).resolve().parents[2] / "reverse" / "data" / "scenes" / "art"
FONT_SIZE = 109  # the only bitmap size the font carries
SPRITE = 64  # side of a cell in the atlas, pixels
COLUMNS = 9

# COCO name -> the nearest glyph. The 13 names without one: fire hydrant, parking meter, bench, baseball
# bat, baseball glove, dining table, remote, microwave, oven, toaster, sink, refrigerator, hair drier.
GLYPHS = {
    "person": "\U0001f9cd", "bicycle": "\U0001f6b2", "car": "\U0001f697", "motorcycle": "\U0001f3cd",
    "airplane": "\u2708", "bus": "\U0001f68c", "train": "\U0001f682", "truck": "\U0001f69a",
    "boat": "\u26f5", "traffic light": "\U0001f6a6", "stop sign": "\U0001f6d1", "bird": "\U0001f426",
    "cat": "\U0001f408", "dog": "\U0001f415", "horse": "\U0001f40e", "sheep": "\U0001f411",
    "cow": "\U0001f404", "elephant": "\U0001f418", "bear": "\U0001f43b", "zebra": "\U0001f993",
    "giraffe": "\U0001f992", "backpack": "\U0001f392", "umbrella": "\u2602", "handbag": "\U0001f45c",
    "tie": "\U0001f454", "suitcase": "\U0001f9f3", "frisbee": "\U0001f94f", "skis": "\U0001f3bf",
    "snowboard": "\U0001f3c2", "sports ball": "\u26bd", "kite": "\U0001fa81", "skateboard": "\U0001f6f9",
    "surfboard": "\U0001f3c4", "tennis racket": "\U0001f3be", "bottle": "\U0001f37e",
    "wine glass": "\U0001f377", "cup": "\u2615", "fork": "\U0001f374", "knife": "\U0001f52a",
    "spoon": "\U0001f944", "bowl": "\U0001f963", "banana": "\U0001f34c", "apple": "\U0001f34e",
    "sandwich": "\U0001f96a", "orange": "\U0001f34a", "broccoli": "\U0001f966", "carrot": "\U0001f955",
    "hot dog": "\U0001f32d", "pizza": "\U0001f355", "donut": "\U0001f369", "cake": "\U0001f382",
    "chair": "\U0001fa91", "couch": "\U0001f6cb", "potted plant": "\U0001fab4", "bed": "\U0001f6cf",
    "toilet": "\U0001f6bd", "tv": "\U0001f4fa", "laptop": "\U0001f4bb", "mouse": "\U0001f5b1",
    "keyboard": "\u2328", "cell phone": "\U0001f4f1", "book": "\U0001f4d5", "clock": "\u23f0",
    "vase": "\U0001f3fa", "scissors": "\u2702", "teddy bear": "\U0001f9f8", "toothbrush": "\U0001faa5",
}  # fmt: skip


def sprite(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One glyph cropped to its ink and centred in a transparent cell of SPRITE x SPRITE."""
    canvas = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((20, 20), glyph, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise SystemExit(f"the font has no colour glyph for U+{ord(glyph):X}: install fonts-noto-color-emoji")
    ink = canvas.crop(box)
    scale = SPRITE / max(ink.size)
    ink = ink.resize(
        (max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.LANCZOS
    )
    cell = Image.new("RGBA", (SPRITE, SPRITE), (0, 0, 0, 0))
    cell.paste(ink, ((SPRITE - ink.width) // 2, (SPRITE - ink.height) // 2))
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the sprite atlas of the scenes world.")
    parser.add_argument("--font", default=FONT)
    parser.add_argument("--out", type=Path, default=ART)
    args = parser.parse_args()
    font = ImageFont.truetype(args.font, FONT_SIZE)
    rows = -(-len(GLYPHS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE), (0, 0, 0, 0))
    index = {}
    for i, (name, glyph) in enumerate(GLYPHS.items()):
        corner = (i % COLUMNS * SPRITE, i // COLUMNS * SPRITE)
        atlas.paste(sprite(glyph, font), corner)
        index[name] = {"x": corner[0], "y": corner[1], "glyph": f"U+{ord(glyph):X}"}
    args.out.mkdir(parents=True, exist_ok=True)
    # 256 colours with alpha: at 13 to 32 pixels nobody sees the difference, and the file shrinks threefold.
    atlas.quantize(256, Image.Quantize.FASTOCTREE).save(args.out / "atlas.png", optimize=True)
    about = {
        "sprite": SPRITE,
        "source": "Noto Color Emoji (Google), font OFL-1.1, images Apache-2.0",
        "made_by": "playground/art/make_atlas.py",
        "sprites": index,
    }
    (args.out / "atlas.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"{len(index)} sprites, {(args.out / 'atlas.png').stat().st_size} bytes")


if __name__ == "__main__":
    main()
