"""What autocast on CUDA does to the inputs of kernels, imitated: it computes norms in float32."""

import torch
from torch.nn import functional as F

from omnihuman_core.ops.norm import rms_norm


def test_norms_keep_the_dtype_that_kernels_expect(monkeypatch):
    """k of the audio layer is normed in torch; q and v come in 16 bits from a projection."""
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, weight, eps: torch.rms_norm(x.float(), shape, None, eps))
    k = torch.empty(1, 2, 3, 4, 16, dtype=torch.bfloat16, device="meta")
    assert rms_norm(k, torch.empty(16, device="meta"), eps=1e-6).dtype == k.dtype
