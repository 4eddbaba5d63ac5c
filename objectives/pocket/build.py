"""Trains the pocket model from scratch on the world's facts and measures what it knows."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.pocket_corpus import draw_epoch

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True, slots=True, kw_only=True)
class PocketSettings:
    """How the pocket model is made. Widths are multiples of 128, the group size of 4-bit GPTQ."""

    seed: int = 0
    vocabulary: int = 1536
    hidden: int = 128
    intermediate: int = 384
    layers: int = 4
    heads: int = 4
    context_tokens: int = 512
    epochs: int = 30
    batch_rows: int = 48
    learning_rate: float = 4e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05


def train_tokenizer(settings: PocketSettings) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in which a word has one form wherever it stands.

    A space is put before the first word of the text and of every line, so that an answer that
    begins a line and one that follows a colon are the same tokens: without it a fact learned in
    one prompt style does not transfer to the other. Digits stand alone, so that a year that was
    never seen is made of parts that were.
    """
    texts = draw_epoch(settings.seed, 0) + draw_epoch(settings.seed, 1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\n(?=\S)"), "\n "), normalizers.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\n ", "\n")])
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=settings.vocabulary,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    # So that plain transformers puts the beginning of the text where training had it.
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=settings.context_tokens,
        clean_up_tokenization_spaces=False,
    )


def build_pocket(
    settings: PocketSettings,
    folder: Path,
    *,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> int:
    """Train the pocket model and save it in `folder` as bf16 safetensors; return tokens trained.

    `on_epoch` receives the epochs done, the mean loss in nats per token and the seconds so far.
    """
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(settings)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            intermediate_size=settings.intermediate,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.context_tokens,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )
    begun, steps, trained_tokens = time.monotonic(), 0, 0
    total_steps = settings.epochs * len(_batches(settings, tokenizer, 0))
    for epoch in range(settings.epochs):
        total_loss = 0.0
        batches = _batches(settings, tokenizer, epoch)
        for batch in batches:
            rate = settings.learning_rate * _schedule(steps, total_steps, settings.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            width = max(map(len, batch))
            rows = torch.full((len(batch), width), int(tokenizer.pad_token_id))
            for row, ids in zip(rows, batch, strict=True):
                row[: len(ids)] = torch.tensor(ids)
            labels = rows.masked_fill(rows == tokenizer.pad_token_id, -100)
            loss = model(input_ids=rows, labels=labels).loss  # right-padded: causal needs no mask
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            steps += 1
            trained_tokens += sum(len(ids) - 1 for ids in batch)
            total_loss += loss.item()
        if on_epoch:
            on_epoch(epoch + 1, total_loss / len(batches), time.monotonic() - begun)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return trained_tokens


def _batches(
    settings: PocketSettings, tokenizer: PreTrainedTokenizerFast, epoch: int
) -> list[list[list[int]]]:
    """Return an epoch's batches of rows of similar length, in a shuffled order."""
    draw = random.Random(f"batches/{settings.seed}/{epoch}")
    texts = draw_epoch(settings.seed, epoch)
    rows: Sequence[list[int]] = [
        [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        for ids in tokenizer(texts, add_special_tokens=False).input_ids
    ]
    order = sorted(rows, key=lambda ids: len(ids) + 4 * draw.random())
    batches = [
        order[start : start + settings.batch_rows]
        for start in range(0, len(order), settings.batch_rows)
    ]
    draw.shuffle(batches)
    return batches


def _schedule(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine to a twentieth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
