"""What several tests of checkpoints start from."""

import pytest


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """Whole checkpoints on disk, by family; not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    for family in ("llava", "qwen"):
        model, processor = tiny(family)
        model.save_pretrained(root / family)
        processor.save_pretrained(root / family)
    return root
