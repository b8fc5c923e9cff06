"""The steps of the pipeline, each kept in the ledger.

Every step has the same shape: read the pipeline run from MLflow, take the digest of
all that its outputs depend on, return what an earlier run did with the same digest,
and only else do the work. Steps know nothing of the scheduler that calls them.
"""
