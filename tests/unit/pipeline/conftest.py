"""A ledger on a database of its own, as in the tests of tracking."""

from tests.unit.tracking.conftest import config, ledger, migrated_database, run

__all__ = ["config", "ledger", "migrated_database", "run"]
