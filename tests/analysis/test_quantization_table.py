"""What quantising a base costs, as the terminal shows it."""

from __future__ import annotations

import io

from rich.console import Console

from analysis.quantization_table import QuantizationRow, show_quantizations
from data.measurements import NOT_MEASURED, Estimate


def share(value: float) -> Estimate:
    return Estimate(value=value, low=value / 2, high=(1 + value) / 2, count=20)


def shown(*rows: QuantizationRow, width: int = 160) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(show_quantizations(rows, runtime="llama.cpp"))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_each_type_has_a_row_with_what_the_adapter_and_what_the_base_loses() -> None:
    lines = shown(
        QuantizationRow(
            weights="float32, as loaded",
            bits_per_weight=32,
            recall=share(0.9),
            knowledge_loss=share(0.1),
            base_loss=share(0.0),
            facts_lost=0,
            facts_gained=0,
            p_value=1.0,
        ),
        QuantizationRow(
            weights="q4_0",
            bits_per_weight=4.53,
            recall=share(0.5),
            knowledge_loss=share(0.3),
            base_loss=NOT_MEASURED,
            facts_lost=8,
            facts_gained=1,
            p_value=0.0390625,
        ),
    )
    assert lines[2].split("  ")[0] == "weights"
    assert lines[3].split() == [
        *("float32,", "as", "loaded", "32.0", "90", "%", "(45–95", "%)", "10", "%", "(5–55", "%)"),
        *("0", "%", "(0–50", "%)", "0,", "0", "1"),
    ]
    assert lines[4].split() == [
        *("q4_0", "4.5", "50", "%", "(25–75", "%)", "30", "%", "(15–65", "%)"),
        *("not", "measured", "8,", "1", "0.0391"),
    ]
    assert "as llama-quantize --pure does, answered by llama.cpp." in " ".join(lines[5:])


def test_a_narrow_terminal_breaks_what_weights_are_called_and_no_figure() -> None:
    figures = Estimate(value=0.123, low=0.101, high=0.149, count=284)
    lines = shown(
        QuantizationRow(
            weights="4 bits in groups of 128, the rest float32, as loaded",
            bits_per_weight=9.54,
            recall=Estimate(value=1.0, low=0.86, high=1.0, count=23),
            knowledge_loss=figures,
            base_loss=Estimate(value=0.004, low=0.003, high=0.036, count=284),
            facts_lost=10,
            facts_gained=11,
            p_value=0.0390625,
        ),
        width=80,
    )
    text = "\n".join(lines)
    assert "…" not in text
    for figure in ("9.5", "100 % (86–100 %)", "12 % (10–15 %)", "0.4 % (0.3–4 %)", "10, 11"):
        assert figure in text
    assert "0.0391" in text
