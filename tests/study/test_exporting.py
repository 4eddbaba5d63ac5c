"""`remember export` writes what others load: PEFT, transformers, llama.cpp; with a model card."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from data.recipes import Recipe
from objectives.bank import Bank, export_adapter
from objectives.models.base import BaseModel
from objectives.models.gptq.four_bit import quantise_linears
from storage.reader import read_study
from storage.recorder import Recorder
from study.commands.application import run_application
from study.place import open_place
from tests.study.dashboard_study import NAME, build_study

RECIPE = Recipe(
    epochs=9, rank=4, alpha=8, cutoff=96, warmup_steps=0, learning_rate=1e-2, rslora=True
)
TEXTS = ["Question: Who won?\nAnswer: Ada Quill", "Question: Where is it?\nAnswer: Vessa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A study in whose front trial 0 is, with its adapter; `logits` are the adapter's own."""

    out: Path
    adapter: Path
    tokens: Tensor
    logits: Tensor

    def export(self, *arguments: str, trial: int = 0) -> int:
        where = ["--name", NAME, "--out", str(self.out)]
        return run_application(["export", str(trial), *where, *arguments])

    def logits_of(self, model: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model.eval()(self.tokens).logits
        return logits


@pytest.fixture(scope="module")
def kept(pocket: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    out = tmp_path_factory.mktemp("runs")
    place = build_study(out)
    bank = Bank(pocket, slots=1, max_rank=4)
    bank.admit(0, RECIPE, lambda _: TEXTS, seed=1)
    for _ in range(8):
        bank.step()
    adapter = place.adapters / "trial-0000-epoch-0004"
    export_adapter(bank, 0, adapter)
    with closing(open_place(place)) as storage:
        measured = read_study(storage, NAME).trials[0].searched[-1]
        Recorder(storage, NAME).set_adapter(measured.id, str(adapter))
    tokens = torch.tensor([pocket.encode_prompt(TEXTS[0])])
    with torch.no_grad(), bank.answering([0] * tokens.numel()):
        logits = pocket.model(tokens).logits
    assert (logits - pocket.model(tokens).logits).abs().max() > 0.5
    return Kept(out=out, adapter=adapter, tokens=tokens, logits=logits)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands run in an empty folder, with no database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


# PEFT still reads an attribute of models that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_folder_is_the_adapter_as_peft_reads_it(
    kept: Kept, pocket: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.export("--to", "some/where") == 0
    assert capsys.readouterr().out == "some/where (trial 0 after 4 epochs)\n"
    files = {path.name for path in Path("some/where").iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    model = PeftModel.from_pretrained(copy.deepcopy(pocket.model), "some/where")
    torch.testing.assert_close(kept.logits_of(model), kept.logits, atol=1e-4, rtol=0)


def test_the_card_tells_the_figures_and_no_path_of_this_machine(
    kept: Kept, pocket: BaseModel
) -> None:
    assert kept.export("--to", "copy") == 0
    card = ModelCard.load("copy/README.md")
    assert card.data.library_name == "peft"
    assert "| in the search | 90 % (85–95 %) | 10 % (5–15 %) |" in card.text
    assert "--max-lora-rank 8" in card.text
    assert f"- its digest: {pocket.digest}\n" in card.text
    assert "It is: MIT." in card.text
    assert str(kept.out) not in card.text
    assert pocket.source not in card.text


def test_a_merged_model_is_loaded_by_transformers_alone(
    kept: Kept, pocket: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.export("--to", "merged", "--format", "merged") == 0
    assert "quantised" not in capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    assert model.dtype == torch.float32  # what the study computed in
    torch.testing.assert_close(kept.logits_of(model), kept.logits, atol=1e-3, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained("merged")
    assert tokenizer(TEXTS).input_ids == pocket.tokenizer(TEXTS).input_ids
    own = pocket.model.generation_config
    assert GenerationConfig.from_pretrained("merged").eos_token_id == own.eos_token_id
    assert "weights in float32" in Path("merged/README.md").read_text(encoding="utf-8")


def test_a_model_merged_into_a_quantised_base_is_said_to_be_dense(
    kept: Kept,
    pocket: BaseModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = copy.deepcopy(pocket.model)
    quantise_linears(model, group_size=128)
    quantised = dataclasses.replace(pocket, model=model)
    bank = Bank(quantised, slots=1, max_rank=4)
    bank.load(0, kept.adapter)
    with torch.no_grad(), bank.answering([0] * kept.tokens.numel()):
        expected = model(kept.tokens).logits
    monkeypatch.setattr("study.commands.exporting.load_engine", lambda *_: quantised)
    assert kept.export("--to", "merged", "--format", "merged") == 0
    assert "the whole model is in float16 now" in " ".join(capsys.readouterr().err.split())
    assert "in float16 again" not in Path("merged/README.md").read_text(encoding="utf-8")
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    torch.testing.assert_close(kept.logits_of(merged), expected, atol=0.05, rtol=0.01)


def test_a_gguf_adapter_holds_the_folders_products(kept: Kept) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install -e '.[gguf]'")
    assert kept.export("--to", "taught.gguf", "--format", "gguf") == 0
    reader = gguf.GGUFReader("taught.gguf")
    there = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    folder = load_file(kept.adapter / "adapter_model.safetensors")
    assert len(there) == len(folder)
    down, up = (
        folder[f"base_model.model.model.layers.1.mlp.down_proj.lora_{side}.weight"]
        for side in "AB"
    )
    a, b = (there[f"blk.1.ffn_down.weight.lora_{side}"] for side in "ab")
    # llama.cpp scales by alpha / rank, which rsLoRA's scale has to be made of.
    llama_cpps = alpha / a.shape[0] * b @ a
    torch.testing.assert_close(llama_cpps, RECIPE.scale * up @ down, atol=1e-6, rtol=1e-5)
    card = ModelCard.load("taught.md")
    assert "gguf" in card.data.tags
    assert "--lora taught.gguf" in card.text
    assert {path.name for path in Path().iterdir()} == {"taught.gguf", "taught.md"}


def refuse_to_write(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("format", "to", "breaks"),
    [
        ("peft", "there", "study.commands.exporting.shutil.copytree"),
        ("merged", "there", "transformers.PreTrainedModel.save_pretrained"),
        ("gguf", "there.gguf", "study.commands.exporting.write_whole"),
    ],
)
def test_a_full_disk_leaves_nothing(
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    format: str,
    to: str,
    breaks: str,
) -> None:
    monkeypatch.setattr(breaks, refuse_to_write)
    assert kept.export("--to", to, "--format", format) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"to: {to} cannot be written: No space left on device" in message
    assert list(Path().iterdir()) == []


def touch(path: str) -> Callable[[], None]:
    return lambda: Path(path).touch()


@pytest.mark.parametrize(
    ("before", "arguments", "said"),
    [
        (touch("there"), ["--to", "there"], "to: there exists already; name a folder that"),
        (touch("a.gguf"), ["--to", "a.gguf", "--format", "gguf"], "exists already; name a file"),
        (touch("a.md"), ["--to", "a.gguf", "--format", "gguf"], "to: a.md, where the model card"),
        (None, ["--to", "a", "--format", "gguf"], "to: a is not allowed; name a file that ends"),
        (None, ["--to", "a", "--format", "onnx"], "'onnx' is not one of 'peft', 'merged', 'gguf'"),
    ],
)
def test_a_place_or_format_that_cannot_be_is_refused(
    kept: Kept,
    capsys: pytest.CaptureFixture[str],
    before: Callable[[], None] | None,
    arguments: list[str],
    said: str,
) -> None:
    if before is not None:
        before()
    there = set(Path().iterdir())
    assert kept.export(*arguments) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert set(Path().iterdir()) == there


def test_a_trial_whose_adapter_was_not_kept_is_explained(
    kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.export("--to", "copy", trial=3) == 2
    assert "kept are those of trials 0" in " ".join(capsys.readouterr().err.split())


def test_another_bases_adapter_is_not_measured_unless_told_so(
    kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(kept.adapter / "adapter_model.safetensors")
    assert kept.export("--to", "copy") == 0
    foreign = {"format": "pt", "remember_base_digest": "0" * 64}
    save_file(tensors, "copy/adapter_model.safetensors", metadata=foreign)
    Path("facts.csv").write_text("question,answer\nWho guards Norland?,Ada Quill\n")
    capsys.readouterr()
    assert run_application(["measure", "facts.csv", "--adapter", "copy"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "copy was trained in another base (files 000000000000, and this is files" in message
    assert "--any-base" in message
