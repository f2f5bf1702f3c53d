"""Render a chat template over chats, in a process of its own whose time and memory are limited.

`reverse.models.processors.template_checks` runs it as a script. Only jinja2 is imported, so it starts in a
tenth of a second. It reads a JSON object from stdin and writes one to stdout: `{"longest": characters}`, the
length of the longest text that the template wrote, or `{"invalid": reason}`.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Render `template` over `chats`, with and without the header of an answer."""
    job = json.load(sys.stdin)
    _limit(job["seconds"], job["bytes"])
    sys.path.extend(job["path"])
    import jinja2

    longest = 0
    try:
        template = _environment().from_string(job["template"])
    except (jinja2.TemplateError, RecursionError) as error:
        print(json.dumps({"invalid": str(error)[:200]}))
        return
    for chat in job["chats"]:
        for header in (True, False):
            try:
                text = template.render(messages=chat, add_generation_prompt=header, **job["names"])
            except MemoryError:
                raise
            except Exception:
                # The template is a stranger's program and may raise anything for a chat that it refuses or is
                # not written for. It has ended, which is all that is asked here; `check_template` and every
                # request render it again and report its errors.
                continue
            longest = max(longest, len(text))
    print(json.dumps({"longest": longest}))


def _environment() -> Any:
    """Make the sandbox in which transformers renders chat templates."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda format: "26 Jul 2024"
    return environment


def _limit(seconds: int, size: int) -> None:
    """Limit this process as far as the system allows; the caller has a deadline too."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, size, size),
    ):
        try:
            resource.setrlimit(kind, (soft, hard))
        except (ValueError, OSError):  # macOS accepts no limit of memory; a lower one may be set already
            continue


if __name__ == "__main__":
    main()
