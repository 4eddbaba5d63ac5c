"""Reads checkpoints with auto-gptq and compares what it computes with what is expected.

Runs in an environment of its own, because auto-gptq is archived and cannot be imported beside
transformers 5; so it imports nothing of this project. `python legacy.py FOLDER`: every folder in
FOLDER holds a checkpoint, and `expected.safetensors` with inputs and what another reader made of
them (`benchmarks/auto_gptq/expecting.py`). Exits with 1 where one differs.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from safetensors.torch import load_file
from torch import Tensor

# Both compute in fp32. Sums of some hundred terms in another order, layer upon layer, differ by
# some ten times its accuracy of 6e-8.
TOLERANCE = 2e-5


def main() -> int:
    """Return 0 if all agrees, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    logging.disable(logging.WARNING)  # it warns at length that it has no kernels for a CPU
    checkpoints = sorted(path.parent for path in folder.glob("*/expected.safetensors"))
    if not checkpoints:
        raise SystemExit(f"folder: {folder} holds no checkpoints")
    # The head says what the numbers are: greatest difference as a share of the greatest value.
    print(f"{'checkpoint':28} {'logits':>9} {'to inputs':>9} {'to outputs':>10}  kernel")
    agree = True
    for checkpoint in checkpoints:
        logits, to_inputs, to_outputs, kernel = _compare(checkpoint)
        print(f"{checkpoint.name:28} {logits:9.1e} {to_inputs:9.1e} {to_outputs:10.1e}  {kernel}")
        # Written so that a value that is not a number disagrees.
        agree &= logits <= TOLERANCE and to_inputs <= TOLERANCE and to_outputs <= TOLERANCE
    print(f"{'equal' if agree else 'NOT EQUAL'} (tolerance {TOLERANCE:.0e})")
    return 0 if agree else 1


def _compare(checkpoint: Path) -> tuple[float, float, float, str]:
    """Return three differences, of logits and gradients to inputs and outputs, and the kernel."""
    expected = load_file(checkpoint / "expected.safetensors")
    model = _load(checkpoint)
    outputs_of: dict[str, Tensor] = {}
    kernels = set()

    def keep(name: str, _module: object, _inputs: object, output: Tensor) -> None:
        outputs_of[name] = output

    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            kernels.add(type(module).__module__.rpartition(".")[2])

            module.register_forward_hook(partial(keep, name))
    embedded = model.get_input_embeddings()(expected["token_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    names = sorted(outputs_of)
    to_inputs, *to_outputs = torch.autograd.grad(
        logits, [embedded, *(outputs_of[name] for name in names)], expected["to_logits"]
    )
    to_expected = {key[len("to/") :] for key in expected if key.startswith("to/")}
    if set(names) != to_expected:
        raise SystemExit(
            f"{checkpoint.name}: auto-gptq finds other quantised modules: "
            f"{sorted(to_expected.symmetric_difference(names))}"
        )
    return (
        _difference(logits, expected["logits"]),
        _difference(to_inputs, expected["to_inputs"]),
        max(
            _difference(gradient, expected[f"to/{name}"])
            for name, gradient in zip(names, to_outputs, strict=True)
        ),
        ", ".join(sorted(kernels)),
    )


def _load(checkpoint: Path) -> Any:
    """Return the model as auto-gptq reads it, in fp32 on the CPU, with its trainable kernel."""
    (weights,) = (path for path in checkpoint.glob("*.safetensors") if path.stem != "expected")
    settings = json.loads((checkpoint / "quantize_config.json").read_text(encoding="utf-8"))
    config = BaseQuantizeConfig(
        bits=settings["bits"],
        group_size=settings["group_size"],
        desc_act=settings["desc_act"],
        sym=settings["sym"],
    )
    loaded = AutoGPTQForCausalLM.from_quantized(
        str(checkpoint),
        model_basename=weights.stem,
        use_safetensors=True,
        device="cpu",
        use_triton=False,
        trainable=True,
        torch_dtype=torch.float32,
        quantize_config=config,
    )
    return loaded.model.eval().requires_grad_(False)


def _difference(own: Tensor, other: Tensor) -> float:
    """Return the greatest difference, as a share of the greatest value."""
    return float((own.detach() - other).abs().max() / other.abs().max())


if __name__ == "__main__":
    sys.exit(main())
