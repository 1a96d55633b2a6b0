"""Strict configuration files and overrides."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnihuman_core.config import MAX_TOML_BYTES, from_table, load_function, override, read_toml, to_toml


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    name: str = "adam"


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    text: str
    flag: bool
    kind: Literal["a", "b"]
    patch: tuple[int, int, int]
    widths: tuple[float, ...]
    inner: Inner
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    limit: int | None = None
    ema: float | None = 0.99
    required_optional: str | None


def make(**changes: Any) -> Outer:
    values: dict[str, Any] = {
        "steps": 3,
        "text": "x",
        "flag": True,
        "kind": "a",
        "patch": (1, 2, 2),
        "widths": (0.5,),
        "inner": Inner(rate=1e-4),
        "required_optional": None,
    }
    return Outer(**(values | changes))


def round_trip(config: Outer) -> Outer:
    return from_table(Outer, tomllib.loads(to_toml(config)))


inners = st.builds(Inner, rate=st.floats(allow_nan=False), name=st.text())


@settings(max_examples=40)
@given(
    config=st.builds(
        Outer,
        steps=st.integers(-(2**63), 2**63 - 1),
        text=st.text(),
        flag=st.booleans(),
        kind=st.sampled_from(["a", "b"]),
        patch=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
        widths=st.lists(st.floats(allow_nan=False)).map(tuple),
        inner=inners,
        many=st.lists(inners, max_size=2).map(tuple),
        by_name=st.dictionaries(st.text(), inners, max_size=2),
        limit=st.none() | st.integers(0, 9),
        ema=st.none() | st.floats(0, 1),
        required_optional=st.none() | st.text(min_size=5),
    )
)
def test_what_is_written_is_read_back(config):
    """The reader is Python's own tomllib; control characters, quotes, infinities and None included."""
    assert round_trip(config) == config


def test_nan_is_written():
    assert math.isnan(round_trip(make(inner=Inner(rate=math.nan))).inner.rate)


def test_integers_are_taken_for_floats():
    config = from_table(Inner, {"rate": 1})
    assert config.rate == 1.0
    assert type(config.rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stps": 3}, "Outer: unknown key 'stps'; known keys are by_name, ema"),
        ({"inner": {"rate": 0.1, "beta": 1}}, "inner: unknown key 'beta'; known keys are name, rate"),
        ({"inner": {}}, r"inner: missing key 'rate' \(float\)"),
        ({"steps": True}, "steps: must be int, got True"),
        ({"steps": 1.0}, "steps: must be int, got 1.0"),
        ({"flag": 1}, "flag: must be bool, got 1"),
        ({"text": 3}, "text: must be str, got 3"),
        ({"kind": "c"}, "kind: must be one of 'a', 'b', got 'c'"),
        ({"patch": [1, 2]}, "patch: must have 3 entries, got 2"),
        ({"patch": [1, 2, "x"]}, r"patch\[2\]: must be int, got 'x'"),
        ({"patch": 3}, r"patch: must be tuple\[int, int, int\], written as \[a, b\], got 3"),
        ({"widths": [1, None]}, r"widths\[1\]: must be float"),
        ({"inner": 3}, "inner: must be Inner, got 3"),
        ({"many": [{"rate": 1}, {}]}, r"many\[1\]: missing key 'rate'"),
        ({"by_name": {"x": {}}}, "by_name.x: missing key 'rate'"),
        ({"ema": "high"}, "ema: must be float, got 'high'"),
    ],
)
def test_mistakes_are_named_by_their_path(change, message):
    table = tomllib.loads(to_toml(make())) | change
    with pytest.raises(ValueError, match=f"^{message}"):
        from_table(Outer, table)


