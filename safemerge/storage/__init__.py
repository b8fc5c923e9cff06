"""Files: adapters and checkpoints in safetensors form, digests, downloads, outputs that appear whole."""
