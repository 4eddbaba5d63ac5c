"""Writes GPTQ checkpoints, and beside each what our reader makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from objectives.models.base import BaseModel
from objectives.models.gptq.checkpoint import find_gptq, load_gptq
from objectives.models.gptq.four_bit import FourBitLinear
from objectives.models.gptq.writing import GptqLayoutName, save_gptq
from objectives.models.load import load_base_model
from objectives.models.sources import POCKET

SEED = 20230312
ROWS, TOKENS = 3, 12

# auto-gptq takes modules whose sizes are multiples of 32.
_TINY = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    initializer_range=0.2,
)


def write_checkpoints(folder: Path) -> None:
    """Fill a folder with checkpoints of both layouts, and with what is expected of them."""
    pocket = load_base_model(POCKET, device="cpu")
    tiny = _make_tiny(pocket)
    for name, model, group_size, layout in _plain_cases(tiny, pocket.model):
        save_gptq(model, pocket.tokenizer, folder / name, group_size=group_size, layout=layout)
    save = partial(save_gptq, tiny, pocket.tokenizer, group_size=32, layout="current")
    save(folder / "tiny act-order", act_order=True)
    save(folder / "tiny any zero points")
    _change(folder / "tiny any zero points", _draw_zero_points)
    for checkpoint in sorted(folder.iterdir()):
        _change(checkpoint, _store_output)
        save_file(_expect(checkpoint), checkpoint / "expected.safetensors")


def _plain_cases(
    tiny: PreTrainedModel, pocket: PreTrainedModel
) -> Iterator[tuple[str, PreTrainedModel, int, GptqLayoutName]]:
    layouts: tuple[GptqLayoutName, ...] = ("current", "2023")
    for layout in layouts:
        yield f"tiny {layout}", tiny, 32, layout
        yield f"tiny {layout}, one group", tiny, -1, layout
        yield f"pocket {layout}", pocket, 128, layout


def _make_tiny(pocket: BaseModel) -> PreTrainedModel:
    config = LlamaConfig.from_dict({**_TINY.to_dict(), "vocab_size": len(pocket.tokenizer)})
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config).eval()


def _change(checkpoint: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def _store_output(tensors: dict[str, Tensor]) -> None:
    """Store an output that is tied to the embeddings once more, as auto-gptq does and needs it."""
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].clone())


def _draw_zero_points(tensors: dict[str, Tensor]) -> None:
    """Draw any of the 16 zero points everywhere, also the one that overflows when it is read."""
    generator = torch.Generator().manual_seed(SEED)
    for name, tensor in tensors.items():
        if name.endswith(".qzeros"):
            four_bytes = torch.randint(
                256, (*tensor.shape, 4), dtype=torch.uint8, generator=generator
            )
            tensors[name] = four_bytes.view(torch.int32).squeeze(-1)


def _expect(checkpoint: Path) -> dict[str, Tensor]:
    """Return inputs and what our reader makes of them.

    `token_ids` (rows, tokens) are read, `logits` (rows, tokens, vocabulary) come out. A gradient
    `to_logits` is passed back, `to_inputs` (rows, tokens, hidden) arrives at the embedded tokens
    and `to/NAME` (rows, tokens, out) at the output of each quantised module on its way. An
    adapter's gradients follow from its module's inputs and that.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    layout = find_gptq(checkpoint, config)
    if layout is None:
        raise RuntimeError(f"{checkpoint} was not taken for a GPTQ checkpoint")
    model = load_gptq(checkpoint, config, layout, dtype=torch.float32, device_map={"": "cpu"})
    outputs_of: dict[str, Tensor] = {}

    def keep(name: str, _module: object, _inputs: object, output: Tensor) -> None:
        outputs_of[name] = output

    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            module.register_forward_hook(partial(keep, name))
    generator = torch.Generator().manual_seed(SEED)
    vocabulary = int(config.vocab_size)
    token_ids = torch.randint(vocabulary, (ROWS, TOKENS), generator=generator)
    embedded = model.get_input_embeddings()(token_ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    to_logits = torch.randn(logits.shape, generator=generator)
    to_inputs, *to_outputs = torch.autograd.grad(
        logits, [embedded, *outputs_of.values()], to_logits
    )
    return {
        "token_ids": token_ids,
        "logits": logits.detach(),
        "to_logits": to_logits,
        "to_inputs": to_inputs,
        **{
            f"to/{name}": gradient.contiguous()
            for name, gradient in zip(outputs_of, to_outputs, strict=True)
        },
    }
