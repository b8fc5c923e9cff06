"""Flags that several commands share, and the pieces of their help."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safemerge.core import methods
from safemerge.core.options import DEFAULT_THRESHOLD, INSTEAD_OF_COEFFICIENTS, LEARNED, OnUndefined

if TYPE_CHECKING:
    from safemerge.config.commands import Inputs

INPUTS = "Inputs: each a folder or a hub id, with @revision or without"

INPUT_NAMES = ("task_adapter", "safety_adapter", "aligned_model", "unaligned_model")
"""What a merge is made of, as config files name it."""


def inputs_of(settings: Inputs) -> dict[str, str | None]:
    """The inputs that a config file and flags name, for what also takes folders of the current one.

    Raises:
        SafemergeError: one is the hub's, called as something in the current folder, and cannot be downloaded.
    """
    from safemerge.storage.hub import Kind, named_in_config

    kinds: dict[str, Kind] = {
        name: "adapter" if name.endswith("adapter") else "model" for name in INPUT_NAMES
    }
    sources = {name: getattr(settings, name) for name in INPUT_NAMES}
    return {name: source and named_in_config(source, kinds[name]) for name, source in sources.items()}


CHOICE = "Which layers are merged"
WAY = "How they are merged"

EXIT_CODES = "Exit code: 0 done, 2 wrong usage, 4 an error that one line on stderr names."


def epilog(*examples: str, exit_codes: str = EXIT_CODES) -> str:
    """Examples and exit codes below a command's help; a line that starts with ``safemerge`` is a command."""
    # Typer keeps the lines of an epilog apart only where they are paragraphs.
    shown = (f"[cyan]{line}[/cyan]" if line.startswith("safemerge ") else line for line in examples)
    return "\n\n".join(("[bold]Examples[/bold]", *shown, exit_codes))


def default(value: object) -> str:
    """How a default is told where the flag itself has none."""
    return f"[dim]\\[default: {value}][/dim]"


def methods_help() -> str:
    """Every method and what it does, for the end of a command's help."""
    lines = (f"[bold]{name}[/bold]  {text.replace('``', '')}" for name, text in methods.summaries().items())
    return "\n\n".join(("[bold]Methods[/bold]", *lines))


def option(panel: str | None, text: str, *names: str, **settings: Any) -> Any:
    """An option whose default is told in its text."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **settings)


def method_name(name: str) -> str:
    """Check the name of a method.

    Raises:
        typer.BadParameter: there is none of that name; says which is meant, or names all.
    """
    known = methods.names()
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    raise typer.BadParameter(f"unknown method {name!r}; {hint}")


def complete_method(start: str) -> list[tuple[str, str]]:
    """Names of methods that begin so, with what they do, for the shell."""
    return [(name, text) for name, text in methods.summaries().items() if name.startswith(start)]


def flag(setting: str) -> str:
    """The flag of a setting."""
    return f"--{setting.replace('_', '-')}"


def unique(ctx: typer.Context, given: Mapping[str, Any], settings: Sequence[str]) -> None:
    """Leave with a usage error where more than one of some settings was given."""
    flags = [flag(setting) for setting in settings if given[setting] is not None]
    if len(flags) > 1:
        ctx.fail(f"expected one of {', '.join(map(flag, settings))}, got {' and '.join(flags)}")


def without_coefficients(ctx: typer.Context, given: Mapping[str, Any]) -> None:
    """Leave with a usage error where coefficients were given, and what they leave nothing of to choose."""
    if given["coefficients"] is None:
        return
    names = (*INSTEAD_OF_COEFFICIENTS, "on_undefined")
    beside = [flag(name) for name in names if given[name] is not None]
    if given["method"] not in (None, LEARNED):
        beside.insert(0, flag("method"))
    if beside:
        ctx.fail(
            "--coefficients: expected alone, as they choose and weigh every layer, got beside "
            f"{' and '.join(beside)}"
        )


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
HashFiles = Annotated[
    bool,
    typer.Option("--hash-files", help="Digest whole checkpoint files, not only the tensors that were read."),
]
Device = Annotated[
    str, option(None, f"Where layers are scored: auto, cpu, cuda, cuda:1, mps. {default('cpu')}")
]
TaskAdapter = Annotated[str | None, option(INPUTS, "LoRA adapter fine-tuned on the task.", metavar="ADAPTER")]
SafetyAdapter = Annotated[
    str | None,
    option(
        INPUTS, "LoRA adapter fine-tuned to refuse harm; not for methods that need none.", metavar="ADAPTER"
    ),
]
AlignedModel = Annotated[
    str | None, option(INPUTS, "The model that the adapters belong to.", metavar="MODEL")
]
UnalignedModel = Annotated[
    str | None, option(INPUTS, "The same model before it was aligned.", metavar="MODEL")
]

Threshold = Annotated[
    float | None,
    option(CHOICE, f"Merge layers whose cosine lies below it. {default(DEFAULT_THRESHOLD)}"),
]
Quantile = Annotated[
    float | None,
    option(
        CHOICE,
        "Merge this share of the layers, those with the lowest cosines.",
        min=0,
        max=1,
        metavar="SHARE",
    ),
]
Count = Annotated[int | None, option(CHOICE, "Merge so many layers, those with the lowest cosines.", min=0)]
Modules = Annotated[
    list[str] | None,
    option(
        CHOICE,
        'Merge these layers: a module path or a pattern such as "*.mlp.down_proj"; may be repeated.',
        metavar="PATTERN",
    ),
]
WhereUndefined = Annotated[
    OnUndefined | None,
    option(
        CHOICE,
        "What to do where a cosine is undefined, because alignment did not change the layer or the "
        f"update is zero. {default('keep; merge with the flags of the published script')}",
    ),
]
Method = Annotated[
    str | None,
    option(
        WAY,
        f"How layers are merged, see below. {default(methods.DEFAULT)}",
        parser=method_name,
        metavar="NAME",
        autocompletion=complete_method,
    ),
]
TaskWeight = Annotated[
    float | None, option(WAY, f"Weight of the task adapter in merged layers. {default('the method’s')}")
]
SafetyWeight = Annotated[
    float | None,
    option(WAY, f"Weight of the safety adapter there. {default('1 minus the task’s, or the method’s')}"),
]
Density = Annotated[
    float | None, option(WAY, "Share of entries that methods which prune keep, above 0 up to 1.")
]
Components = Annotated[
    int | None,
    option(WAY, "Most singular directions of V that methods which decompose it take (lox, lssf).", min=1),
]
Coefficients = Annotated[
    Path | None,
    option(
        WAY,
        "File of safemerge learn: weights of its own for every layer, in place of a choice of layers and of "
        "weights for all.",
        metavar="FILE",
    ),
]
Seed = Annotated[int | None, option(WAY, f"Seed of random draws. {default(0)}")]
Rank = Annotated[
    int | None,
    option(WAY, "Store every update at this rank, as exactly as it allows; the report has the error.", min=1),
]
MaxError = Annotated[
    float | None,
    option(WAY, "Store at the smallest rank that keeps every layer's relative error at or below it."),
]
