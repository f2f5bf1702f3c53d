"""What several tests of checkpoints start from."""

import pytest


@pytest.fixture(scope="session")
def saved_checkpoints(tiny, tmp_path_factory):
    """The folder of saved checkpoints, "llava" and "qwen"; not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    for family in ("llava", "qwen"):
        model, processor = tiny(family)
        model.save_pretrained(root / family)
        processor.save_pretrained(root / family)
    return root
