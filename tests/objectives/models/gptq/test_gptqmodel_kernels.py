"""gptqmodel's modules give the logits, gradients and adapters that the built-in ones give."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, dynamic_module_utils

from data.recipes import Recipe
from objectives.bank import Bank, export_adapter
from objectives.models.base import BaseModel, ModelError
from objectives.models.gptq.backward_check import require_exact_backward
from objectives.models.gptq.checkpoint import find_gptq, load_gptq
from objectives.models.gptq.four_bit import FourBitLinear
from objectives.models.gptq.gptqmodel_kernels import load_with_gptqmodel
from objectives.models.gptq.writing import save_gptq
from objectives.models.load import load_base_model
from objectives.models.loading import Loading
from tests.objectives.own_code import bring_code

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extras,
    pytest.mark.skipif(
        find_spec("gptqmodel") is None or find_spec("optimum") is None,
        reason="needs gptqmodel and optimum: pip install -e '.[gptq]'",
    ),
    # PEFT asks for what transformers calls activation checkpointing now.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

ON_CPU = {"": "cpu"}
RECIPES = (
    Recipe(epochs=2, rank=4, alpha=8, cutoff=64, warmup_steps=4, learning_rate=3e-3),
    Recipe(
        epochs=2,
        rank=2,
        alpha=8,
        cutoff=64,
        warmup_steps=4,
        learning_rate=3e-3,
        target_modules="attention",
        rslora=True,
    ),
)
TEXTS = ("Question: Who won?", "Brendan Fraser won Best Actor.", "Joe: Who? Brandine: Brendan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder with the pocket model as a GPTQ checkpoint."""

    folder: Path
    pocket: BaseModel

    def built_in(self, dtype: torch.dtype = torch.float32) -> BaseModel:
        """Return the model as the built-in reader loads it."""
        return self._load(load_gptq, dtype)

    def by_gptqmodel(self, dtype: torch.dtype = torch.float32) -> BaseModel:
        """Return the model as gptqmodel loads it."""
        return self._load(load_with_gptqmodel, dtype)

    def change(self, change: Callable[[dict[str, Tensor]], None]) -> None:
        """Write its weights again with what `change` makes of them."""
        (file,) = self.folder.glob("*.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    def _load(self, load: Callable[..., PreTrainedModel], dtype: torch.dtype) -> BaseModel:
        config = AutoConfig.from_pretrained(self.folder)
        layout = find_gptq(self.folder, config)
        model = load(self.folder, config, layout, dtype=dtype, device_map=ON_CPU)
        return replace(self.pocket, model=model, source=str(self.folder))


def write(folder: Path, *, kind: str = "current", group_size: int = 32) -> Checkpoint:
    """Write the pocket model as "current", "2023" or "act-order"."""
    pocket = load_base_model("pocket", device="cpu")
    save_gptq(
        pocket.model,
        pocket.tokenizer,
        folder,
        group_size=group_size,
        layout="2023" if kind == "2023" else "current",
        act_order=kind == "act-order",
    )
    return Checkpoint(folder=folder, pocket=pocket)


def round_scales(tensors: dict[str, Tensor]) -> None:
    """Make every scale a power of two: gptqmodel's halves then hold its products exactly."""
    for name, tensor in tensors.items():
        if name.endswith(".scales"):
            tensors[name] = tensor.float().log2().round().exp2().half()


@pytest.fixture(scope="module", params=["current", "2023", "act-order"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """Return one of each kind, with weights that halves hold exactly; no test may change it."""
    folder = tmp_path_factory.mktemp("gptq") / request.param
    checkpoint = write(folder, kind=request.param)
    checkpoint.change(round_scales)
    return checkpoint


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    """Let gptqmodel's modules run as they are: compiling them takes longer than all tests."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(4, 1500, (3, 9), generator=torch.Generator().manual_seed(7))


def logits_of(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(token_ids).logits
    return logits


def difference(own: Tensor, other: Tensor) -> float:
    """Return the greatest difference, as a share of the greatest value."""
    return float((own - other).abs().max() / other.abs().max())


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return int32 (n * bits / 32, m) of numbers (n, m), the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits)[:, None]
    together = (codes.reshape(-1, 32 // bits, codes.shape[1]) << shifts).sum(1)
    return torch.where(together >= 2**31, together - 2**32, together).int()


def make_bank(base: BaseModel) -> Bank:
    """Return a bank with a random adapter for each recipe, in which no B is zero."""
    bank = Bank(base, slots=len(RECIPES), max_rank=4)
    for slot, recipe in enumerate(RECIPES):
        bank.admit(slot, recipe, lambda _epoch: TEXTS, seed=slot)
        state = bank.snapshot(slot)
        generator = torch.Generator().manual_seed(slot)
        weights = torch.randn(state.weights.shape, generator=generator) * 0.05
        bank.release(slot)
        bank.resume(slot, replace(state, weights=weights), lambda _epoch: TEXTS)
    return bank


def gradients_of(base: BaseModel) -> dict[str, Tensor]:
    """Return the gradients of every matrix of both adapters, which train in one pass.

    After one step Adam's first moments are a tenth of them, all by the same factor if clipped.
    """
    bank = make_bank(base)
    bank.step()
    gradients = {}
    for slot, recipe in enumerate(RECIPES):
        positions = bank.layout.positions(recipe.target_modules)
        parts = bank.layout.split(bank.snapshot(slot).first_moments, positions)
        for position, pair in zip(positions, parts, strict=True):
            for side, gradient in zip("AB", pair, strict=True):
                name = bank.layout.modules[position].name
                gradients[f"{slot} {name} {side}"] = gradient
    return gradients


def test_logits_equal_those_of_the_built_in_modules(
    checkpoint: Checkpoint, token_ids: Tensor
) -> None:
    own, other = checkpoint.by_gptqmodel(), checkpoint.built_in()
    kinds = [type(module).__name__ for module in own.model.modules()]
    assert kinds.count("TorchLinear") == 4 * 7
    assert not any(isinstance(module, FourBitLinear) for module in own.model.modules())
    assert not own.model.training
    assert not any(parameter.requires_grad for parameter in own.model.parameters())
    assert difference(logits_of(own.model, token_ids), logits_of(other.model, token_ids)) < 1e-5


def test_modules_are_in_the_order_in_which_adapters_lie(checkpoint: Checkpoint) -> None:
    own, other = checkpoint.by_gptqmodel().model, checkpoint.built_in().model
    assert [name for name, _ in own.named_modules()] == [name for name, _ in other.named_modules()]


def test_a_model_with_code_of_its_own_is_read_where_that_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_ids: Tensor
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    checkpoint = write(tmp_path / "own")
    checkpoint.change(round_scales)
    plain = checkpoint.by_gptqmodel()
    bring_code(checkpoint.folder)
    loading = Loading(gptq="gptqmodel", trust_remote_code=True)
    own = load_base_model(str(checkpoint.folder), device="cpu", loading=loading)
    assert type(own.model).__name__ == "OwnModel"
    assert torch.equal(logits_of(own.model, token_ids), logits_of(plain.model, token_ids))


def test_every_gradient_of_every_adapter_is_that_of_the_built_in_modules(
    checkpoint: Checkpoint,
) -> None:
    own, other = gradients_of(checkpoint.by_gptqmodel()), gradients_of(checkpoint.built_in())
    assert len(other) == 2 * 4 * (7 + 4)
    assert own.keys() == other.keys()
    for name, gradient in other.items():
        assert gradient.any(), name
        assert difference(own[name], gradient) < 1e-4, name


def test_with_any_scales_the_two_differ_by_what_halves_round_away(
    tmp_path: Path, token_ids: Tensor
) -> None:
    checkpoint = write(tmp_path / "model", group_size=128)
    own, other = checkpoint.by_gptqmodel(), checkpoint.built_in()
    assert difference(logits_of(own.model, token_ids), logits_of(other.model, token_ids)) < 2**-8


@pytest.mark.parametrize("bits", [2, 8])
def test_other_bits_are_read_as_the_layout_says(
    tmp_path: Path, token_ids: Tensor, bits: int
) -> None:
    checkpoint = write(tmp_path / "model")
    dense = load_base_model("pocket", device="cpu").model.float()
    for parameter in dense.parameters():
        parameter.data = parameter.data.half().float()
    generator = torch.Generator().manual_seed(bits)

    def draw(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".qweight")]:
            module = name.removesuffix(".qweight")
            groups, out_features = tensors[f"{module}.scales"].shape
            # (in, out) and (groups, out); no zero point is the one that overflows when read.
            in_features = len(tensors[f"{module}.g_idx"])
            codes = torch.randint(2**bits, (in_features, out_features), generator=generator)
            stored = torch.randint(2**bits - 1, (groups, out_features), generator=generator)
            tensors[name] = pack(codes, bits)
            tensors[f"{module}.qzeros"] = pack(stored.T, bits).T.contiguous()
            # A power of two, so that halves hold the products.
            tensors[f"{module}.scales"].fill_(2.0**-bits / 8)
            steps = codes.view(groups, -1, out_features) - (stored + 1)[:, None]
            weight = steps.flatten(0, 1).T * 2.0**-bits / 8
            dense.get_submodule(module).weight.data = weight.contiguous()

    checkpoint.change(draw)
    for name in ("config.json", "quantize_config.json"):
        path = checkpoint.folder / name
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"bits": 4', f'"bits": {bits}'), encoding="utf-8")
    own = checkpoint.by_gptqmodel()
    require_exact_backward(own.model)
    assert difference(logits_of(own.model, token_ids), logits_of(dense, token_ids)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_its_kernel_has_an_exact_backward(tmp_path: Path, dtype: torch.dtype) -> None:
    require_exact_backward(write(tmp_path / "model").by_gptqmodel(dtype).model)


def test_the_kernel_that_it_would_choose_for_a_cpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.models.gptq.gptqmodel_kernels._BACKEND", "auto")
    base = write(tmp_path / "model").by_gptqmodel()
    with pytest.raises(ModelError, match=r"TorchAtenLinear.* passes back no gradient"):
        require_exact_backward(base.model)


def test_an_adapter_of_the_bank_reloads_in_plain_peft(
    checkpoint: Checkpoint, token_ids: Tensor, tmp_path: Path
) -> None:
    base = checkpoint.by_gptqmodel()
    bank = make_bank(base)
    bank.step()
    export_adapter(bank, 0, tmp_path / "adapter")
    with bank.answering([0] * token_ids.numel()):
        expected = logits_of(base.model, token_ids)
    bare = logits_of(base.model, token_ids)
    adapted = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter")).eval()
    kinds = [type(module).__name__ for module in adapted.modules()]
    assert kinds.count("GPTQLoraLinear") == 4 * 7
    assert difference(logits_of(adapted, token_ids), expected) < 1e-5
    assert difference(bare, expected) > 1e-2, "an adapter that did nothing would show nothing"


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "model")

    def lose_a_norm(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"]

    checkpoint.change(lose_a_norm)
    with pytest.raises(ModelError, match=r"lacks .*: model\.norm\.weight"):
        checkpoint.by_gptqmodel()


def test_a_bias_that_is_not_zero_is_not_passed_over(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "model", kind="2023")
    name = "model.layers.2.mlp.up_proj.bias"

    def fill_a_bias(tensors: dict[str, Tensor]) -> None:
        tensors[name].fill_(0.5)

    checkpoint.change(fill_a_bias)
    with pytest.raises(ModelError, match=rf"has no use for .*: {name}"):
        checkpoint.by_gptqmodel()


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "model")
    path = checkpoint.folder / "config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"intermediate_size": 384', '"intermediate_size": 256'), "utf-8")
    with pytest.raises(ModelError, match=r"gptqmodel cannot read .*built-in"):
        checkpoint.by_gptqmodel()


def test_it_prints_nothing_and_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    folder = write(tmp_path / "model").folder
    program = f"""
import os
from pathlib import Path
import torch
from transformers import AutoConfig
from objectives.models.gptq.checkpoint import find_gptq
from objectives.models.gptq.gptqmodel_kernels import load_with_gptqmodel
folder = Path({str(folder)!r})
config = AutoConfig.from_pretrained(folder)
layout = find_gptq(folder, config)
before = dict(os.environ)
load_with_gptqmodel(folder, config, layout, dtype=torch.float32, device_map={{"": "cpu"}})
assert os.environ == before, {{k: v for k, v in os.environ.items() if before.get(k) != v}}
print("loaded")
"""
    child = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "HF_HOME"},
    )
    assert (child.returncode, child.stdout) == (0, "loaded\n"), child.stderr
