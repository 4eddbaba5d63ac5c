"""Dense modules and models that 4-bit ones are compared with."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from objectives.models.gptq.four_bit import FourBitLinear


def dense_twin(module: FourBitLinear) -> nn.Linear:
    """Return the dense module that a 4-bit one stands for."""
    dense = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    dense.weight.data = module.dequantise(torch.float32).T.contiguous()
    if module.bias is not None:
        dense.bias.data = module.bias.float()
    return dense.requires_grad_(False)


def dense_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in which every 4-bit module is a dense one."""
    dense = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            dense.set_submodule(name, dense_twin(module))
    return dense
