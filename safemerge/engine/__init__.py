"""The merge engine on files: look at adapters, score, merge, sweep, compare and export them."""
