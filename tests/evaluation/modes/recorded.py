"""Draft records made of outcomes, for tests without a model."""

from reverse.data.drafts.draft_record import DraftRecord, DraftSegment, RecordedCost, RecordedDraft


def sample(answer, right, confidence=0.5, **more):
    verdict = {True: "right", False: "wrong", None: "unknown"}[right]
    return RecordedDraft(
        text=f"Answer: {answer}", answer=answer, verdict=verdict, confidence=confidence, **more
    )


def record(name, *drafts, image=None, tokens=None, seconds=1.0):
    cost = None if tokens is None else RecordedCost(tokens=tokens, seconds=seconds)
    images = () if image is None else (image,)
    return DraftRecord(id=name, question="How many?", images=images, drafts=drafts, cost=cost)


def answered(name, right, *, tokens=10, error="", p_un=None, image=None, seconds=1.0):
    """A record with one answer; `error` and `p_un` are of its only segment."""
    segments = ()
    if error or p_un is not None:
        verdict = "wrong" if error or right is False else "right"
        segments = (DraftSegment(start=0, end=6, verdict=verdict, error=error, p_un=p_un),)
    draft = sample("3", right, role="first", segments=segments, accepted=True)
    return record(name, draft, image=image, tokens=tokens, seconds=seconds)
