"""What an adapter is worth and what it does harm with: suites, judges, generation, lm-eval."""

from pathlib import Path

TASKS = Path(__file__).parent / "tasks"
"""The suites as lm-eval tasks: ``lm_eval --include_path``."""
