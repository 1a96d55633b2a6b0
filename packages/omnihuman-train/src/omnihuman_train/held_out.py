"""The data set that a stage is validated on: encoded like the one it trains on, with no sample in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from omnihuman_train.data.encoder import VAE_DIGEST
from omnihuman_train.data.stream import FlowStream
from omnihuman_train.data_fit import check_frame_rate, check_latents, check_sizes
from omnihuman_train.extractors import check_encoders, data_recipe
from omnihuman_train.stage_config import StageConfig
from omnihuman_train.stages import Ratios

_FIELD = "watch.validation_data"


def held_out(
    config: StageConfig, open_parts: Callable[[StageConfig], Sequence[FlowStream]], trained: FlowStream
) -> Sequence[FlowStream]:
    """Batches of ``watch.validation_data``, part by part, all conditions of the stage kept; none where it is not set.

    What they hold does not depend on the run's seed.

    Args:
        config: The stage.
        open_parts: Opens the data set of a configuration.
        trained: What is trained on.

    Raises:
        ValueError: the data does not fit, a sample is trained on too, or none has what is looked at first.
    """
    folder = config.watch.validation_data
    if folder is None:
        return []
    ratios = Ratios(**{name: float(ratio > 0) for name, ratio in vars(config.stage.ratios).items()})
    stages = (*config.stages[:-1], replace(config.stage, ratios=ratios))
    other = replace(config, data=folder, stages=stages, run=replace(config.run, seed=0))
    made = data_recipe(other, _FIELD)
    try:
        if made.get(VAE_DIGEST) != data_recipe(config).get(VAE_DIGEST):
            raise ValueError(f"{folder} was encoded with another VAE than {config.data}; encode it with that one")
        parts = open_parts(other)
        first = parts[0]
        check_frame_rate(other, first.data.records)
        check_latents(other, first.spec)
        check_sizes(other, first.spec, first.plan.sizes)
        check_encoders(other, made, first.features())
    except ValueError as error:
        raise ValueError(f"{_FIELD}: {str(error).removeprefix('data: ')}") from error
    keys = {record.key for record in trained.data.records}
    if both := [record for record in first.data.records if record.key in keys]:
        raise ValueError(
            f"{_FIELD}: {len(both)} samples of {folder} are in {config.data} too, the first is "
            f"{both[0].key} ({both[0].source}); take their lines out of one manifest"
        )
    _check_measurable(config, first)
    return parts


def _check_measurable(config: StageConfig, held: FlowStream) -> None:
    """Check that a sample which the loss is measured on has the weakest condition: every set of conditions has it."""
    batches = [held.plan.batch(number) for number in range(config.watch.validation_batches)]
    measured = [
        held.data.records[held.plan.sample(batch.bucket, position)]
        for batch in batches
        for position in batch.positions.tolist()
    ]
    for weakest in config.stage.active[:1]:
        if not any(getattr(record, f"has_{weakest}") for record in measured):
            raise ValueError(
                f"{_FIELD}: none of the {len(measured)} samples of {config.watch.validation_data} that the loss is "
                f"measured on has {weakest}; give it some that do, or raise watch.validation_batches"
            )


def shared_sources(held: Sequence[FlowStream], trained: FlowStream) -> list[str]:
    """Recordings of which both sets have samples: the loss on those flatters."""
    known = {record.source for record in trained.data.records}
    return sorted({record.source for part in held[:1] for record in part.data.records} & known)
