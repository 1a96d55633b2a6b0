"""Everything of a packed clip that does not change while the backbone trains, computed once: latents, sound, text.

Members of an encoded sample, all of them in every sample:

* ``latents.safetensors``: ``latents`` (C, t, h, w) and ``reference`` (C, 1, h, w) bf16, ``mouth_region`` and
  ``hand_region`` (t, h, w) bool;
* ``audio.safetensors``: ``states`` (T, layers, D) float16, at the centre of each frame;
* ``text.safetensors``: ``values``, ``mask`` and ``pooled`` where the extractor gives one, without trailing padding;
* ``pose.safetensors``: ``keypoints`` (T, 133, 3) float16, ``mouth_open`` (T,), zeros where unknown;
* ``json``: the notes of the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omnihuman_train.data.build import BuildReport, build
from omnihuman_train.data.encoder import EncodeConfig, StateMaker
from omnihuman_train.data.shards import STATES


def encode_states(
    clips: Path,
    out: Path,
    config: EncodeConfig,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 1,
    progress: Callable[[int], None],
    total: Callable[[int], None],
) -> BuildReport:
    """Encode a packed data set; see :func:`omnihuman_train.data.build.build`.

    Args:
        clips: The packed data set.
        out: Folder of the encoded one.
        config: What to encode with.
        rank: Number of this process among those that share the work.
        world: How many there are.
        workers: Processes to start here.
        progress: Called with the number of samples that became available.
        total: Called with the number of samples in all.

    Raises:
        ValueError: components do not load or do not fit the clips, or as ``build``.
    """
    if clips.resolve() == out.resolve():
        raise ValueError(f"--out {out}: is the folder of the clips; choose another one")
    opener = StateMaker(source=clips, config=config)
    encoder = opener()
    data = encoder.clips
    for bucket in sorted({record.bucket for record in data.records}):
        try:
            encoder.latent_spec.latent_shape(*bucket)
        except ValueError as error:
            raise ValueError(f"{clips}: the VAE takes no clips of {bucket} ({error}); pack other sizes") from error
    shards: dict[int, list[str]] = {}
    for record, shard in zip(data.records, data.shard_of, strict=True):
        shards.setdefault(shard, []).append(record.key)
    total(len(data))
    return build(
        out,
        kind=STATES,
        recipe=encoder.recipe(),
        jobs=[shards[number] for number in sorted(shards)],
        open_maker=(lambda: encoder) if workers == 1 else opener,
        rank=rank,
        world=world,
        workers=workers,
        progress=progress,
    )
