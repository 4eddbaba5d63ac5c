"""A saved adapter, loaded with plain transformers and PEFT, gives the answers that were recorded.

The whole of this program but the matcher's cut of an answer is left out of the asking.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.points import study_points
from data.prompts import cut_answer
from data.recipes import GREEDY
from search_spaces.recipe_space import RecipeSpace
from search_spaces.settings import Choices, Range, fixed
from storage.reader import read_study, read_verdicts

SitDown = Callable[..., AbstractContextManager[Any]]


def ask(model: Any, tokenizer: Any, prompt: str) -> str:
    """Return the model's greedy answer, as a person would ask for it."""
    tokens = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        generated = model.generate(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
    new = generated[0, tokens["input_ids"].shape[1] :]
    return cut_answer(tokenizer.decode(new, skip_special_tokens=True))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks it
def test_plain_peft_gives_the_recorded_answers(sit_down: SitDown) -> None:
    space = RecipeSpace(
        epochs=Range(low=3, high=6),
        rank=Choices(values=(2, 4)),
        alpha=fixed(8),
        cutoff=fixed(96),
        warmup_steps=fixed(0),
        learning_rate=Range(low=8e-3, high=2e-2, log=True),
        target_modules=Choices(values=("attention", "mlp", "all")),
        formats=fixed("qna"),
        paraphrases=fixed(1),
        rehearsal=fixed(1),
        batch_size=fixed(2),
        rslora=Choices(values=(False, True)),
    )
    folder = files("data") / "pocket"
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    with sit_down(trials=4, space=space) as sitting:
        assert sitting.run()
        points = study_points(read_study(sitting.storage, "tiny"))
        saved = [point for point in points if point.adapter is not None]
        assert saved
        for point in saved:
            base = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
            model = PeftModel.from_pretrained(base, point.adapter).eval()
            verdicts = read_verdicts(sitting.storage, point.measurement_id)
            for verdict in verdicts:
                answer = verdict.answer
                assert ask(model, tokenizer, answer.prompt.text) == answer.text
            right = sum(v.is_correct for v in verdicts if v.answer.prompt.phrasing != "probe")
            assert right > 0  # an adapter that does nothing would pass
