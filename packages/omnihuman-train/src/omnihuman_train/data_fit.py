"""Whether a data set fits the model and the run that train on it: known from sizes alone, before weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable

from omnihuman_core.contracts import LatentSpec
from omnihuman_train.data.manifest import MANIFEST, Bucket
from omnihuman_train.stage_config import StageConfig


def check_sizes(config: StageConfig, spec: LatentSpec, buckets: Iterable[Bucket]) -> None:
    """Check that the pictures of every bucket can be cut into patches, and their tokens shared by processes.

    Args:
        config: The stage.
        spec: Sizes of the latents.
        buckets: Shapes of the samples.

    Raises:
        ValueError: a bucket is of another size; names it and the ``--multiple`` to pack with.
    """
    # A backbone of another kind may know no patches; it then says what it takes when it runs.
    patch = getattr(config.model.backbone.resolve("backbone"), "patch_size", None)
    if patch is None:
        return
    _, rows, columns = patch
    sequence = config.run.parallel.sequence
    # Sides of so many patches have a multiple of ``sequence`` tokens.
    patches = next(count for count in range(1, sequence + 1) if count * count % sequence == 0)
    multiple = spec.spatial_stride * math.lcm(rows, columns, 2) * patches
    fix = (
        f"cut the clips to sides that fit with `omnihuman-train data pack --multiple {multiple}` and encode them anew, "
        f"or take its samples out of {MANIFEST}"
    )
    for bucket in buckets:
        height, width = spec.latent_size(bucket.height, bucket.width)
        if height % rows or width % columns:
            raise ValueError(
                f"data: {config.data} has a bucket {bucket} with latents of {height}x{width}, which patches of "
                f"{rows}x{columns} do not divide; {fix}"
            )
        # Of a latent frame, and of the reference: what the processes of a sample share.
        tokens = (height // rows) * (width // columns)
        if tokens % sequence:
            raise ValueError(
                f"data: {config.data} has a bucket {bucket} with {tokens} tokens a latent frame, which "
                f"run.parallel.sequence = {sequence} processes cannot share; {fix}"
            )
