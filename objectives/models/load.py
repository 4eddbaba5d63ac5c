"""Loads a base model by name, in whatever format its weights are, and checks it for use."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import ADAPTER_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from data.prompts import put_question
from objectives.models.base import (
    LOADING_ERRORS,
    NO_RULES,
    BaseModel,
    ModelError,
    TokenRules,
)
from objectives.models.chat import NO_CHAT, find_chat, read_template
from objectives.models.gguf.loading import load_gguf
from objectives.models.gptq.backward_check import require_exact_backward
from objectives.models.gptq.checkpoint import find_gptq, gptq_on_meta, load_gptq
from objectives.models.gptq.gptqmodel_kernels import load_with_gptqmodel
from objectives.models.loading import DEFAULT_LOADING, Loading
from objectives.models.machine.devices import check_device, default_device
from objectives.models.machine.memory import is_out_of_memory
from objectives.models.machine.placement import SPLIT, plan_device_map
from objectives.models.reading_tokenizers import read_tokenizer
from objectives.models.sources import Source, digest_weights, find_source

Precision = Literal["float32", "bfloat16", "float16"]


def load_base_model(
    name: str,
    *,
    device: str | None = None,
    dtype: Precision | None = None,
    rules: TokenRules = NO_RULES,
    loading: Loading = DEFAULT_LOADING,
    memory_limit_bytes: int | None = None,
    chat_template: str | None = None,
) -> BaseModel:
    """Return the model ready to be asked and hooked: evaluation mode, nothing trainable.

    Args:
        name: "pocket", a profile's name, a folder with a Hugging Face model, a .gguf file, or a
            hub id.
        device: A torch device, or "split" over all GPUs and main memory; a GPU where there is one
            by default.
        dtype: Of its weights; by default `default_precision`.
        rules: What the study says about its tokens.
        loading: Which files it is read from, and what is allowed.
        memory_limit_bytes: The most of a device that may be used.
        chat_template: One to be used in place of its own, as text or as the path of a file; "none"
            to ask without one.

    Raises:
        ModelError: If it is not there, is not a causal language model, has no room, needs what is
            not allowed, or does not belong to its tokenizer.
    """
    device = device or default_device()
    if device != SPLIT:
        check_device(device)
    dtype = dtype or default_precision(device)
    source = find_source(name, loading)
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        reader = _Reader(source, loading, device, getattr(torch, dtype), memory_limit_bytes)
        model, tokenizer = reader.read_gguf() if source.is_gguf else reader.read_folder()
    except LOADING_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        raise _explain(error, source, loading) from error
    model.requires_grad_(False)
    model.eval()
    base = BaseModel(
        name=name,
        source=source.origin,
        digest=digest_weights(source, loading.weights_file),
        revision=source.revision,
        model=model,
        tokenizer=tokenizer,
        rules=rules,
    )
    _require_own_tokenizer(base)
    return _with_chat(base, chat_template)


def default_precision(device: str) -> Precision:
    """Return float32 for a CPU, and for a GPU bfloat16, or float16 if it is too old for that."""
    if device == "cpu" or not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


class _Reader:
    """Reads one model's files."""

    def __init__(
        self,
        source: Source,
        loading: Loading,
        device: str,
        dtype: torch.dtype,
        memory_limit_bytes: int | None,
    ) -> None:
        self._path = source.path
        self._name = source.name
        self._loading = loading
        self._device = device
        self._dtype = dtype
        self._memory_limit_bytes = memory_limit_bytes

    def read_gguf(self) -> tuple[PreTrainedModel, Tokenizer]:
        """Return the model and the tokenizer of a .gguf file."""
        return load_gguf(
            self._path,
            dtype=self._dtype,
            device=self._device,
            memory_limit_bytes=self._memory_limit_bytes,
        )

    def read_folder(self) -> tuple[PreTrainedModel, Tokenizer]:
        """Return the model and the tokenizer of a folder.

        Raises:
            ModelError: If an adapter lies there, too: transformers would put it in without a word.
        """
        if (self._path / ADAPTER_CONFIG_NAME).is_file():
            raise ModelError(
                f"model: {self._name!r} is not allowed; {ADAPTER_CONFIG_NAME} lies beside it, and "
                "such an adapter would be read with it; move that file away, or name a model that "
                "the adapter was merged into"
            )
        # Without an explicit no transformers would ask whether a model's own code may run.
        code = self._loading.trust_remote_code
        config = AutoConfig.from_pretrained(self._path, trust_remote_code=code)
        # First, for weights may take minutes to be read.
        tokenizer = read_tokenizer(self._path, config.model_type, trust_remote_code=code)
        return self._read_weights(config), tokenizer

    def _read_weights(self, config: PretrainedConfig) -> PreTrainedModel:
        is_pickled = self._must_unpickle()
        code = self._loading.trust_remote_code
        layout = find_gptq(self._path, config, weights_file=self._loading.weights_file)
        if layout is not None:
            if self._loading.gptq == "built-in":
                empty = gptq_on_meta(config, layout, dtype=self._dtype, trust_remote_code=code)
                model = load_gptq(
                    self._path,
                    config,
                    layout,
                    dtype=self._dtype,
                    device_map=self._plan(empty),
                    trust_remote_code=code,
                )
            else:
                model = load_with_gptqmodel(
                    self._path,
                    config,
                    layout,
                    dtype=self._dtype,
                    device_map=self._one_device("GPTQ through gptqmodel"),
                    trust_remote_code=code,
                )
            require_exact_backward(model)
            return model
        quantised: Any = getattr(config, "quantization_config", None)
        if quantised is not None:
            place = self._one_device("a model that other packages quantised")
        else:
            place = self._plan(self._empty(config))
        if self._loading.weights_file is not None:
            config.transformers_weights = self._loading.weights_file
        model, report = AutoModelForCausalLM.from_pretrained(
            self._path,
            config=config,
            dtype=self._dtype,
            device_map=place,
            use_safetensors=not is_pickled,
            weights_only=True,
            trust_remote_code=code,
            ignore_mismatched_sizes=True,  # they are in the report, and named
            output_loading_info=True,
        )
        self._require_all(report["missing_keys"], report["mismatched_keys"])
        if self._loading.weights_file is not None:
            del model.config.transformers_weights  # or it would be looked for in copies
        if quantised is not None:
            require_exact_backward(model)
        return model

    def _one_device(self, what: str) -> dict[str, str | int]:
        """Return the map of a model whose size only another package knows.

        Raises:
            ModelError: If it is to be split.
        """
        if self._device == SPLIT:
            raise ModelError(
                f"device: {SPLIT!r} is not allowed with {what}, which is not split here; name one "
                "device, or take the model in another format"
            )
        return {"": self._device}

    def _require_all(
        self,
        missing: Collection[str],
        misfits: Collection[tuple[str, Sequence[int], Sequence[int]]],
    ) -> None:
        """Refuse weights of another model: transformers makes up those that it does not find.

        A misfit is a tensor's name, its size in the file, and the model's.
        """
        if misfits:
            name, stored, wanted = min(misfits)
            problem = f"{name} {list(stored)} has not the size {list(wanted)}"
        elif missing:
            first, *others = sorted(missing)
            problem = f"its weights lack {first}" + (f" and {len(others)} more" if others else "")
        else:
            return
        raise ModelError(
            f"model: {self._name!r} cannot be loaded: {problem}; they are not those of the model "
            "that its config.json describes; fetch it again"
        )

    def _must_unpickle(self) -> bool:
        """Return whether there are only pickled weights, which may be read.

        Raises:
            ModelError: If they may not, or there are no weights at all.
        """
        if any(self._path.glob("*.safetensors")):
            return False
        pickled = sorted(
            path.name for kind in ("*.bin", "*.pt", "*.pth") for path in self._path.glob(kind)
        )
        if self._loading.pickled_weights and pickled:
            return True
        raise ModelError(
            f"model: {self._name!r} cannot be loaded: it has no *.safetensors weights"
            + (f", only {pickled[0]}" if pickled else "")
            + "; pickled weights may contain code and are read only under loading.pickled_weights "
            "= true in the study file; better, have transformers save the model again"
        )

    def _empty(self, config: PretrainedConfig) -> PreTrainedModel:
        """Return the model without weights."""
        with init_empty_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=self._dtype, trust_remote_code=self._loading.trust_remote_code
            )
        model.tie_weights()  # again, because emptying took apart what is one tensor
        return model

    def _plan(self, model: PreTrainedModel) -> dict[str, str | int]:
        return plan_device_map(
            model, device=self._device, memory_limit_bytes=self._memory_limit_bytes
        )


