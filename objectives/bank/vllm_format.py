"""Says whether vLLM can serve an adapter, by the rules that its own loader states.

vLLM (`vllm/config/lora.py`, `vllm/lora/peft_helper.py`, `vllm/lora/lora_model.py`) reads r,
lora_alpha, use_rslora and target_modules, and refuses what else would change the weights. What it
passes over in silence is refused here, too: ranks and alphas per module. DoRA, which it also
refuses, is refused wherever an adapter is read.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from objectives.bank.loading import WEIGHT_KEY, WEIGHTS_FILE, read_config
from objectives.models.base import ModelError

# What `--max-lora-rank` may be. Newer versions also know 1.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def max_lora_rank(adapter: Path) -> int:
    """Return the least `--max-lora-rank` with which vLLM serves the adapter in a folder.

    Which modules can have adapters is up to the model in vLLM; all linear modules of models built
    like Llama can, also those that vLLM itself keeps as one (q, k and v; gate and up).

    Raises:
        ModelError: If the folder holds no LoRA adapter, or vLLM cannot serve it; the message says
            why.
    """
    config = read_config(adapter)
    obstacles = [
        f"it has {name}"
        for name, is_there in {
            "modules_to_save": bool(config.modules_to_save),
            "biases": config.bias != "none" or config.lora_bias,
            "ranks of single modules": bool(config.rank_pattern),
            "alphas of single modules": bool(config.alpha_pattern),
        }.items()
        if is_there
    ]
    with safe_open(adapter / WEIGHTS_FILE, framework="pt") as file:
        keys: list[str] = file.keys()
    unknown = [key for key in keys if WEIGHT_KEY.fullmatch(key) is None]
    obstacles += [f"it holds {key!r}, which is no weight of an adapter" for key in unknown[:1]]
    rank = next((allowed for allowed in _RANKS if allowed >= config.r), None)
    if rank is None:
        obstacles.append(f"its rank is {config.r}; at most {_RANKS[-1]} is allowed there")
    if obstacles or rank is None:
        raise ModelError(f"adapter: vLLM cannot serve {adapter}: {'; '.join(obstacles)}")
    return rank
