"""MLflow, the ledger of the pipeline: runs, artifacts, reuse, and the champion.

The only room that imports MLflow. A pipeline run is one parent run; each step is a
child run tagged with the digest of everything its outputs depend on. What is done is
found again by that digest, on a retry, after a crash, or in a later pipeline run.
"""
