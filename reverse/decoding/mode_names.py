"""Names of the modes and of the judges of `select`: help texts and checks need them without the modes."""

__all__ = ["JUDGE_NAMES", "MODE_NAMES", "list_names"]

MODE_NAMES = ("resample", "plain", "self_correct", "reflect", "refine", "select", "tree", "auto")
JUDGE_NAMES = ("best", "vote", "weighted", "self", "value")


def list_names(names: tuple[str, ...]) -> str:
    """The names as a sentence lists them: "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
