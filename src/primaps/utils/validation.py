"""Validation of arguments, options and JSON against their declared types, with pydantic.

Ranges are declared by ``annotated_types``: ``Annotated[int, Interval(ge=1, le=100)]`` for a number
and ``Annotated[str, Len(1, 200)]`` for a length. pydantic is imported at the first validation,
which keeps ``primaps --help`` fast.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from threading import Lock
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from primaps.utils.errors import InputError

if TYPE_CHECKING:
    from pydantic_core import SchemaValidator

P = ParamSpec("P")
T = TypeVar("T")
EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "an object",
    "dataclass_exact_type": "an object",
    "dict_type": "an object",
    "float_type": "a number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "an integer",
    "is_instance_of": "a path",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "none_required": "null",
    "path_type": "a path",
    "string_too_long": "at most {max_length}",
    "string_too_short": "at least {min_length}",
    "string_type": "a string",
    "too_long": "at most {max_length}",
    "too_short": "at least {min_length}",
    "tuple_type": "a list",
}
"""What a value must be, by pydantic's type of the error; its context fills the braces."""
MAX_KEYS = 10_000
"""Maximum number of keys of a dictionary whose values have a type."""


def validated(function: Callable[P, T]) -> Callable[P, T]:
    """Validate the arguments of a public function, and run it with the default settings of torch.

    Arguments that are plain options (numbers, strings, paths, booleans, literals and unions of
    these) are validated by their annotations. The function validates its other arguments itself.
    Inside it, the default dtype is float32 and inference mode is off. Gradients stay as they are.

    Raises:
        InputError: an option is not of its type, or outside its range.

    Examples:
        >>> from annotated_types import Ge
        >>> @validated
        ... def sample(images, size: Annotated[int, Ge(1)] = 200): ...
        >>> sample(["a.png"], size=0)
        Traceback (most recent call last):
        primaps.utils.errors.InputError: size is 0; it must be at least 1
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        given.arguments.update(validate_options(_argument_types(function), given.arguments))
        with default_torch():
            return function(*given.args, **given.kwargs)

    return wrapper


def validate_options(
    types: Mapping[str, Any], given: Mapping[str, Any], label: Callable[[str], str] = str
) -> dict[str, Any]:
    """Validate arguments, those that are plain options.

    Args:
        types: argument name to annotated type.
        given: argument name to value.
        label: function from the name of an argument to its name in error messages.

    Returns:
        ``given``, with the scalars of NumPy as Python's.

    Raises:
        InputError: an option is not of its type, or outside its range.
    """
    return {
        name: validate(value, types[name], label(name)) if _is_option(types.get(name)) else value
        for name, value in given.items()
    }


def validate_fields(instance: Any, *, skip: str = "") -> None:
    """Validate the fields of a frozen dataclass, in its ``__post_init__``.

    Args:
        skip: name of a field that the class validates itself.

    Raises:
        InputError: a field is not of its type, or outside its range.
    """
    cls: Any = type(instance)
    for name, kind in _field_types(cls).items():
        if name != skip:
            object.__setattr__(instance, name, validate(getattr(instance, name), kind, name))


def validate(value: Any, kind: Any, name: str) -> Any:
    """Validate a value by a type, without converting between types.

    ``True`` is not an integer and ``"3"`` is not a number. Only scalars of NumPy, sequences of
    another kind, and dictionaries for dataclasses are converted. NaN and infinity are refused.

    Args:
        kind: type, with ranges of ``annotated_types``.
        name: name of the value in error messages.

    Raises:
        InputError: the value is not of this type, or outside its range.

    Examples:
        >>> from annotated_types import Ge
        >>> validate(3, Annotated[int, Ge(1)], "epochs")
        3
        >>> validate(1.5, int, "epochs")
        Traceback (most recent call last):
        primaps.utils.errors.InputError: epochs is 1.5; it must be an integer
    """
    from pydantic_core import ValidationError

    def label(path: str) -> str:
        return f"{name}{path}"

    _check_keys(value, kind, label)
    try:
        if isinstance(value, list | tuple | dict):
            try:  # JSON has one kind of sequence, and objects for dataclasses
                text = json.dumps([value], default=_python_scalar)
            except (TypeError, ValueError):
                text = ""
            if text:
                return _validator(kind).validate_json(text)[0]
        return _validator(kind).validate_python([_python_scalar(value)])[0]
    except ValidationError as error:
        raise InputError(_sentence(error, [value], label)) from None


def validate_json(text: str, content: Any, kind: Any) -> Any:
    """Validate JSON by a type.

    Args:
        text: JSON text.
        content: the same JSON as Python objects, for the error message.

    Raises:
        InputError: the content is not of this type; the message names the field.
    """
    from pydantic_core import ValidationError

    def field(path: str) -> str:
        return f'field "{path.lstrip(".")}"' if path else "the content"

    _check_keys(content, kind, field)
    try:
        return _validator(kind).validate_json(f"[{text}]")[0]
    except ValidationError as error:
        raise InputError(_sentence(error, [content], field)) from None


def range_text(kind: Any) -> str:
    """Describe the range of a number type for help texts, without bounds of 10**12 and above.

    Examples:
        >>> from annotated_types import Gt, Interval
        >>> range_text(Annotated[int, Interval(ge=1, le=16384)] | None)
        '1 to 16,384'
        >>> range_text(Annotated[float, Interval(ge=0, lt=1)]), range_text(Annotated[float, Gt(0)])
        ('at least 0 and below 1', 'above 0')
    """
    bounds = {"at least": None, "above": None, "at most": None, "below": None}
    for bound in _bounds(kind):
        if isinstance(bound, Ge):
            bounds["at least"] = bound.ge  # type: ignore[assignment]
        elif isinstance(bound, Gt):
            bounds["above"] = bound.gt  # type: ignore[assignment]
        elif isinstance(bound, Le):
            bounds["at most"] = bound.le  # type: ignore[assignment]
        elif isinstance(bound, Lt):
            bounds["below"] = bound.lt  # type: ignore[assignment]
    numbers = {
        word: f"{value:,}" if isinstance(value, int) else f"{value:g}"
        for word, value in bounds.items()
        if value is not None and abs(value) < 10**12
    }
    if numbers.keys() == {"at least", "at most"}:
        return f"{numbers['at least']} to {numbers['at most']}"
    return " and ".join(f"{word} {number}" for word, number in numbers.items())


def short(value: Any) -> str:
    """Return the repr of a value, truncated for an error message.

    Examples:
        >>> short([0] * 1000)
        '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,...'
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def default_torch() -> Iterator[None]:
    """Use float32 as the default dtype and leave inference mode; gradients stay as they are."""
    import torch

    with _default_float32():
        if not torch.is_inference_mode_enabled():
            yield
            return
        gradients = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            yield


