"""Typed configuration: what may be set (models), and reading it from YAML (load)."""
