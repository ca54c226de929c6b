"""The README says what the result files say, and its commands are where scripts look for them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def load_writer():
    spec = importlib.util.spec_from_file_location("write_results", ROOT / "docs" / "write_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_result_files():
    readme = (ROOT / "README.md").read_text()
    assert "| resnet18 LeakyReLU |" in readme
    assert "| training step, 32 × 112² |" in readme
    assert load_writer().written(readme) == readme, "run: python docs/write_results.py"


def test_train_and_test_are_one_bash_block_each():
    readme = (ROOT / "README.md").read_text()
    for heading, last in (("Train", "train.py"), ("Test", "-m pytest")):
        section = re.search(rf"^## {heading}$(.*?)(?=^## )", readme, flags=re.MULTILINE | re.DOTALL)[1]
        blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
        assert len(blocks) == 1
        block = blocks[0].strip().splitlines()
        assert block[0] == "python3 -m venv .venv"
        assert block[-1].endswith(last)
