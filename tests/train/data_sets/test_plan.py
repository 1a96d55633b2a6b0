"""The plan of batches: every property of it, over data sets that hypothesis makes up."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnihuman_train.data.manifest import Bucket
from omnihuman_train.data.plan import BatchConfig, BatchPlan, hashes, noise_seeds, ordering

BUCKETS = st.sampled_from([Bucket(f, h, w) for f in (5, 9) for h in (8, 16) for w in (8, 24)])
DATA = st.dictionaries(BUCKETS, st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=5)


def tokens(bucket: Bucket) -> int:
    return bucket.frames * bucket.height * bucket.width // 64


def plan_of(counts: dict[Bucket, list[int]], config: BatchConfig, seed: int = 0) -> BatchPlan:
    number, shards = 0, {}
    for bucket, sizes in counts.items():
        shards[bucket] = []
        for size in sizes:
            shards[bucket].append(list(range(number, number + size)))
            number += size
    return BatchPlan(shards, tokens, config, seed)


def samples(plan: BatchPlan, step: int) -> list[int]:
    batch = plan.batch(step)
    return [plan.sample(batch.bucket, int(position)) for position in batch.positions]


def test_hashes_are_those_of_splitmix64() -> None:
    # First outputs of the published generator with the seeds 0 and 1.
    assert hashes(np.array([0, 1], dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1]


@given(DATA, st.integers(27, 600), st.integers(1, 4), st.integers(0, 2**63))
@settings(max_examples=60)
def test_batches_fill_the_budget_with_one_bucket_and_no_padding(
    counts: dict[Bucket, list[int]], budget: int, multiple: int, seed: int
) -> None:
    config = BatchConfig(token_budget=budget, multiple=multiple)
    need = max(multiple * tokens(bucket) for bucket in counts)
    if budget < need:
        with pytest.raises(ValueError, match="token_budget is"):
            plan_of(counts, config, seed)
        return
    plan = plan_of(counts, config, seed)
    total = set(range(sum(map(sum, counts.values()))))
    for step in range(30):
        batch = plan.batch(step)
        size = len(batch.positions)
        used = size * tokens(batch.bucket)
        # All of the budget is used but for what another whole multiple of samples would go beyond.
        assert used <= budget < used + multiple * tokens(batch.bucket)
        assert size % multiple == 0
        # Rows have one shape: no position of the batch is padding.
        assert {plan.sample(batch.bucket, int(p)) for p in batch.positions} <= total
        assert np.array_equal(batch.positions, np.arange(batch.positions[0], batch.positions[0] + size))


@given(DATA, st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=40)
def test_every_sample_is_seen_equally_often(counts: dict[Bucket, list[int]], size: int, seed: int) -> None:
    plan = plan_of(counts, BatchConfig(batch_size=size), seed)
    epochs, step, seen = 4, 0, Counter[int]()
    while plan.epoch(step) < epochs:
        seen.update(samples(plan, step))
        step += 1
    number = 0
    for bucket in counts:
        for _ in range(sum(counts[bucket])):
            # A batch that is not full at the end of an epoch belongs to the next one.
            assert epochs - -(-size // sum(counts[bucket])) <= seen[number] <= epochs
            number += 1
    assert sum(seen.values()) == step * size


@given(DATA, st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=30)
def test_the_batches_of_a_bucket_follow_each_other_and_steps_do_not_matter(
    counts: dict[Bucket, list[int]], size: int, seed: int
) -> None:
    plan, other = (plan_of(counts, BatchConfig(batch_size=size), seed) for _ in range(2))
    following = dict.fromkeys(counts, 0)
    forward = [samples(plan, step) for step in range(40)]
    for step in range(40):
        batch = plan.batch(step)
        assert batch.positions[0] == following[batch.bucket]
        following[batch.bucket] += size
    assert [samples(other, step) for step in reversed(range(40))] == forward[::-1]
    far = 10**9
    assert samples(plan, far) == samples(other, far)


def test_seeds_and_epochs_give_other_orders() -> None:
    counts = {Bucket(5, 8, 8): [20, 20]}
    orders = [
        tuple(samples(plan_of(counts, BatchConfig(batch_size=40), seed), step)) for seed in (0, 1) for step in (0, 1)
    ]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(40)) for order in orders)


@pytest.mark.parametrize("window", [1, 2])
def test_reads_stay_within_a_window_of_shards(window: int) -> None:
    plan = plan_of({Bucket(5, 8, 8): [10] * 8}, BatchConfig(batch_size=10 * window, window=window))
    for step in range(3 * 8 // window):
        assert len({number // 10 for number in samples(plan, step)}) == window


def test_orders_are_even() -> None:
    # 4,000 orders of five: each element is at each place 800 times, within four standard deviations.
    places = np.zeros((5, 5))
    for seed in range(4000):
        places[np.arange(5), ordering(5, seed)] += 1
    assert np.abs(places - 800).max() < 4 * (4000 * 0.2 * 0.8) ** 0.5


def test_the_next_of_a_broken_sample_stays_in_its_pass() -> None:
    bucket = Bucket(5, 8, 8)
    plan = plan_of({bucket: [3, 2]}, BatchConfig(batch_size=2))
    place, seen = 7, []
    for _ in range(5):
        seen.append(place)
        place = plan.following(bucket, place)
    assert place == 7
    assert sorted(seen) == [5, 6, 7, 8, 9]


def test_noise_seeds_differ_by_seed_step_and_row_and_are_those_of_the_row() -> None:
    rows = np.arange(64)
    seeds = np.stack([noise_seeds(seed, step, rows) for seed in range(3) for step in range(20)])
    assert len(np.unique(seeds)) == seeds.size
    assert seeds.min() >= 0
    assert np.array_equal(noise_seeds(1, 5, rows[10:20]), noise_seeds(1, 5, rows)[10:20])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_budget": 9, "batch_size": 9}, "are both set; give one of them"),
        ({"batch_size": 0}, "stream.batch.batch_size must be at least 1, got 0"),
        ({"token_budget": 9, "window": 0}, "stream.batch.window must be at least 1"),
        ({"batch_size": 6, "multiple": 4}, "batch of 6 samples is no multiple of stream.batch.multiple, 4"),
    ],
)
def test_sizes_that_cannot_be_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchConfig(**values)
    with pytest.raises(ValueError, match="batches have no size; set stream.batch.token_budget or"):
        plan_of({Bucket(5, 8, 8): [2]}, BatchConfig())