def test_missing_key_is_named():
    table = tomllib.loads(to_toml(make()))
    del table["steps"]
    with pytest.raises(ValueError, match=r"^Outer: missing key 'steps' \(int\)$"):
        from_table(Outer, table)


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("steps=7", "steps", 7),
        ("steps = 7", "steps", 7),
        ("inner.rate=1", "inner.rate", 1.0),
        ("inner.rate=3e-5", "inner.rate", 3e-5),
        ("inner.name=sgd", "inner.name", "sgd"),
        ('inner.name="s = g"', "inner.name", "s = g"),
        ("inner.name=2024", "inner.name", "2024"),
        ("flag=false", "flag", False),
        ("kind=b", "kind", "b"),
        ("patch=[2, 2, 2]", "patch", (2, 2, 2)),
        ("limit=4", "limit", 4),
        ("ema=none", "ema", None),
        ("text=a=b", "text", "a=b"),
    ],
)
def test_override(assignment, path, value):
    config = override(make(), [assignment])
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)
    assert override(config, []) == config


def test_later_overrides_win():
    assert override(make(), ["steps=1", "steps=2"]).steps == 2


@dataclass(frozen=True, kw_only=True)
class Pair:
    low: int = 1
    high: int = 2

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError("low must be below high")


@dataclass(frozen=True, kw_only=True)
class Holder:
    pair: Pair = Pair()
    maybe: Pair | None = None
    given: Inner | None = None


@pytest.mark.parametrize("assignments", [["pair.low=5", "pair.high=6"], ["pair.high=0", "pair.low=-1"]])
def test_fields_that_must_agree_are_changed_together(assignments):
    values = dict(assignment.removeprefix("pair.").split("=") for assignment in assignments)
    assert override(Holder(), assignments).pair == Pair(**{name: int(value) for name, value in values.items()})
    with pytest.raises(ValueError, match="low must be below high"):
        override(Holder(), ["pair.low=5"])


def test_a_part_that_is_not_set_begins_with_its_defaults():
    assert override(Holder(), ["maybe.high=7"]).maybe == Pair(low=1, high=7)
    assert override(Holder(), ["maybe.high=7", "maybe={low=0}"]).maybe == Pair(low=0, high=2)
    assert override(Holder(), ["maybe={low=0}", "maybe.high=7"]).maybe == Pair(low=0, high=7)
    with pytest.raises(ValueError, match=r"--set given.name: 'given' is not set; set all of it, as given={rate=...}"):
        override(Holder(), ["given.name=sgd"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "--set 'steps': write it as field.subfield=value"),
        ("=3", "--set '=3': write it"),
        ("stps=3", "--set stps: unknown field 'stps'; known fields are steps, text"),
        ("inner.beta=3", "--set inner.beta: unknown field 'beta'; known fields are rate, name"),
        ("steps.x=3", "--set steps.x: 'steps' has no fields"),
        ("steps=many", "steps: must be int, got 'many'"),
        ("inner.rate=fast", "inner.rate: must be float, got 'fast'"),
        ("steps=none", "steps: must be int, got 'none'"),
    ],
)
def test_bad_overrides(assignment, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        override(make(), [assignment])


def test_read_toml(tmp_path):
    good = tmp_path / "good.toml"
    good.write_text(to_toml(make()), encoding="utf-8")
    assert from_table(Outer, read_toml(good)) == make()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\x00\xff\xfe", "not UTF-8"),
        (b"steps = ", "not a TOML file"),
        (b"#" * (MAX_TOML_BYTES + 1), "larger than"),
    ],
)
def test_read_toml_faults(tmp_path, content, message):
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_toml(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_unwritable_values_are_named():
    @dataclass(frozen=True)
    class Odd:
        value: Any

    with pytest.raises(ValueError, match="value: a set cannot be written"):
        to_toml(Odd({1}))


def test_load_function():
    assert load_function("math:sqrt") is math.sqrt


@pytest.mark.parametrize("reference", ["math", "math:", ":sqrt", "math:pi", "math:nothing", "no_such_module_here:f"])
def test_load_function_faults(reference):
    with pytest.raises(ValueError, match=reference.split(":")[0] or "write it as"):
        load_function(reference)
