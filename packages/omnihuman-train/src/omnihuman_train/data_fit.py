"""Whether a data set fits the model and the run that train on it: known from sizes alone, before weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable

from omnihuman_core.contracts import LatentSpec
from omnihuman_train.data.manifest import MANIFEST, Bucket, SampleRecord
from omnihuman_train.stage_config import StageConfig


def check_frame_rate(config: StageConfig, records: Iterable[SampleRecord]) -> None:
    """Check that all samples have the frame rate that the model will generate at.

    Raises:
        ValueError: one has another; motion and lips would run at the wrong speed.
    """
    wanted = config.generation.fps
    others = [record for record in records if record.fps != wanted]
    if others:
        raise ValueError(
            f"data: {len(others)} samples of {config.data} have another frame rate than generation.fps, {wanted:g}; "
            f"the first is {others[0].key} ({others[0].source}) with {others[0].fps:g}: pack the clips with "
            f"`omnihuman-train data pack --fps {wanted:g}` and encode them anew, or set generation.fps to that of the "
            f"data"
        )


def check_latents(config: StageConfig, spec: LatentSpec) -> None:
    """Check that the backbone takes the channels of the latents, and the pose guider their strides.

    Raises:
        ValueError: one does not; names the field.
    """
    checked = {
        "backbone": {"latent_channels": spec.channels},
        "pose_encoder": {"temporal_stride": spec.temporal_stride, "spatial_stride": spec.spatial_stride},
    }
    for name, wanted in checked.items():
        kind, chosen = config.model.component(name)
        resolved = chosen.resolve(kind)
        for field, value in wanted.items():
            # A component of another kind may not name it; what it takes is then its own affair.
            found = getattr(resolved, field, value)
            if found != value:
                raise ValueError(
                    f"data: the latents of {config.data} have {field} {value}, but model.{name} ({chosen.plugin}:"
                    f"{chosen.preset}) has {found}; set {field} in model.{name}.changes, or encode the clips with "
                    f"another --vae (`omnihuman-train data cache`)"
                )


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
