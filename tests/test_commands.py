"""Every command explains itself without loading what only the work needs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "pandas",
    "numpy",
    "scipy",
    "great_expectations",
    "pydantic",
}
COMMANDS = [
    f"{folder}.{file.stem}"
    for folder in ("stages", "tools", "experiments")
    for file in sorted((ROOT / folder).glob("*.py"))
    if "click.command" in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['{module}', '--help']\n"
        f"try: runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('HEAVY', sorted({HEAVY} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Usage:" in ran.stdout
    assert ran.stdout.rstrip().endswith("HEAVY []")


def test_evaluate_never_loads_torch() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom stages import evaluate\n"
        "from stages.shared import contract\n"
        "rules = contract.load(Path('tests/schema.json'))\n"
        "row = {'id': 'a', 'group': 'a', 'prompt': [], 'answer': '{\"action\":\"list\",\"filter\":\"all\"}'}\n"
        "said = {'answer': row['answer'], 'truncated': False}\n"
        "print(evaluate.figures([evaluate.score(row, said, rules)], evaluate.Params(10, 1))['exact_match'])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "1.0"), ran.stderr
