"""Named sampling settings: greedy, and the presets of text-generation-webui from 2023 on.

The values are the project's own table of published facts (oobabooga/text-generation-webui: what a
preset says, in the units of its time, and the loader's defaults for what it does not say; the
loader caps the temperature at 1.99). A preset stands here only when every one of its parameters is
honoured; those that greedy decoding does not read are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from data.nearest_name import hint_at
from data.recipes import GREEDY, Sampling, SettingError

# The sixteen after the Preset Arena (commit b071eb0d, 2023-06-24), less what is in _NOT_YET.
_JUNE_2023 = (
    Sampling(name="Asterism", temperature=1.68, top_p=0.17, top_k=77, repetition_penalty=1.02),
    Sampling(
        name="Big O",
        temperature=0.87,
        top_p=0.99,
        top_k=85,
        typical_p=0.68,
        tfs=0.68,
        repetition_penalty=1.01,
    ),
    Sampling(name="Contrastive Search", do_sample=False, penalty_alpha=0.3, top_k=4),
    Sampling(name="Debug-deterministic", do_sample=False),
    Sampling(
        name="Divine Intellect", temperature=1.31, top_p=0.14, top_k=49, repetition_penalty=1.17
    ),
    Sampling(
        name="Kobold-Godlike", temperature=0.7, top_p=0.5, typical_p=0.19, repetition_penalty=1.1
    ),
    Sampling(name="LLaMA-Precise", temperature=0.7, top_p=0.1, top_k=40, repetition_penalty=1.18),
    Sampling(
        name="Midnight Enigma", temperature=0.98, top_p=0.37, top_k=100, repetition_penalty=1.18
    ),
    Sampling(name="Mirostat", mirostat_tau=8.0),
    Sampling(name="Shortwave", temperature=1.53, top_p=0.64, top_k=33, repetition_penalty=1.07),
    Sampling(name="Space Alien", temperature=1.31, top_p=0.29, top_k=72, repetition_penalty=1.09),
    Sampling(name="StarChat", temperature=0.2, top_p=0.95, top_k=50),
    Sampling(
        name="Titanic",
        temperature=1.01,
        top_p=0.21,
        top_k=91,
        repetition_penalty=1.21,
        encoder_repetition_penalty=1.07,
    ),
    Sampling(name="Yara", temperature=0.82, top_p=0.21, top_k=72, repetition_penalty=1.19),
    Sampling(name="simple-1", temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.15),
    Sampling(name="tfs-with-top-a", temperature=0.7, tfs=0.95, top_a=0.2, repetition_penalty=1.15),
)

# Four of them before parameters were trimmed that left most logits as they were (383c50f0).
_UNTRIMMED = (
    Sampling(
        name="Asterism (untrimmed)",
        temperature=1.68,
        top_p=0.17,
        top_k=77,
        tfs=0.97,
        top_a=0.42,
        repetition_penalty=1.02,
    ),
    Sampling(
        name="Divine Intellect (untrimmed)",
        temperature=1.31,
        top_p=0.14,
        top_k=49,
        epsilon_cutoff=1.49e-4,
        eta_cutoff=10.42e-4,
        top_a=0.52,
        repetition_penalty=1.17,
    ),
    Sampling(
        name="Shortwave (untrimmed)",
        temperature=1.53,
        top_p=0.64,
        top_k=33,
        top_a=0.04,
        repetition_penalty=1.07,
    ),
    Sampling(
        name="Titanic (untrimmed)",
        temperature=1.01,
        top_p=0.21,
        top_k=91,
        eta_cutoff=10.78e-4,
        top_a=0.75,
        repetition_penalty=1.21,
        encoder_repetition_penalty=1.07,
    ),
)

# NovelAI's: those of May 2023 (6de727c5), and three of January (71fb71ca).
_NOVELAI = (
    Sampling(
        name="NovelAI-Best Guess", temperature=0.8, top_p=0.9, top_k=100, repetition_penalty=1.15
    ),
    Sampling(name="NovelAI-Decadence", temperature=1.99, top_k=100, typical_p=0.97),
    Sampling(name="NovelAI-Genesis", temperature=0.63, top_p=0.98, repetition_penalty=1.05),
    Sampling(
        name="NovelAI-Lycaenidae", temperature=1.99, top_p=0.85, top_k=12, repetition_penalty=1.15
    ),
    Sampling(name="NovelAI-Ouroboros", temperature=1.07, top_k=100, repetition_penalty=1.05),
    Sampling(name="NovelAI-Pleasing Results", temperature=0.44, repetition_penalty=1.15),
    Sampling(
        name="NovelAI-Sphinx Moth", temperature=1.99, top_p=0.18, top_k=30, repetition_penalty=1.15
    ),
    Sampling(name="NovelAI-Storywriter", temperature=0.72, top_p=0.73, repetition_penalty=1.1),
    Sampling(
        name="NovelAI-Luna Moth", temperature=1.99, top_p=0.24, top_k=85, repetition_penalty=1.1
    ),
    Sampling(name="NovelAI-Mothra", temperature=1.25, top_k=100, repetition_penalty=1.05),
    Sampling(name="NovelAI-All-Nighter", temperature=1.33, top_k=13, repetition_penalty=1.05),
)

# Others from January to June 2023.
_EARLY_2023 = (
    Sampling(name="Contrastive Search (old)", do_sample=False, penalty_alpha=0.6, top_k=4),
    Sampling(name="Special-Contrastive Search", do_sample=False, penalty_alpha=0.6, top_k=4),
    Sampling(name="Kobold-Liminal Drift", temperature=0.66, typical_p=0.6, repetition_penalty=1.1),
    Sampling(name="Naive", temperature=0.7, top_p=0.85, top_k=50),
    Sampling(name="Naive (first)", temperature=0.7, typical_p=0.3),
    Sampling(
        name="Special-Eta Sampling", temperature=0.7, eta_cutoff=3e-4, repetition_penalty=1.18
    ),
    Sampling(
        name="Verbose (Beam Search)",
        num_beams=10,
        min_length=200,
        length_penalty=1.4,
        no_repeat_ngram_size=2,
        early_stopping=True,
        temperature=0.7,
        top_k=150,
        top_p=0.92,
        repetition_penalty=4.5,
        max_new_tokens=200,  # the webui's own default; fewer could not reach the least length
    ),
    Sampling(name="Epsilon", temperature=0.7, epsilon_cutoff=4e-4, repetition_penalty=1.1),
    Sampling(name="Eta", temperature=0.7, eta_cutoff=1e-3, repetition_penalty=1.1),
    Sampling(name="Default (old)", temperature=0.7, top_p=0.5, top_k=40, repetition_penalty=1.2),
    Sampling(name="MOSS", temperature=0.7, top_p=0.8, repetition_penalty=1.02),
    Sampling(
        name="StableLM-HuggingFace Chat",
        temperature=1.0,
        top_p=0.95,
        top_k=1000,
        max_new_tokens=1024,
    ),
    Sampling(name="StableLM-Jupyter Notebook", temperature=0.7, top_p=0.9, max_new_tokens=128),
    Sampling(name="StableLM-ReadMe Snippet", temperature=0.7, top_k=50, max_new_tokens=64),
    Sampling(name="LLaMA-Default", do_sample=False, repetition_penalty=1.15),
    Sampling(
        name="oasst-sft-1-pythia-12b",
        temperature=1.0,
        top_p=0.95,
        top_k=50,
        repetition_penalty=1.2,
        max_new_tokens=400,
    ),
    Sampling(
        name="Individual Today",
        temperature=1.39,
        top_p=0.9,
        top_k=50,
        typical_p=0.2,
        repetition_penalty=1.08,
    ),
    Sampling(name="PygmalionAI", temperature=0.5, top_p=0.9, repetition_penalty=1.05),
    # It also names penalty_alpha, which transformers reads only where nothing is drawn.
    Sampling(name="Instruct-Joi", temperature=0.5, top_p=0.95, top_k=4, repetition_penalty=1.03),
    Sampling(name="FlexGen", temperature=0.5),
    Sampling(name="KoboldAI-Good Winds", temperature=0.7, repetition_penalty=1.1),
    Sampling(name="Coherent-Creativity", temperature=0.51, repetition_penalty=1.2),
    Sampling(name="ProWriter13b", temperature=1.35, repetition_penalty=1.15),
    Sampling(name="StarChat-Beta", temperature=0.2, top_p=0.95, top_k=50, max_new_tokens=256),
)

# What was shipped from 2024 on.
_LATER = (
    Sampling(name="Null preset"),
    Sampling(name="min_p", min_p=0.05),
    Sampling(
        name="Dynamic Temperature",
        temperature=1.55,
        dynatemp=1.45,
        temperature_last=True,
        min_p=0.05,
    ),
    Sampling(name="Creative", min_p=0.02, xtc_probability=0.5),
    Sampling(name="Instruct", min_p=0.2),
    Sampling(name="Top-P", top_p=0.95),
)

# Presets by family, which a study file may name in a preset's place.
FAMILIES: dict[str, tuple[str, ...]] = {
    name: tuple(sampling.name for sampling in samplings)
    for name, samplings in (
        ("june-2023", _JUNE_2023),
        ("untrimmed", _UNTRIMMED),
        ("novelai", _NOVELAI),
        ("early-2023", _EARLY_2023),
        ("later", _LATER),
    )
}

PRESETS: dict[str, Sampling] = {
    sampling.name: sampling
    for sampling in (GREEDY, *_JUNE_2023, *_UNTRIMMED, *_NOVELAI, *_EARLY_2023, *_LATER)
}

# What a trial chooses from unless the study file says otherwise: greedy, a near-greedy preset, the
# one people preferred most (Preset Arena), and one with much chance and a penalty.
DEFAULT_PRESETS = ("greedy", "StarChat", "simple-1", "Shortwave")


def find_preset(name: str) -> Sampling:
    """Return a preset by its name.

    Raises:
        SettingError: Naming the nearest presets.
    """
    if name in PRESETS:
        return PRESETS[name]
    families = f"the families are {', '.join(FAMILIES)}; docs/search-space.md lists their presets"
    hint = hint_at(name, (*PRESETS, *FAMILIES), otherwise=families)
    raise SettingError(f"sampling: there is no preset {name!r}; {hint}")


def without_penalties(sampling: Sampling) -> Sampling:
    """Return a sampling that does not penalise what was said before, and otherwise is the same."""
    return replace(
        sampling,
        name=f"{sampling.name}, no penalty",
        repetition_penalty=1.0,
        encoder_repetition_penalty=1.0,
    )


def name_presets(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of presets, a family's name replaced by those of its presets.

    Raises:
        SettingError: If there is no such preset or family, or a preset is named twice.
    """
    named: list[str] = []
    for name in names:
        for preset in FAMILIES.get(name, (name,)):
            if find_preset(preset).name in named:
                raise SettingError(f"sampling: {preset!r} is listed twice; name it once")
            named.append(preset)
    return tuple(named)
