"""What a person says about reading a model: which files, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GptqKernel = Literal["built-in", "gptqmodel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Which files a model is read from, and what is allowed while it is.

    `revision` is a branch, a tag or a commit of a hub repository; `weights_file` names one of
    several files of weights in a folder. `gptq` is what computes with a GPTQ checkpoint. Code that
    comes with a model runs only under `trust_remote_code`, and pickled weights, which may contain
    code, are read only under `pickled_weights`.
    """

    revision: str | None = None
    weights_file: str | None = None
    gptq: GptqKernel = "built-in"
    trust_remote_code: bool = False
    pickled_weights: bool = False


DEFAULT_LOADING = Loading()