def _explain(error: Exception, source: Source, loading: Loading) -> ModelError:
    """Return why a model cannot be loaded, and what to do."""
    if (refusal := refusal_of_code(error, source.name, loading)) is not None:
        return refusal
    if isinstance(error, UnpicklingError):
        return ModelError(
            f"model: {source.name!r} cannot be loaded: its pickled weights contain more than "
            "tensors, which is never read; have whoever made it save it as *.safetensors"
        )
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if is_out_of_memory(error):
        return ModelError(
            f"model: {source.name!r} cannot be loaded: memory ran out ({reason}); end what else "
            f"uses it, choose device = {SPLIT!r}, or take a smaller model or one in 4 bits (GPTQ)"
        )
    return ModelError(
        f"model: {source.name!r} cannot be loaded: {reason}. A model's folder holds config.json, "
        "the tokenizer and *.safetensors weights"
    )


def refusal_of_code(error: Exception, name: str, loading: Loading) -> ModelError | None:
    """Return what to do where transformers did not run a model's own code; None if it is not that.

    Args:
        error: What it raised.
        name: Of the model.
        loading: Whether that code may run.
    """
    if "trust_remote_code" not in str(error) or loading.trust_remote_code:
        return None
    return ModelError(
        f"model: {name!r} cannot be loaded without running Python code that comes with it, which "
        "could do anything on this machine; read that code, and allow it by "
        "loading.trust_remote_code = true in the study file"
    )


