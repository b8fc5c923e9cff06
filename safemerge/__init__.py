"""safemerge: repair what fine-tuning does to a language model's safety, and gate what is not repaired."""

__version__ = "0.1.0"
