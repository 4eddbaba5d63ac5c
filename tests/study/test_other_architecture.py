"""A whole study on a model that is no Llama, whose tokenizer has no pad token."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from objectives.models.base import BaseModel
from objectives.models.load import load_base_model
from study.commands.application import run_application
from tests.study.tiny_study import FACTS, STUDY_FILE

# Rows of embeddings beyond the tokenizer's tokens, as Phi's have.
UNNAMED = 24


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def phi(pocket: BaseModel, tmp_path: Path) -> Path:
    """Return the pocket model as a Phi-3: a Llama whose parallel linear modules are one each."""
    llama = pocket.model
    kept = {
        name: getattr(llama.config, name)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_parameters",
            "tie_word_embeddings",
            "eos_token_id",
        )
    }
    vocabulary = llama.config.vocab_size + UNNAMED
    model = Phi3ForCausalLM(Phi3Config(**kept, vocab_size=vocabulary, pad_token_id=None))
    weights = llama.state_dict()
    for name, parameter in model.named_parameters():
        before, _, part = name.rpartition("_proj")
        fused = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
        place, _, kind = before.rpartition(".")
        parts = fused.get(kind, (kind,))
        names = [f"{place}.{each}_proj{part}" for each in parts] if before else [name]
        weight = torch.cat([weights[each] for each in names])
        parameter.data.zero_()[: len(weight)] = weight
    folder = tmp_path / "phi"
    model.save_pretrained(folder)
    source = Path(str(files("data") / "pocket"))
    shutil.copy(source / "tokenizer.json", folder)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_the_pocket_model_as_another_architecture_computes_the_same(
    phi: Path, pocket: BaseModel
) -> None:
    base = load_base_model(str(phi), device="cpu")
    assert type(base.model).__name__ == "Phi3ForCausalLM"
    assert base.tokenizer.pad_token_id is None
    assert base.vocabulary == pocket.vocabulary + UNNAMED
    token_ids = torch.tensor([pocket.encode_prompt("Who won the 2031 award?")])
    with torch.inference_mode():
        logits = base.model(token_ids).logits[..., : pocket.vocabulary]
        torch.testing.assert_close(logits, pocket.model(token_ids).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_study_of_another_architecture_runs_to_its_end(
    phi: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("facts.csv").write_text(FACTS, encoding="utf-8")
    Path("study.toml").write_text(
        f'model = "{phi}"\nknowledge = "pocket"\n{STUDY_FILE}',
        encoding="utf-8",
    )
    assert run_application(["run", "facts.csv", "--study", "study.toml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert sum(shown["trials"][state] for state in ("complete", "pruned", "failed")) == 3
    assert shown["trials"]["failed"] == 0
    assert max(member["recall"] for member in shown["front"]) > 0.5
