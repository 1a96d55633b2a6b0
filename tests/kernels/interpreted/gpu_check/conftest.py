"""The benchmark's modules on a machine that is made up: a clock that counts nothing, kernels in the interpreter."""

import copy
import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from omnihuman_kernels import _launch
from tests.kernels.interpreted.gpu_check.builders import FOLDER, case


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's modules by name, in an interpreter that forgets them afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for path in FOLDER.glob("*.py")]
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def check(modules, monkeypatch):
    """The module of a group's process, with a clock that counts nothing, and the class of cases."""
    monkeypatch.setattr(
        modules.measure, "interleaved", lambda functions, seconds: {n: (f(), 1e-3)[1] for n, f in functions.items()}
    )
    monkeypatch.setattr(torch, "compile", lambda function: function)
    return modules.group, modules.case.Case


@pytest.fixture
def machine(modules, monkeypatch):
    """A GPU that is made up: kernels run in the interpreter, with the tiles of Hopper's table."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU 80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(_launch, "architecture", lambda x: "hopper")
    monkeypatch.setattr(_launch, "ATTENTION_TILES", copy.deepcopy(_launch.ATTENTION_TILES))
    monkeypatch.setattr(modules.measure, "copy_bandwidth", lambda: 1e12)
    for module in (modules.cases, modules.dit, modules.tiles, modules.small):
        monkeypatch.setattr(module, "noise", lambda *shape: torch.randn(shape))
    return modules


@pytest.fixture
def run_group(check, machine, monkeypatch, capsys):
    """Runs one group on the CPU as its process would, and gives the rows it prints."""
    group, kind = check

    def run(*descriptions, name="modulation", seconds=1e6):
        made = [case(kind, **description) for description in descriptions]
        monkeypatch.setitem(machine.cases.GROUPS, name, lambda: iter(made))
        assert group.run_group(name, seconds) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def whole_run(machine, monkeypatch, tmp_path):
    """Runs ``main`` with processes and a clock that are made up."""
    clock, seen = [0.0], []
    monkeypatch.setattr(machine.gpu_check.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(machine.gpu_check.signal, "signal", lambda *_: None)

    def run(process, *flags):
        def fake(command, *, seconds, log, silence):
            options = machine.gpu_check.parse(command[2:])
            seen.append(options.group)
            yield from process(options, seconds, clock)

        monkeypatch.setattr(machine.apart, "rows_of", fake)
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--results", str(tmp_path), *flags])
        status = machine.gpu_check.main()
        assert not list(tmp_path.glob("*.tmp"))
        return status, machine.report.read(tmp_path), clock[0], seen

    run.groups = machine.gpu_check.GROUPS
    return run
