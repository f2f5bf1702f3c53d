"""How each snippet of README and docs is tested. A snippet that stands nowhere here fails the test.

Python blocks are executed, those of a document one after the other, in a folder that holds the pictures and
files they name (`FILES`). `SHORTER` says what is replaced so that a block takes no GPU and no hours;
`SIGNATURES` names functions that are replaced by ones that only check how they are called.

Shell commands of `reverse` are run (`RUN`, with replacements), or their options are read by the command that
takes them and nothing is run (`READ`, with the reason, or the test that runs the like). Other programs are
looked for (`PROGRAMS`).
"""

SHORTER = {
    "docs/models.md": [('device="cuda"', 'device="cpu"')],
    "playground/README.md": [('"test", 500)', '"test", 2)')],
}

SIGNATURES = {
    # Checkpoints in the layouts of others: made and read in tests/models/test_convert.py, test_merging.py.
    "docs/checkpoints.md": [
        "reverse.models.conversion.converter.convert",
        "reverse.models.adapters.merging.merge_adapter",
    ],
    # Truth and answers of a benchmark: tests/evaluation/scoring/test_score.py.
    "docs/scoring.md": ["reverse.evaluation.runs.scoring.score_file"],
}

# Blocks that are neither Python nor commands, by the beginning of their first line.
PROSE = {
    '{"id": "1", "images"': "a record",
    "USER: <image>": "a prompt as it is rendered",
    "export REVERSE_": "variables of the environment",
}

RUN = {
    "reverse data scenes out/scenes --count 40": [("--count 40", "--count 1")],
    "reverse data scenes out/pictures --split test --count 500 --workers 2": [("500 --workers 2", "1")],
    "reverse data reasoning out/reasoning --split test --count 500": [("500 --questions 2 --workers 2", "1")],
    "reverse train --list": [],
    "reverse train llava_v15_lora --show": [],
    "reverse train llava_v15_lora --set model=tiny-llava": [
        ("optim.steps=10", "optim.steps=1 --dry-run --quiet")
    ],
    "reverse data import reverse_ft.json": [],
    "reverse data check data/reverse_1.3m": [("llava-hf/llava-1.5-7b-hf", "tiny-llava")],
    "reverse data subsample data/reverse_1.3m": [("--n 100000", "--n 4")],
    "reverse data view data/reverse_1.3m": [("--n 50", "--n 2")],
    "reverse tokens add llava-hf/llava-1.5-7b-hf": [],
    "reverse generate out/llava_v15 --image kitchen.png": [("kitchen.png", "kitchen.png --max-new-tokens 3")],
}

READ = {
    "reverse data import scienceqa_beam.jsonl": "tests/commands/test_draft_commands.py",
    "reverse data export": "tests/commands/test_draft_commands.py",
    "reverse demo": "tests/test_cli.py::test_demo_errs_and_mends",
    "reverse data view drafts.jsonl": "tests/training/test_views.py",
    "reverse selftrain": "tests/selftrain/loops/test_r3v_loop.py",
    "reverse curate": "tests/selftrain/curation/test_curate_commands.py",
    "reverse value-head": "tests/models/test_value_head.py",
    "reverse data tag": "tests/data/test_tagging.py",
    "reverse data negatives": "tests/data/test_negatives.py",
    "reverse data language": "fetches 57 MB",
    "reverse eval": "tests/evaluation/test_eval_cli.py",
    "reverse score": "tests/evaluation/scoring/test_score.py",
    "reverse compare": "tests/commands/test_statistics.py",
    "reverse sweep": "tests/commands/test_statistics.py",
    "reverse calibrate": "tests/commands/test_statistics.py",
    "reverse report": "tests/evaluation/test_report.py",
    "reverse merge": "tests/models/test_merging.py",
    "reverse convert": "tests/models/test_convert.py",
    "reverse train llava_v15_lora --set data.records=": "a model of 7 billion parameters",
    "reverse train value_head": "tests/training/test_value_run.py",
    "reverse train r3v_dpo": "tests/training/rl/test_rl_runs.py",
    "reverse train srpo_grpo": "tests/training/rl/test_rl_runs.py",
    "reverse train mine.yaml": "a file of the reader's",
    "reverse train": "tests/training/test_recipes.py",
    "reverse data": "tests/commands/test_data.py",
    "reverse generate": "tests/commands/test_generate_command.py",
    "reverse tokens add": "tests/test_cli.py::test_tokens_add",
}

PROGRAMS = ("python", "bash", "torchrun", "make", "pip", "accelerate", "apt-get", "source")
