"""Names of modules for people: what kind a module is, and where in the network it sits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

NOWHERE = "–"
"""Position of a module that is in no numbered layer, such as an output head."""


def module_kinds(modules: Sequence[str]) -> dict[str, str]:
    """What a module is, without where: the shortest name that tells the kinds apart.

    ``model.layers.0.self_attn.q_proj`` is a ``q_proj``, unless another part of the
    model has one too: then it is a ``self_attn.q_proj``.
    """
    paths = {module: tuple(part for part in module.split(".") if not part.isdecimal()) for module in modules}
    distinct = set(paths.values())

    def shortest(path: tuple[str, ...]) -> str:
        for length in range(1, len(path)):
            if sum(other[-length:] == path[-length:] for other in distinct) == 1:
                return ".".join(path[-length:])
        return ".".join(path)

    names = {path: shortest(path) for path in distinct}
    return {module: names[path] for module, path in paths.items()}


def position(module: str) -> str:
    """Where a module sits: its layer number, or numbers (``3.7``: expert 7 of layer 3).

    >>> position("model.layers.3.mlp.experts.7.up_proj")
    '3.7'
    """
    return ".".join(part for part in module.split(".") if part.isdecimal()) or NOWHERE


class Grid(NamedTuple):
    """Modules as a heat map shows them."""

    kinds: list[str]
    """Of the rows."""
    places: list[str]
    """Of the columns, in order."""
    cells: dict[tuple[str, str], list[str]]
    """Kind and place to the modules there."""


def by_kind_and_layer(modules: Sequence[str]) -> Grid:
    """Modules by their kind and the number of the layer that they are in, the experts of a layer together."""
    return _grid(modules, lambda module: position(module).partition(".")[0])


def by_kind_and_position(modules: Sequence[str]) -> Grid:
    """Modules by their kind and their :func:`position`, each expert by itself."""
    return _grid(modules, position)


def _grid(modules: Sequence[str], place_of: Callable[[str], str]) -> Grid:
    kinds = module_kinds(modules)
    cells: dict[tuple[str, str], list[str]] = {}
    for module in modules:
        cells.setdefault((kinds[module], place_of(module)), []).append(module)
    places = sorted({place for _, place in cells}, key=natural_order)
    return Grid(list(dict.fromkeys(kinds.values())), places, cells)


def natural_order(module: str) -> list[tuple[int, str]]:
    """Sort key of paths and positions that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", module)]


def listed(modules: Iterable[str]) -> str:
    """Modules by name, for messages: layer 2 before layer 10."""
    return ", ".join(sorted(modules, key=natural_order))


def grouped(modules: Iterable[str]) -> str:
    """Many modules in a few words, kinds of equal depth together.

    >>> grouped(f"layers.{i}.attn.{kind}" for i in range(32) for kind in ("q_proj", "v_proj"))
    'q_proj, v_proj × 32 layers'
    >>> grouped(["lm_head", "layers.0.q_proj", "layers.1.q_proj", "layers.1.v_proj"])
    'q_proj × 2 layers; v_proj in layer 1; lm_head'
    """
    kinds = module_kinds(modules := list(modules))
    positions: dict[str, list[str]] = {}
    for module in modules:
        positions.setdefault(kinds[module], []).append(position(module))
    alike: dict[tuple[str, ...], list[str]] = {}
    for kind, places in positions.items():
        alike.setdefault(tuple(sorted(places, key=natural_order)), []).append(kind)
    ordered = sorted(alike.items(), key=lambda group: (-len(group[0]), group[0] == (NOWHERE,)))
    return "; ".join(f"{', '.join(names)}{_where(places)}" for places, names in ordered)


def _where(places: Sequence[str]) -> str:
    if len(places) > 1:
        experts = any("." in place for place in places)
        return f" × {len(places)} {'places' if experts else 'layers'}"
    return "" if places[0] == NOWHERE else f" in layer {places[0]}"
