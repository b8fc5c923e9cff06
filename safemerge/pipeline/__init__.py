"""The steps of the pipeline, each kept in the ledger, and what they share.

:mod:`safemerge.pipeline.steps` lists them. Those that make something have one shape: read the pipeline run
from MLflow, take the digest of all that the outputs depend on, return what an earlier run did with the same
digest, and only else do the work. ``open``, ``advance``, ``ask`` and ``close`` make nothing and are done each
time. Steps know nothing of the scheduler that calls them.

Of the rest, ``recipes`` and ``offline`` check recipes before any run; ``rolling_back`` and ``announcing`` are
what ``safemerge rollback`` does.
"""
