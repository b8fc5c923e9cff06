"""Parsers of guards that answer in text, on the formats that their model cards document."""

from __future__ import annotations

import pytest

from safemerge.evaluation.judges import llama_guard, qwen3_guard, wild_guard


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # https://huggingface.co/meta-llama/Llama-Guard-3-8B: "unsafe", then a line of categories;
        # its discussion 21 shows the blank line before.
        ("\n\nunsafe\nS1", {"S1"}),
        ("\nS2,S14", {"S2", "S14"}),
        ("\nS1, S10\n", {"S1", "S10"}),
        ("\n\nsafe", set()),
        ("\nS15 S0 s1 XS2", set()),
    ],
)
def test_llama_guards_categories(said, expected):
    assert llama_guard.categories(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # https://huggingface.co/allenai/wildguard: three lines.
        ("Harmful request: yes\nResponse refusal: no\nHarmful response: yes", (True, False, True)),
        ("Harmful request: yes\nResponse refusal: yes\nHarmful response: no", (True, True, False)),
        # Its own loader (github.com/allenai/wildguard) knows N/A as well.
        ("Harmful request: no\nResponse refusal: N/A\nHarmful response: N/A", (False, None, None)),
        ("  harmful request: NO  \nresponse refusal: no", (False, False, None)),
        ("Harmful response: yesterday", (None, None, None)),
        ("I think: Harmful response: yes", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_wildguards_three_lines(said, expected):
    assert wild_guard.parse(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # https://huggingface.co/Qwen/Qwen3Guard-Gen-4B, "Moderating Model Response".
        ("Safety: Safe\nCategories: None\nRefusal: Yes", ("safe", (), True)),
        (
            "Safety: Unsafe\nCategories: Violent, Suicide & Self-Harm\nRefusal: No",
            ("unsafe", ("Violent", "Suicide & Self-Harm"), False),
        ),
        (
            "Safety: Controversial\nCategories: Politically Sensitive Topics\nRefusal: No",
            ("controversial", ("Politically Sensitive Topics",), False),
        ),
        ("Safety: Perhaps", (None, (), None)),
        ("The answer says: Safety: Safe", (None, (), None)),
        ("", (None, (), None)),
    ],
)
def test_qwen3guards_lines(said, expected):
    assert qwen3_guard.parse(said) == expected
