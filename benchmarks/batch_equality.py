"""How often an answer decoded in a batch equals the same answer decoded alone, by dtype.

    python benchmarks/batch_equality.py --device cuda --count 64

Rows of a batch are independent by construction; what is left is arithmetic: kernels for another batch size
add in another order. Prints a table and one JSON line with device and versions.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from PIL import Image

import reverse
from reverse.data.scenes import make_scene, render_scene
from reverse.evaluation.runs.environment import describe_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="*", default=[2, 8])
    given = parser.parse_args()
    pictures = [Image.fromarray(render_scene(make_scene("test", i))) for i in range(given.count)]
    rows = []
    for name in given.dtypes:
        model, processor = reverse.load("tiny-llava", dtype=getattr(torch, name), device=given.device)
        for sampled in (False, True):
            answers = {}
            for batch in (1, *given.batches):
                began = time.perf_counter()
                results = reverse.generate(
                    model, processor, images=pictures, do_sample=sampled, batch_size=batch, max_new_tokens=96
                )
                answers[batch] = [r.ids for r in results]
                row = {"dtype": name, "sampled": sampled, "batch": batch}
                row["equal"] = sum(a == b for a, b in zip(answers[batch], answers[1], strict=True))
                row |= {"of": given.count, "seconds": round(time.perf_counter() - began, 1)}
                print(row, flush=True)
                rows.append(row)
    command = f"python benchmarks/batch_equality.py --device {given.device} --count {given.count}"
    print(json.dumps(describe_environment(given.device) | {"command": command, "rows": rows}))


if __name__ == "__main__":
    main()
