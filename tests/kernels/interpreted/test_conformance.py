"""The kit that every ops bundle must pass, at the precisions that the interpreter computes as a GPU would."""

import pytest
import torch

from omnihuman_core.testing.ops import OpsConformance
from omnihuman_kernels.register import triton_ops


class TestTritonOps(OpsConformance):
    dtypes = (torch.float32, torch.float16)

    @pytest.fixture
    def ops(self):
        return triton_ops()
