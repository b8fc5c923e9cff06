"""Supervised fine-tuning of LoRA adapters; the one home of TRL."""
