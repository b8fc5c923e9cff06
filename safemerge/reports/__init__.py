"""Results of the engine and of a release, beside those that the pipeline's steps hand on (records)."""
