"""Classes that read and write themselves: enums and pydantic models.

Responsible for handing them what they need and for checking that they gave the
same value back. pydantic is never imported here: a model can only come from a
program that has imported it.
"""

import enum
import sys
from typing import Any

import orjson

from durabletask._codec_any import AnyNode, form_of, same
from durabletask._codec_classes import call_user_code
from durabletask._codec_nodes import misfit
from durabletask._codec_path import UnfitError
from durabletask._codec_refusal import describe, refusal

PYDANTIC_MIN = (2, 11)
"""The first that reads fields by name whatever their aliases are."""


class EnumNode:
    """An Enum, by value."""

    def __init__(self, cls: type[enum.Enum], anything: AnyNode) -> None:
        self.label = cls.__name__
        self.types: frozenset[type] | None = frozenset({cls})
        self.forms: frozenset[str] | None = frozenset({f"$:{cls.__name__}"})
        self._cls = cls
        self._tag = f"$:{cls.__name__}"
        self._any = anything

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) is not self._cls:
            raise refusal(value, self.label)
        return {self._tag: self._any.pack(value._value_, depth)}

    def unpack(self, raw: Any, lenient: bool) -> Any:
        form = form_of(raw)
        if form != self._tag and not lenient:
            raise misfit(raw, self.label)
        value = self._any.unpack(raw[form] if form == self._tag else raw)
        member = call_user_code(self._cls, value)
        if type(member) is not self._cls:
            raise misfit(raw, self.label)
        return member


class PydanticNode:
    """A pydantic model, by its own serializer and validator, checked to be exact."""

    def __init__(self, cls: Any) -> None:
        self.label: str = cls.__name__
        self.types: frozenset[type] | None = frozenset({cls})
        self.forms: frozenset[str] | None = frozenset({f"$:{cls.__name__}"})
        self._cls = cls
        self._tag = f"$:{cls.__name__}"

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) is not self._cls:
            raise refusal(value, self.label)
        try:
            fields = self._cls.model_dump(
                value, mode="json", round_trip=True, by_alias=False, warnings="error"
            )
            wire = {self._tag: [fields, sorted(value.model_fields_set)]}
            back = self.unpack(orjson.loads(orjson.dumps(wire)), False)
        except UnfitError:
            raise
        except Exception as error:  # serializers and validators are user code
            raise UnfitError(
                f"is {describe(value)} that does not serialize: {error!s:.300}"
            ) from error
        if not _same_model(value, back):
            raise UnfitError(
                f"is {describe(value)} that its own validator does not give back equal",
                "keep private attributes and unserializable fields out of recorded models",
            )
        return wire

    def unpack(self, raw: Any, lenient: bool) -> Any:
        form = form_of(raw)
        if form != self._tag:
            if not lenient or form != "dict":
                raise misfit(raw, self.label)
            return call_user_code(self._cls.model_validate_json, orjson.dumps(raw))
        if type(raw[form]) is not list or len(raw[form]) != 2:
            raise UnfitError(f"is a recorded {self.label} without its fields")
        fields, names = raw[form]
        model = call_user_code(
            self._cls.model_validate_json, orjson.dumps(fields), by_alias=False, by_name=True
        )
        # Validation sets every field it is given; which ones the user set
        # decides what model_dump(exclude_unset=True) says.
        model.__pydantic_fields_set__.intersection_update(names)
        return model


def is_pydantic(cls: type) -> bool:
    """Return whether `cls` is a pydantic model."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)


def pydantic_version() -> tuple[int, ...]:
    """Return the first two numbers of the imported pydantic's version."""
    version: str = sys.modules["pydantic"].VERSION
    return tuple(int(part) for part in version.split(".")[:2])


def _same_model(left: Any, right: Any) -> bool:
    return (
        bool(left == right)
        and left.model_fields_set == right.model_fields_set
        and same(dict(vars(left)), dict(vars(right)))
    )
