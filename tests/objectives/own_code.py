"""A model folder that brings Python code of its own."""

from __future__ import annotations

import json
from pathlib import Path

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def bring_code(folder: Path) -> None:
    """Let a Llama's folder be that of a model which only its own code can read."""
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    path.write_text(json.dumps(fields), encoding="utf-8")
    (folder / "own.py").write_text(CODE, encoding="utf-8")
