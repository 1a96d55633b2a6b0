"""Learning-rate schedule, optimisers and the average of the weights, against closed forms."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from omnihuman_train.config import OptimizerConfig
from omnihuman_train.ema import Ema
from omnihuman_train.optim import OptimizerGroup, lr_factor


def test_schedule_is_a_trapezium() -> None:
    config = OptimizerConfig(warmup_steps=10, decay_fraction=0.25)
    factors = [lr_factor(config, step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(factors[9:76]) == {1.0}
    assert factors[75:] == pytest.approx([(100 - i) / 25 for i in range(75, 100)])
    # One more step would have a rate of zero.
    assert lr_factor(config, 100, 100) == 0


def test_schedule_without_warmup_or_decay_is_constant() -> None:
    config = OptimizerConfig(warmup_steps=0, decay_fraction=0.0)
    assert [lr_factor(config, step, 5) for step in range(5)] == [1.0] * 5


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(6, 6)])
        self.embed = nn.Linear(6, 6)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](torch.tanh(self.embed(x)))


def steps_of(model: nn.Module, optimizer: OptimizerGroup, factors: list[float]) -> None:
    for factor in factors:
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step(factor)


def test_adamw_is_torchs_with_decay_on_the_matrices_of_blocks_alone() -> None:
    model, reference = Blocks(), Blocks()
    config = OptimizerConfig(lr=1e-2, weight_decay=0.5)
    steps_of(model, OptimizerGroup(model, config), [1.0, 0.5])
    matrix = reference.blocks[0].weight
    rest = [p for p in reference.parameters() if p is not matrix and p.requires_grad]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": [matrix], "weight_decay": 0.5}]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=config.betas)
    for factor in (1.0, 0.5):
        for group in plain.param_groups:
            group["lr"] = 1e-2 * factor
        reference(torch.ones(2, 6)).square().sum().backward()
        plain.step()
        plain.zero_grad()
    torch.testing.assert_close(dict(model.named_parameters()), dict(reference.named_parameters()))


def test_muon_takes_the_matrices_of_blocks_and_moves_them_orthogonally() -> None:
    model = Blocks()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = OptimizerGroup(model, OptimizerConfig(name="muon", lr=1e-3, muon_lr=1e-2, weight_decay=0.0))
    assert [type(part).__name__ for part in optimizer.optimizers] == ["AdamW", "Muon"]
    assert [group["params"] for group in optimizer.optimizers[1].param_groups] == [[model.blocks[0].weight]]
    # A gradient of full rank; Muon's step has all singular values alike, whatever those of the gradient are.
    model.blocks[0].weight.grad = torch.diag(torch.tensor([100.0, 30.0, 10.0, 3.0, 2.0, 1.0]))
    optimizer.step(1.0)
    spread = torch.linalg.svdvals(model.blocks[0].weight.detach() - before["blocks.0.weight"])
    assert spread.max() / spread.min() < 3
    assert torch.equal(model.frozen, before["frozen"])


def test_adamw_needs_no_private_parts_of_torch() -> None:
    code = (
        "import sys, torch\n"
        "sys.modules['torch.optim._muon'] = None\n"
        "from omnihuman_train.config import OptimizerConfig\n"
        "from omnihuman_train.optim import OptimizerGroup\n"
        "OptimizerGroup(torch.nn.Linear(2, 2), OptimizerConfig())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_factor_scales_the_step_and_gradients_are_cleared() -> None:
    whole, half = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    half.load_state_dict(whole.state_dict())
    start = whole.weight.detach().clone()
    for model, factor in ((whole, 1.0), (half, 0.5)):
        optimizer = OptimizerGroup(model, OptimizerConfig(lr=0.1, weight_decay=0.0))
        model.weight.grad = torch.ones(2, 2)
        optimizer.step(factor)
        assert model.weight.grad is None
    torch.testing.assert_close(2 * (half.weight - start), whole.weight - start)


def test_average_is_the_closed_form() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema = Ema(model, decay=0.9)
    expected = 3.0
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-5)
    # Far from the start an average that follows a ramp lags decay / (1 - decay) steps behind it.
    assert expected == pytest.approx(199 - 0.9 / 0.1, rel=1e-5)


def test_average_is_kept_in_fp32_and_copied_back() -> None:
    model = nn.Linear(3, 3).bfloat16()
    ema = Ema(model, decay=0.5)
    assert {value.dtype for value in ema.shadow.values()} == {torch.float32}
    other = Ema(nn.Linear(3, 3), decay=0.5)
    ema.load(other.shadow)
    target = nn.Linear(3, 3)
    ema.copy_to(target)
    torch.testing.assert_close(dict(target.named_parameters()), other.shadow)
    assert all(p.requires_grad for p in target.parameters())


def test_frozen_weights_have_no_average() -> None:
    model, other = Blocks(), Blocks()
    ema = Ema(model, decay=0.5)
    assert ema.shadow.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        model.frozen.fill_(2.0)
        model.embed.weight.fill_(1.0)
    ema.update(model, 0)
    state = ema.whole_state(model)
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(state["frozen"], model.frozen)
    assert torch.equal(state["embed.weight"], ema.shadow["embed.weight"])
    assert not torch.equal(state["embed.weight"], model.embed.weight)
    ema.copy_to(other)
    assert torch.equal(other.embed.weight, ema.shadow["embed.weight"])
    assert not other.frozen.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "optimizer.lr must be positive"),
        ({"grad_clip": -1.0}, "optimizer.grad_clip"),
        ({"decay_fraction": 1.5}, "optimizer.decay_fraction"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps"),
        ({"betas": (0.9, 1.0)}, "optimizer.betas"),
    ],
)
def test_bad_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**change)  # type: ignore[arg-type]
