"""Compiles for GPUs that are not here: records the launches of an op at real sizes, then runs compiler and ptxas.

The arguments are specialised as at run time (divisibility by 16, ones), so what is checked is what a user's GPU would
run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from omnihuman_kernels import _launch

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
ARCHITECTURES = {80: "plain", 86: "plain", 90: "hopper", 100: "blackwell", 120: "plain"}

# Most shared memory one program may ask for: A100, RTX 30 and 40, H100, B200, RTX 50.
SHARED_LIMIT = {80: 166_912, 86: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.bool: "u1"}


@dataclass(frozen=True, kw_only=True)
class Launched:
    """One recorded launch."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What ptxas made of a kernel."""

    registers: int
    spilled: int
    shared: int
    warps: int
    ttir: str
    ptx: str
    sass: str

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.sass))


def warnings_of(kernel: Compiled) -> list[str]:
    """What ptxas says about the matrix products of a kernel; a kernel from Triton's cache has not met it here."""
    (target,) = re.findall(r"^\.target (sm_(\d+)\w*)", kernel.ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(kernel.ptx)
        tool = get_ptxas(int(target[1])).path
        done = subprocess.run(
            [tool, "-v", f"--gpu-name={target[0]}", ptx, "-o", ptx.with_suffix(".cubin")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return re.findall(r".*\bC75\d\d\b.*", done.stdout + done.stderr)


def record(monkeypatch: Any, modules: list[ModuleType], arch: int, call: Callable[[], object]) -> list[Launched]:
    """Run ``call`` on meta tensors as if on a GPU of ``arch`` and note the launches."""
    seen: list[Launched] = []

    def note(
        kernel: Any, grid: tuple[int, ...], tensor: Any, *args: Any, descriptors: bool = False, **options: Any
    ) -> None:
        seen.append(Launched(kernel=kernel, grid=grid, args=args, options=options))

    monkeypatch.setattr(_launch, "architecture", lambda x: ARCHITECTURES[arch])
    for module in modules:
        monkeypatch.setattr(module, "launch", note)
        monkeypatch.setattr(module, "require_device", lambda x: None, raising=False)
    call()
    return seen


def _specialise(value: Any, path: tuple[int, ...], constants: dict, attributes: dict) -> Any:
    """Type of one argument, as the launcher would see it; notes constants and divisibility by its path."""
    if isinstance(value, tuple):
        return tuple(_specialise(v, (*path, i), constants, attributes) for i, v in enumerate(value))
    if value is None or value is True or value is False or (isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return _width(value)


def _width(value: int) -> str:
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def source_of(launched: Launched) -> ASTSource:
    """What the launcher would hand to the compiler: a kernel, the types of its arguments and what is known of them."""
    fn = launched.kernel
    names = fn.arg_names
    keywords = {k: v for k, v in launched.options.items() if k in names}
    values = dict(zip(names, launched.args, strict=False)) | keywords
    assert set(values) == set(names), set(names) ^ set(values)
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    signature = {}
    for index, name in enumerate(names):
        if fn.params[index].is_constexpr:
            constants[(index,)] = values[name]
            signature[name] = "constexpr"
        elif fn.params[index].do_not_specialize and isinstance(values[name], int):
            signature[name] = _width(values[name])
        else:
            signature[name] = _specialise(values[name], (index,), constants, attributes)
    return ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)


def compile_for(launched: Launched, arch: int) -> Compiled:
    """Compile a recorded launch for compute capability ``arch / 10``."""
    source = source_of(launched)
    asked = {k: v for k, v in launched.options.items() if k not in launched.kernel.arg_names}
    options = _launch.COMPILE_OPTIONS | asked
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(
        registers=numbers["REG"],
        spilled=numbers["STACK"] + numbers["LOCAL"],
        shared=built.metadata.shared,
        warps=built.metadata.num_warps,
        ttir=built.asm["ttir"],
        ptx=built.asm["ptx"],
        sass=sass,
    )


_DEFINITION = re.compile(r"^\s*(%\w+) = (tt\.\w+|arith\.\w+) ?(.*?)(?: : (.*?))?(?: loc\(.*)?$", re.MULTILINE)
_PASSED_ON = {"tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "arith.addi"}


def narrow_products(ttir: str) -> list[str]:
    """Products of two numbers known at run time alone that reach an address in 32 bits, where they may overflow."""
    defined = {name: (op, re.findall(r"%\w+", rest), kind or "") for name, op, rest, kind in _DEFINITION.findall(ttir)}

    def constant(name: str) -> bool:
        op, operands, _ = defined.get(name, ("", [], ""))
        return op == "arith.constant" or (op in _PASSED_ON and all(constant(x) for x in operands))

    def products(name: str) -> list[str]:
        op, operands, _ = defined.get(name, ("", [], ""))
        if op == "arith.muli" and not any(constant(x) for x in operands):
            return [name]
        return [found for x in operands for found in products(x)] if op in {*_PASSED_ON, "arith.muli"} else []

    addresses = [(operands[1], kind) for op, operands, kind in defined.values() if op == "tt.addptr"]
    assert addresses
    return [found for offset, kind in addresses if re.search(r"\bi32>?$|xi32>?$", kind) for found in products(offset)]


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor without storage; its base counts as aligned."""
    return torch.empty(shape, dtype=dtype, device="meta")
