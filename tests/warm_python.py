"""Python programs that need not import torch and transformers again: forks of a process that has done so.

    process = start_python("-m", "reverse", "demo", stdout=path)
    process.join(60)
    process.exitcode

The imports of `tests.heavy_imports` are done; arguments, environment and output are the program's own. A test
that is about imports, or about the start or the end of the interpreter, needs `subprocess`.
"""

import faulthandler
import multiprocessing
import os
import runpy
import sys

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.heavy_imports"])


def start_python(*program, stdout=os.devnull, stderr=os.devnull, **environment):
    """Start a script, or `-m` and a module, with arguments; return a `multiprocessing.Process`.

    `stdout` and `stderr` are files, to whose ends the program writes.
    """
    words, files = [str(word) for word in program], [str(stdout), str(stderr)]
    process = _context.Process(target=_run, args=(words, files, dict(os.environ) | environment))
    process.start()
    return process


def _run(words, files, environment):
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(files, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    faulthandler.enable()
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")
