"""Canonical JSON, which digests are made from."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.record import JSON, canonical_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(value=values)
def test_canonical_json_loses_nothing(value: JSON) -> None:
    assert json.loads(canonical_json(value)) == value


def test_canonical_json_is_spelled_in_one_way() -> None:
    assert canonical_json({"b": [1, 0.5, None, True], "a": "ü\n"}) == '{"a":"ü\\n","b":[1,0.5,null,true]}'


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), object(), {1, 2}])
def test_what_is_no_json_is_refused(value: JSON) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json({"a": value})
