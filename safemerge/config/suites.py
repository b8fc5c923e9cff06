"""Suites as data: a small YAML file says where a suite's prompts lie and what they are.

The shipped ones are in ``safemerge/suites``; a user's own is named by its path. The prompts
themselves are read by :mod:`safemerge.evaluation.suites`.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, model_validator

from safemerge.config.base import Config, PlainName
from safemerge.config.places import DataPlace, FilePlace
from safemerge.records import SuiteKind

PACKAGE = Path(__file__).parents[1]
"""The package's folder, from which a ``resource`` counts."""
SHIPPED = PACKAGE / "suites"


class Columns(Config):
    """Names of the columns, or of the keys in a JSON Lines file."""

    id: str | None = None
    """None numbers the rows; whole numbers are taken as texts."""
    prompt: str = "prompt"
    category: str | None = None


class SuiteSpec(Config):
    """A suite of prompts: where they lie, what they are, and under which licence."""

    name: PlainName
    title: str
    kind: SuiteKind
    dataset: DataPlace | None = None
    """Hub data set, or a folder that ``datasets`` reads; counts from the YAML file's folder."""
    file: FilePlace | None = None
    """JSON Lines file; counts from the YAML file's folder."""
    resource: str | None = None
    """JSON Lines file that is shipped in the package; counts from the package's folder."""
    revision: str | None = None
    """Commit of the hub data set. Where none is stated, whoever uses the suite must name one."""
    subset: str | None = None
    """Configuration of the hub data set."""
    split: str | None = None
    files: dict[str, str] = Field(default_factory=dict)
    """Category to its CSV file in the data set: files without a header, whose one column holds prompts."""
    where: dict[str, str] = Field(default_factory=dict)
    """Only rows whose columns hold these values."""
    columns: Columns = Columns()
    size: Annotated[int, Field(gt=0)]
    """Prompts that it holds; another number is an error."""
    licence: str
    """Of the prompts, as an SPDX id where there is one."""
    access: str | None = None
    """How access is had, where the hub gives it to some alone."""
    citation: str
    system_prompt: str | None = None
    """System message before every prompt."""
    chat_template: str | None = None
    """Jinja template in place of the tokenizer's own."""

    @model_validator(mode="after")
    def _says_where_its_prompts_lie(self) -> Self:
        given = [name for name in ("dataset", "file", "resource") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of dataset, file, resource, got {' and '.join(given) or 'none of them'}"
            )
        if self.dataset and (self.split is None) == (not self.files):
            raise ValueError("expected a split or files of the data set, got both or neither")
        if not self.dataset and any((self.revision, self.subset, self.split, self.files)):
            raise ValueError("expected revision, subset, split and files with a dataset alone")
        return self


def shipped_names() -> list[str]:
    """Names of the shipped suites, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


@lru_cache
def shipped_suite(name: str) -> SuiteSpec:
    """A shipped suite.

    Raises:
        ValueError: there is none of that name; the nearest is given.
    """
    names = shipped_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        raise ValueError(f"expected a shipped suite, got {name!r}; {hint}")
    return SuiteSpec.model_validate(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")))
