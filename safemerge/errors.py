"""Every error that safemerge raises on purpose.

The tree:

    SafemergeError
    ├── ConfigError             a config file, flag or policy cannot be used
    ├── AdapterError            an adapter folder cannot be read as a LoRA adapter
    │   └── UnsupportedAdapterError   it is one that no low-rank delta can hold (DoRA, lora_bias, …)
    ├── CheckpointError         a checkpoint is missing, truncated, or lacks a tensor
    ├── MismatchError           two inputs do not belong together (base model, shape, architecture)
    ├── NonFiniteError          a tensor holds NaN or infinity
    ├── DegenerateLayerError    a cosine is undefined for a layer; callers decide what follows
    ├── OutputExistsError       an output would overwrite what is there
    ├── DataError               a data set is missing, empty or malformed
    ├── EvaluationError         an evaluation could not give a figure
    ├── TrackingError           the tracking server refused, or lacks what was asked for
    ├── HubError                the Hugging Face hub refuses an upload, or cannot be reached
    ├── AirflowApiError         Airflow refuses a request, or cannot be reached
    ├── DiskFullError           there is no room to write on a disk
    ├── MissingDependencyError  an optional library is not installed
    └── StepError               a process that safemerge started (a service, a run) failed or gave no answer

Messages name what, where, expected and got. The command line prints them on one
line without a traceback and exits with ``EXIT_ERROR``.
"""

import re

EXIT_ERROR = 4
"""Exit code of the command line after any ``SafemergeError``. Of the others below it, 1 is the gate's
block, 2 wrong usage, and 3 its "cannot tell"."""


class SafemergeError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(SafemergeError):
    """A config file, flag or policy cannot be used."""


class AdapterError(SafemergeError):
    """An adapter folder cannot be read as a LoRA adapter."""


class UnsupportedAdapterError(AdapterError):
    """An adapter of a kind that no low-rank delta can hold."""


class CheckpointError(SafemergeError):
    """A checkpoint is missing, truncated, or lacks a tensor."""


class MismatchError(SafemergeError):
    """Two inputs do not belong together."""


class NonFiniteError(SafemergeError):
    """A tensor holds NaN or infinity."""


class DegenerateLayerError(SafemergeError):
    """The projected cosine of a layer is undefined."""


class OutputExistsError(SafemergeError):
    """An output would overwrite what is already there."""


class DataError(SafemergeError):
    """A data set is missing, empty or malformed."""


class EvaluationError(SafemergeError):
    """An evaluation could not give a figure."""


class TrackingError(SafemergeError):
    """The tracking server refused, or lacks what was asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(without_login(message))  # MLflow's own messages hold its address, too


class HubError(SafemergeError):
    """The Hugging Face hub refuses an upload, or cannot be reached."""


class AirflowApiError(SafemergeError):
    """Airflow refuses a request, or cannot be reached."""


class DiskFullError(SafemergeError):
    """There is no room to write on a disk."""


class MissingDependencyError(SafemergeError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed: pip install 'safemerge[{extra}]'")


class StepError(SafemergeError):
    """A process that safemerge started (a service or DAG run of the demo) failed or gave no answer."""


def without_login(text: str) -> str:
    """A text without user and password in its addresses, as in ``https://me:secret@host``."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)
