"""A script may end while threads of the library decode or prepare."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Every step and the preparation below take a few seconds in operations of torch, which release the GIL.
WORLD = """
    import threading
    import torch
    import reverse
    from tests.decoding.worlds import picture, talkative

    matrix, inside = torch.ones(300, 300, dtype=torch.float64), threading.Event()

    def work(*_):
        inside.set()
        for _ in range(100):
            torch.mm(matrix, matrix)

    model, processor = talkative("llava")
    settings = {"images": picture(0), "prompt": "Describe this image."}
"""


def run(script):
    code = textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_a_script_ends_while_an_engine_decodes_and_prepares():
    """Python would kill the threads inside of torch, which aborts: exit status 134 after all results."""
    done = run(
        "import atexit\n"
        "atexit.register(lambda: refuse())\n"
        + textwrap.dedent(WORLD)
        + textwrap.dedent(
            """
            from reverse.decoding.preparing.preparing_threads import PreparingThreads

            def refuse():  # called when the threads have ended
                for ask in (handle.result, lambda: engine.submit(handle.request)):
                    try:
                        ask()
                    except reverse.errors.BackendError as error:
                        print(error)

            engine = reverse.Engine(model, processor)
            engine.submit(reverse.Request(**settings, max_new_tokens=2)).result()
            model.register_forward_pre_hook(work)
            handle = engine.submit(reverse.Request(**settings))
            assert inside.wait(60)
            inside.clear()
            threads = PreparingThreads(1)
            threads.submit(0, work)
            waits = threads.submit(1, print)
            atexit.register(lambda: print("first", waits.cancelled()))
            assert inside.wait(60)
            """
        )
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, unfinished, refused = done.stdout.splitlines()
    assert first == "first False"
    assert unfinished.startswith("the answer is not finished, and Python exits")
    assert refused.startswith("a request was made while Python exits")


def test_a_script_fails_while_calls_are_unfinished():
    """Python would wait for ever for the decoding thread when it closes the iterator, or abort."""
    done = run(
        textwrap.dedent(WORLD)
        + textwrap.dedent(
            """
            answers = reverse.generate_many(model, processor, [settings] * 9, max_new_tokens=2)
            next(answers)
            model.register_forward_pre_hook(work)
            call = lambda: reverse.generate(model, processor, **settings)
            threading.Thread(target=call, daemon=True).start()
            assert inside.wait(60)
            raise ValueError("the script")
            """
        )
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.endswith("ValueError: the script\n") and done.stderr.count("Error") == 1
