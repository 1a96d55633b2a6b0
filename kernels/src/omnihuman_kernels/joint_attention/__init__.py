r"""Non-causal flash attention over a packed sequence: dense, with a key mask, or several documents side by side.

.. math::
    o_i = \sum_j \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt K}\right) v_j

Forward keeps the logarithm (base 2) of each row's sum; backward computes the weights again from it. Two passes, one for
dq and one for dk and dv, form the weights twice, with seven products, and give the same bits on every run. Where the
tables have a tile for it (Hopper, head dim up to 64) and torch is not asked for deterministic algorithms, one pass over
the keys makes all gradients with five products; it adds to dq in memory, in float32 and in no fixed order.

``4 N L M K`` flops forward, ``10 N L M K`` backward in one pass, ``14 N L M K`` in two: bound by the matrix units from
a few hundred tokens. A query of width ``h`` moves ``8 h`` bytes forward in 2-byte numbers. The pass over the keys adds
``4 L M N K / 128`` bytes to dq, in the second-level cache.

On Hopper loads go through tensor-memory descriptors built on the device, and a producer group of warps runs ahead of
the consumers; a document's end is the descriptor's end, so tails read zeros. A peeled tail tile would silently switch
the producer off, so every tile is masked inside the loop. Eager reference: ``omnihuman_core.ops``.
"""

from omnihuman_kernels.joint_attention.op import DTYPES, HEAD_DIMS, joint_attention, joint_attention_varlen

__all__ = ["DTYPES", "HEAD_DIMS", "joint_attention", "joint_attention_varlen"]