_depth = 0
_dtype_outside: Any = None
_depth_lock = Lock()


@contextmanager
def _default_float32() -> Iterator[None]:
    """Set the default dtype in the first thread that enters, reset it in the last that leaves.

    The default dtype belongs to the process, not to a thread.
    """
    import torch

    global _depth, _dtype_outside
    with _depth_lock:
        if not _depth:
            _dtype_outside = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _depth += 1
    try:
        yield
    finally:
        with _depth_lock:
            _depth -= 1
            if not _depth:
                torch.set_default_dtype(_dtype_outside)


@functools.cache
def _validator(kind: Any) -> SchemaValidator:
    """The validator of a list of one value, which stops at the first wrong item of a list.

    pydantic applies the settings of a list to the dataclasses in it, and takes no settings for a
    dataclass itself.
    """
    from pydantic import ConfigDict, TypeAdapter
    from pydantic_core import CoreConfig, SchemaValidator

    def adapt(schema: Any) -> None:
        if isinstance(schema, dict):
            for part in schema.values():
                adapt(part)
            if schema.get("type") in ("list", "tuple"):
                schema["fail_fast"] = True
            elif schema.get("type") == "literal" and {int} == set(map(type, schema["expected"])):
                # pydantic takes true for 1.
                literal = dict(schema)
                schema.clear()
                schema.update(type="chain", steps=[{"type": "int"}, literal])
        elif isinstance(schema, list | tuple):
            for part in schema:
                adapt(part)

    settings = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    schema = copy.deepcopy(TypeAdapter(list[kind], config=settings).core_schema)
    adapt(schema)
    return SchemaValidator(schema, CoreConfig(strict=True, allow_inf_nan=False))


@functools.cache
def _argument_types(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function, include_extras=True)


@functools.cache
def _field_types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


