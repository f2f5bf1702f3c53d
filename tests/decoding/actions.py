"""Actions of a policy to compare with: the parts that a test names, and no others."""

from reverse.decoding.policies.policy import Continue, Rewind


class _Like:
    def __init__(self, kind, **parts):
        self.kind, self.parts = kind, parts

    def __eq__(self, action):
        return isinstance(action, self.kind) and self.parts == {
            name: getattr(action, name) for name in self.parts
        }

    def __repr__(self):
        return f"{self.kind.__name__} with {self.parts}"


def continues(temperature):
    return _Like(Continue, temperature=temperature)


def rewinds(to, temperature, hints):
    return _Like(Rewind, to=to, temperatures=(temperature,), hints=hints)
