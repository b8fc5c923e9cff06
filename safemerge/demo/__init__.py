"""The demo: the whole pipeline on a small real model, with data written for it."""