@functools.cache
def _json_types(kind: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass by their names in JSON."""
    found = {}
    for name, hint in _field_types(kind).items():
        aliases = (getattr(note, "alias", None) for note in getattr(hint, "__metadata__", ()))
        found[next(filter(None, aliases), name)] = hint
    return found


def _is_option(kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _is_option(parts[0])
    if origin in (Union, UnionType):
        return all(map(_is_option, parts))
    return origin is Literal or kind in (bool, int, float, str, Path, NoneType)


def _python_scalar(value: Any) -> Any:
    """Convert scalars of NumPy to Python's."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _bounds(kind: Any) -> Iterator[Any]:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for part in parts[1:]:
            yield from part if isinstance(part, GroupedMetadata) else (part,)
        yield from _bounds(parts[0])
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _bounds(part)


def _check_keys(value: Any, kind: Any, label: Callable[[str], str], path: str = "") -> None:
    """Refuse unknown fields and dictionaries of too many keys.

    pydantic would collect an error for each of them, which takes a hundred times the memory of the
    JSON.

    Raises:
        InputError: a dataclass does not have a field, or a dictionary has too many keys.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if not _has_keys(kind):
        return
    if origin is Annotated:
        _check_keys(value, parts[0], label, path)
    elif origin in (Union, UnionType):
        if len(types := [part for part in parts if part is not NoneType]) == 1:
            _check_keys(value, types[0], label, path)
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_keys(item, parts[0], label, f"{path}[{number}]")
    elif is_dataclass(kind) and isinstance(value, dict):
        hints = _json_types(cast(Any, kind))
        for key, item in value.items():
            if key not in hints:
                raise InputError(f"{label(path + _step(key))} is unknown")
            _check_keys(item, hints[key], label, path + _step(key))
    elif origin is dict and isinstance(value, dict) and len(value) > MAX_KEYS:
        raise InputError(f"{label(path)} has {len(value):,} keys; it must be at most {MAX_KEYS:,}")


@functools.cache
def _has_keys(kind: Any) -> bool:
    """Whether a type contains dataclasses, or dictionaries whose values have a type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _has_keys(parts[0])
    if origin is dict:
        return parts[1] is not Any
    if origin in (Union, UnionType, list, tuple):
        return any(map(_has_keys, parts))
    return is_dataclass(kind)


def _sentence(error: Any, content: Any, field: Callable[[str], str]) -> str:
    """Describe the first field that is wrong; a union has an error for each of its types.

    Args:
        error: pydantic's ValidationError.
        content: what was validated, in a list.
        field: gives the name of a field from its path.
    """
    details = error.errors(include_url=False)
    first, value = _locate(details[0], content)
    same = [one for one in details if _locate(one, content)[0] == first]
    detail, name = details[0], field(first)
    if detail["type"] == "value_error":  # of a __post_init__
        said = str(detail["ctx"]["error"])
        return f"{name}: {said}" if first else said
    if detail["type"] == "missing":
        return f"{name} is missing"
    if detail["type"] == "unexpected_keyword_argument":
        return f"{name} is unknown"
    expected = " or ".join(dict.fromkeys(map(_expected, same)))
    if "too_long" in detail["type"] or "too_short" in detail["type"]:
        return f"{name} has the length {len(value)}; it must be {expected}"
    return f"{name} is {short(value)}; it must be {expected}"


def _expected(detail: Any) -> str:
    template = EXPECTED.get(detail["type"])
    if template is None:
        return str(detail["msg"]).removeprefix("Input should be ")
    return template.format(**detail.get("ctx", {}))


def _locate(detail: Any, content: Any) -> tuple[str, Any]:
    """The path of a field in words, and its value; names of the types in a union are left out."""
    path, value = "", content
    for step, key in enumerate(detail["loc"]):
        if isinstance(value, list | tuple) and isinstance(key, int):
            path = f"{path}[{key}]" if step else ""
            value = value[key] if key < len(value) else None
        elif isinstance(value, dict) and key in value:
            path, value = path + _step(key), value[key]
        elif isinstance(value, dict) and detail["type"] == "missing":
            path, value = path + _step(key), None
    return path, value


def _step(key: Any) -> str:
    """A key in the path of a field; keys of a file may be long, or have line breaks."""
    text = str(key)
    return f".{text}" if text.isprintable() and len(text) <= 60 else f".{short(text)}"
