"""Values are validated strictly; errors name the field in one sentence."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Len
from pydantic import Field

from primaps.utils.errors import InputError
from primaps.utils.inputs import parse_json
from primaps.utils.validation import validate

Views = Annotated[int, Interval(ge=0, le=1000)] | Literal["fresh"]


@dataclass(frozen=True)
class Inner:
    scale: Annotated[float, Gt(0)]
    size: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: Annotated[list[Annotated[str, Len(1, 3)]], Len(1, 4)]

    def __post_init__(self) -> None:
        if len({*self.names}) < len(self.names):
            raise InputError("names must be distinct")


@dataclass(frozen=True)
class Renamed:
    name: Annotated[str, Field(alias="class")]


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "x is True; it must be an integer"),
        (np.True_, float, "it must be a number"),
        (1, bool, "x is 1; it must be true or false"),
        ("3", int, "x is '3'; it must be an integer"),
        (1.0, int, "x is 1.0; it must be an integer"),
        (float("nan"), float, "x is nan; it must be a finite number"),
        (float("inf"), Annotated[float, Gt(0)], "x is inf; it must be a finite number"),
        (np.float32("nan"), float, "it must be a finite number"),
        (0, Annotated[float, Gt(0)], "x is 0; it must be above 0"),
        (-3, Views, "x is -3; it must be at least 0 or 'fresh'"),
        ("stale", Views, "x is 'stale'; it must be an integer or 'fresh'"),
        ((3, 0), list[Annotated[int, Ge(1)]], "x[1] is 0; it must be at least 1"),
        ([1.0, float("nan")], tuple[float, float], "x[1] is nan; it must be a finite number"),
        ((1, 2, 3), tuple[float, float], "x has the length 3; it must be at most 2"),
    ],
)
def test_invalid_values_are_refused(value, kind, message):
    with pytest.raises(InputError) as error:
        validate(value, kind, "x")
    assert message in str(error.value)


def test_numpy_scalars_and_sequences_are_converted():
    for value, kind, expected in (
        (np.int64(3), int, 3),
        (np.float32(0.5), float, 0.5),
        (np.True_, bool, True),
        ((4, np.int64(3)), list[int], [4, 3]),
        ([0, 3000], tuple[float, float], (0.0, 3000.0)),
        (np.uint8(2), Views, 2),
    ):
        found = validate(value, kind, "x")
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"inner": {"scale": 0}, "names": ["a"]}', '"inner.scale" is 0; it must be above 0'),
        ('{"inner": {"scale": 1, "size": [1]}, "names": ["a"]}', '"inner.size[1]" is missing'),
        ('{"inner": {"scale": 1, "more": 1}, "names": ["a"]}', '"inner.more" is unknown'),
        ('{"inner": {"scale": 1}, "a\\nb": 1, "names": ["a"]}', "field \"'a\\nb'\" is unknown"),
        ('{"inner": {"scale": 1}}', '"names" is missing'),
        ('{"inner": {"scale": 1}, "names": []}', '"names" has the length 0; it must be at least 1'),
        ('{"inner": {"scale": 1}, "names": ["abcd"]}', '"names[0]" has the length 4'),
        ('{"inner": {"scale": 1}, "names": ["a", "a"]}', "a.json: names must be distinct"),
        ('{"inner": {"scale": 1' + "0" * 400 + '}, "names": ["a"]}', "number"),
        ("[]", "the content is []; it must be an object"),
    ],
)
def test_json_errors_name_the_field(text, message):
    with pytest.raises(InputError) as error:
        parse_json(text, Outer, "a.json")
    assert message in str(error.value)
    assert str(error.value).startswith("a.json: ")


def test_true_is_not_the_literal_1():
    for value in (True, 3, "1"):
        with pytest.raises(InputError, match="format is .*; it must be"):
            validate(value, Literal[1], "format")
        with pytest.raises(InputError, match='"format" is .*; it must be'):
            parse_json(json.dumps({"format": value}), dict[str, Literal[1]], "a.json")
    assert parse_json('{"format": 1}', dict[str, Literal[1]], "a.json") == {"format": 1}


def test_an_object_in_place_of_a_value_is_named():
    with pytest.raises(
        InputError, match=r'field "\[0\].a" is {}; it must be a string or an integer'
    ):
        parse_json('[{"a": {}}]', list[dict[str, str | int]], "a.json")


def test_a_field_may_have_another_name_in_json():
    found = parse_json('{"class": "sky"}', Renamed, "a.json")
    assert found.name == "sky"
    with pytest.raises(InputError, match='"name" is unknown'):
        parse_json('{"name": "sky"}', Renamed, "a.json")


def test_many_wrong_or_unknown_keys_give_one_error():
    """pydantic collects an error for each of them."""
    many = dict.fromkeys(map(str, range(20_000)), 0)
    with pytest.raises(InputError, match='field "0" is unknown'):
        parse_json(json.dumps(many), Outer, "a.json")
    with pytest.raises(InputError, match=r'"\[0\]" has 20,000 keys; it must be at most 10,000'):
        parse_json(json.dumps([many]), list[dict[str, str]], "a.json")
    assert parse_json(json.dumps(many), dict[str, Any], "a.json") == many


def test_json_becomes_nested_dataclasses():
    found = parse_json('{"inner": {"scale": 1, "size": [3, 4]}, "names": ["a"]}', Outer, "a.json")
    assert found == Outer(Inner(1.0, (3, 4)), ["a"])
