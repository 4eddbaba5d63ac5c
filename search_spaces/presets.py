"""Named sampling settings: greedy, and presets of text-generation-webui as of June 2023.

The values are the project's own table of published facts (oobabooga/text-generation-webui, commit
b071eb0d, 2023-06-24). A preset stands here only when every one of its parameters is honoured.
"""

from __future__ import annotations

import difflib

from data.recipes import GREEDY, Sampling, SettingError

PRESETS: dict[str, Sampling] = {
    sampling.name: sampling
    for sampling in (
        GREEDY,
        Sampling(name="Asterism", temperature=1.68, top_p=0.17, top_k=77, repetition_penalty=1.02),
        Sampling(
            name="Divine Intellect",
            temperature=1.31,
            top_p=0.14,
            top_k=49,
            repetition_penalty=1.17,
        ),
        Sampling(
            name="Kobold-Godlike",
            temperature=0.7,
            top_p=0.5,
            typical_p=0.19,
            repetition_penalty=1.1,
        ),
        Sampling(
            name="LLaMA-Precise", temperature=0.7, top_p=0.1, top_k=40, repetition_penalty=1.18
        ),
        Sampling(
            name="Midnight Enigma",
            temperature=0.98,
            top_p=0.37,
            top_k=100,
            repetition_penalty=1.18,
        ),
        Sampling(
            name="Shortwave", temperature=1.53, top_p=0.64, top_k=33, repetition_penalty=1.07
        ),
        Sampling(
            name="Space Alien", temperature=1.31, top_p=0.29, top_k=72, repetition_penalty=1.09
        ),
        Sampling(name="StarChat", temperature=0.2, top_p=0.95, top_k=50),
        Sampling(name="Yara", temperature=0.82, top_p=0.21, top_k=72, repetition_penalty=1.19),
        Sampling(name="simple-1", temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.15),
    )
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
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SettingError(
        f"sampling: there is no preset {name!r}; {hint}the presets are {', '.join(PRESETS)}"
    )