def _require_own_tokenizer(base: BaseModel) -> None:
    """Refuse a model that does not go with its tokenizer, or that cannot be measured.

    Tokens that were only added to a tokenizer are let be, for ordinary text has none of them; a
    text that has one is refused when it is read.

    Raises:
        ModelError: Naming what does not fit.
    """
    tokenizer, known = base.tokenizer, base.vocabulary
    added = set(tokenizer.get_added_vocab())
    names = {token: number for token, number in tokenizer.get_vocab().items()}
    unknown = [token for token, number in names.items() if number >= known and token not in added]
    if unknown:
        raise ModelError(
            f"model: the tokenizer of {base.name!r} has {len(names)} tokens and the model "
            f"knows {known}, so that they do not belong together; take the tokenizer that the "
            "model was made with"
        )
    if base.eos_id >= known:
        raise ModelError(
            f"model: the end-of-text token of {base.name!r} is {base.eos_id}, and the model knows "
            f"tokens below {known}; take the tokenizer that the model was made with"
        )
    if not isinstance(getattr(base.model.config.get_text_config(), "hidden_size", None), int):
        raise ModelError(f"model: the configuration of {base.name!r} names no hidden_size")
    _ = base.context_tokens, base.pad_id, base.token_ids  # what does not fit is found now


def _with_chat(base: BaseModel, chat_template: str | None) -> BaseModel:
    """Return a model with the frame of its own or of another chat template."""
    if chat_template == NO_CHAT:
        return base
    given = None if chat_template is None else read_template(chat_template)
    found = find_chat(base.tokenizer, given)
    if found is None:
        return base
    chat, ends = found
    base = replace(base, chat=chat, chat_ends=ends)
    base.encode_prompt(put_question("?", "chat", chat), "chat")  # an unknown token is found now
    return base
