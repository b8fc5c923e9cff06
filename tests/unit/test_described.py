from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import Field, ValidationError

from safemerge.config.schemas import MODELS, json_schema
from safemerge.described import Described


class Plain(Described):
    """A thing."""

    size: int
    """How large it is,
    in metres."""
    nothing: str = ""

    def method(self) -> int:
        """No text of a field."""
        return self.size


class Special(Plain):
    """A special thing."""

    part: Plain | None = Field(default=None)
    """What it holds."""


def test_a_schema_explains_fields_by_the_text_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safemerge.described.__package__", __name__.partition(".")[0])
    schema = Special.model_json_schema()
    assert {name: field.get("description") for name, field in schema["properties"].items()} == {
        "size": "How large it is,\nin metres.",
        "nothing": None,
        "part": "What it holds.",
    }
    assert schema["description"] == "A special thing."
    assert schema["$defs"]["Plain"]["properties"]["size"]["description"] == "How large it is,\nin metres."


# The oracle: pydantic itself reads the texts while the classes are made, which takes longer.
EAGER = """
import json
from pydantic import BaseModel, ConfigDict
import safemerge.described
class Eager(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
safemerge.described.Described = Eager
from safemerge.config.schemas import MODELS, json_schema
print(json.dumps({kind: json_schema(kind) for kind in MODELS}))
"""


def test_every_schema_is_what_pydantic_makes_of_the_texts() -> None:
    done = subprocess.run([sys.executable, "-c", EAGER], capture_output=True, text=True, check=True)
    assert {kind: json_schema(kind) for kind in MODELS} == json.loads(done.stdout)
    assert done.stdout.count('"description"') > 100


def test_a_model_is_frozen_and_knows_its_keys() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Plain(size=1).size = 2
    with pytest.raises(ValidationError, match="Extra inputs"):
        Plain.model_validate({"size": 1, "colour": "red"})
