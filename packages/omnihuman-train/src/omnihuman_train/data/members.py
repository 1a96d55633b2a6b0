"""What the members of a data set's samples hold: their tensors, and the layout that the samples of a bucket share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from omnihuman_core.contracts import NUM_KEYPOINTS, LatentSpec
from omnihuman_train.data.manifest import Bucket
from omnihuman_train.data.rows import Layout
from omnihuman_train.data.shard_set import ShardSet
from omnihuman_train.data.shards import BrokenSampleError

TEXT = "text.safetensors"
MEMBERS = ("latents.safetensors", "audio.safetensors", "pose.safetensors", TEXT)


def load_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """Tensors of a safetensors member.

    Raises:
        BrokenSampleError: it is none.
    """
    try:
        return load(data)
    except SafetensorError as error:
        raise BrokenSampleError(f"{name}: damaged ({error})") from error


class Layouts:
    """Layouts of the members of an encoded data set, each read once.

    Args:
        data: The data set.
        buckets: Numbers of the samples of each bucket, by shard.
    """

    def __init__(self, data: ShardSet, buckets: Mapping[Bucket, Iterable[Iterable[int]]]) -> None:
        self._data, self._buckets = data, buckets
        self.spec = LatentSpec(**data.index.recipe["latent_spec"])
        self._text_length = int(data.index.recipe["text_length"])
        self._shared: dict[tuple[Bucket, str], Layout] = {}
        self._sizes: dict[int, Layout] = {}

    def of_bucket(self, bucket: Bucket, member: str) -> Layout:
        """Layout that the samples of a bucket share, read off the first one that is whole."""
        if (bucket, member) not in self._shared:
            for sample in self._buckets[bucket]:
                for number in sample:
                    name = f"{self._data.records[number].key}.{member}"
                    try:
                        layout = Layout.parse(self._data.read(number, member), name)
                    except BrokenSampleError:
                        continue
                    if self._fits(layout, bucket, member):
                        self._shared[bucket, member] = layout
                        return layout
            raise ValueError(f"{self._data.folder}: no sample of the bucket {bucket} has a readable {member}")
        return self._shared[bucket, member]

    def of_texts(self, one: Layout) -> Layout:
        """Layout of a text of the length that the extractor gives: that of a row."""
        places = [
            place if place.name == "pooled" else replace(place, shape=(self._text_length, *place.shape[1:]))
            for place in one.places
        ]
        return Layout(header=b"", places=tuple(places))

    def of_size(self, sample: int, member: str) -> Layout:
        """Layout of a member whose length differs from sample to sample; equal sizes are equal layouts."""
        span = self._data.members(sample).get(member)
        size = span.size if span else 0
        if size not in self._sizes:
            self._sizes[size] = Layout.parse(
                self._data.read(sample, member), f"{self._data.records[sample].key}.{member}"
            )
        return self._sizes[size]

    def _fits(self, layout: Layout, bucket: Bucket, member: str) -> bool:
        """Whether a member holds what it should, in the shapes that the manifest says."""
        frames, positions = bucket.frames, self.spec.latent_shape(*bucket)[1:]
        shapes = {place.name: place.shape for place in layout.places}
        wanted: dict[str, tuple[int, ...]] = {
            "latents.safetensors": {
                "latents": (self.spec.channels, *positions),
                "reference": (self.spec.channels, 1, *positions[1:]),
                "mouth_region": positions,
                "hand_region": positions,
            },
            # Layers and width are the extractor's.
            "audio.safetensors": {"states": (frames, *shapes.get("states", ())[1:])},
            "pose.safetensors": {"keypoints": (frames, NUM_KEYPOINTS, 3), "mouth_open": (frames,)},
            TEXT: {
                name: shapes.get(name, ())
                for name in ("values", "mask", "pooled")
                if name in shapes or name != "pooled"
            },
        }[member]
        return shapes == wanted


def check_text(layout: Layout, whole: Layout, key: str) -> None:
    """Check that a text fits into the row of its batch.

    Raises:
        BrokenSampleError: it is longer than the extractor's texts, or of another kind.
    """
    for name, shape in whole.shapes.items():
        found = layout.shapes.get(name)
        same = (
            found == shape
            if name == "pooled"
            else found is not None and found[1:] == shape[1:] and found[0] <= shape[0]
        )
        if not same:
            raise BrokenSampleError(f"{key}.{TEXT}: {name} is {found}, the texts of the set are {shape}")
    if len({layout.shapes["values"][0], layout.shapes["mask"][0]}) != 1 or layout.dtypes != whole.dtypes:
        raise BrokenSampleError(f"{key}.{TEXT}: values and mask do not belong together")
