"""The README says what the result files say, and its commands are where scripts look for them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from resnet.experiments import NAMES

ROOT = Path(__file__).parent.parent


def load_writer():
    spec = importlib.util.spec_from_file_location("write_results", ROOT / "docs" / "write_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_result_files():
    assert "| resnet18 LeakyReLU |" in (ROOT / "README.md").read_text()
    assert "| training step, 32 × 112² |" in (ROOT / "README.md").read_text()
    writer = load_writer()
    for page in writer.PAGES:
        assert "(written by docs/write_results.py) -->" in page.read_text()
        assert writer.written(page.read_text()) == page.read_text(), f"{page}; run: python docs/write_results.py"


def test_the_largest_error_of_all_cases_of_a_layer_stands_in_the_table():
    table = load_writer().gradcheck_table()
    assert "| Conv2d | 6e-11 | BatchNorm2d | 3e-11 |" in table  # the largest of Conv2d's is Winograd's
    assert table.splitlines()[-1].split(" | ")[-2] == "ResNet18"


def test_the_page_on_use_says_what_the_long_tests_found():
    page = (ROOT / "docs" / "use.md").read_text()
    assert "a training survived 50 of 50" in page
    fuzz = json.loads((ROOT / "docs" / "results" / "fuzz.json").read_text())
    assert fuzz["failures"] == []
    assert fuzz["all"]["cases"] >= 20_000


def test_the_page_of_claims_is_that_of_the_result_files():
    page, writer = (ROOT / "docs" / "claims.md").read_text(), load_writer()
    assert writer.claims_page() == page, "run: python docs/write_results.py"
    for name in (report["experiment"] for report in writer.reports()):
        assert f"\n## {name.replace('_', ' ')}\n" in page
    for figure in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (ROOT / "docs" / figure).is_file()
    drawn = {path.stem.removesuffix("-full") for path in (ROOT / "docs" / "figures").glob("*-full.*")}
    assert set(json.loads((ROOT / "docs" / "figures" / "seen.json").read_text())) == drawn


def test_the_full_report_is_cited_rather_than_the_quick_one(tmp_path):
    report = {"experiment": "paths", "claim": "C.", "finding": "F full.", "holds": True, "left_out": []}
    report["caveat"] = ""
    (tmp_path / "paths-full.json").write_text(json.dumps(report))
    (tmp_path / "paths-quick.json").write_text(json.dumps(report | {"finding": "F quick."}))
    lesion = {
        "experiment": "lesion",
        "holds": False,
        "left_out": ["LFW"],
        "caveat": "Tuned.",
        "finding": "F (1.5 %). G.",
    }
    (tmp_path / "lesion-quick.json").write_text(json.dumps(report | lesion))
    page = "docs/claims.md#"
    assert load_writer().claims_table(tmp_path).splitlines()[2:] == [
        f"| [lesion]({page}lesion): C. | **no**, on a part | F (1.5 %). [*With a caveat.*]({page}lesion) |",
        f"| [paths]({page}paths): C. | yes | F full. |",
    ]


def test_without_a_gpu_the_readme_says_that_nobody_has_measured(tmp_path):
    assert load_writer().gpu_tables(tmp_path).startswith("**Not yet measured**")


def test_the_table_of_a_gpu_says_what_its_result_file_says(tmp_path):
    def side(speed, peak):
        return {"pictures_per_second": {"median": speed}, "peak_bytes": peak}

    beside = {"contestants": {"ours": side(900.4, 5e8), "PyTorch channels_last": side(1200.4, 6e8)}}
    beside["against"] = {"name": "PyTorch channels_last", "speed": {"median": 0.7512}}
    cases = [
        {"case": "training step, 128 × 64²", "precision": "tf32"} | beside,
        {"case": "inference, 1 × 112²", "precision": "float32", "contestants": {"ours": side(70.0, 1e8)}},
    ]
    runs = [{"seed": 1, "clean_accuracy": 0.985, "masked_accuracy": 0.99, "seconds": 12.3}]
    sections = {
        "environment": {"gpu": {"name": "A GPU", "cupy": "14.2.0"}},
        "tests": {"passed": 7, "failed": 0},
        "steps": {"cases": cases},
        "training": {"runs": runs},
    }
    (tmp_path / "gpu.json").write_text(json.dumps({"date": "2026-11-24T01:02:03", "sections": sections}))
    text = load_writer().gpu_tables(tmp_path)
    assert "| training step, 128 × 64² | tf32 | 900 | 1200 | 0.75 | 500 | 600 |" in text
    assert "| inference, 1 × 112² | float32 | 70 |  |  | 100 |  |" in text
    assert "A GPU, CuPy 14.2.0; 2026-11-24." in text
    assert "GPU tests: 7 passed, 0 failed" in text
    assert "`train.py --backend cupy --seed 1`: clean 98.5 %, masked 99.0 %, 12 s." in text


def test_train_and_test_are_one_bash_block_each():
    readme = (ROOT / "README.md").read_text()
    for heading, last in (("Train", "train.py"), ("Test", "-m pytest -n 2")):
        section = re.search(rf"^## {heading}$(.*?)(?=^## )", readme, flags=re.MULTILINE | re.DOTALL)[1]
        blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
        assert len(blocks) == 1
        block = blocks[0].strip().splitlines()
        assert block[0] == "python3 -m venv .venv"
        assert block[-1].endswith(last)


def test_every_claim_has_a_report_of_a_full_run():
    assert [(report["experiment"], report["preset"]) for report in load_writer().reports()] == [
        (name, "full") for name in NAMES
    ]
