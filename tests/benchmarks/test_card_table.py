import json
from pathlib import Path

import pytest

from benchmarks.card_table import CARD, FIRST, table
from megrez.compile.families.registry import by_model_type

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "card"


def measured(model: str, output: float, total: float) -> dict:
    rates = {"aggregate_output_tokens_per_s": output, "total_tokens_per_s": total}
    return {"model": model, "error": None, "result": rates}


def test_ratios_are_to_the_cards_rate_of_the_same_kind_and_to_megrez():
    rows = [measured(FIRST, 10.0, 20.0), measured("Qwen2.5-3B", 9.0, 18.0), measured("Yi-1.5-6B", 5.0, 10.0)]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows).splitlines()[2:]]
    assert cells == [
        [FIRST, "10.0", "20.0", "1159.9", "2329.4", f"{20 / 2329.4:.4f}", "1.00", "1.00"],
        ["Qwen2.5-3B", "9.0", "18.0", "1123.4", "2248.3", f"{18 / 2248.3:.4f}", "0.90", f"{2248.3 / 2329.4:.2f}"],
        ["Yi-1.5-6B", "5.0", "10.0", "", "", "", "0.50", ""],
    ]


def test_a_model_that_fails_has_its_error_in_its_row():
    text = table([{"model": FIRST, "error": "the disk is full"}, measured("Qwen2-1.5B", 1.0, 2.0)])
    assert "| Megrez-3B-Instruct | the disk is full |" in text and "| Qwen2-1.5B | 1.0 | 2.0 |" in text


@pytest.mark.parametrize("model", CARD)
def test_every_model_has_a_config_of_a_family_of_ours(model):
    config = json.loads((CONFIGS / f"{model}.json").read_text())
    assert config["model_type"] in by_model_type()


def test_every_config_is_of_a_model_of_the_table():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(CARD)
