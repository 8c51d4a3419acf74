"""The errors that mtrec raises for what its caller can mend.

    MtrecError            anything below; exit code 1
    |-- ConfigError       the configuration or the command line; exit code 2
    |-- DataError         the data that was brought; exit code 3
    |-- ArtifactError     what mtrec wrote is missing, damaged or foreign; exit code 4
    |-- GateError         a result is worse than the configuration allows; exit code 1
    `-- RequestError      one request to a recommender; HTTP status 422, 404, ...

A message names the thing, what was found, what was expected and the remedy, in one to three lines.
Mistakes of ours are assertions, not these. They cross a border once: `cli.py` maps them to exit
codes, `serve/app.py` to HTTP answers.
"""


class MtrecError(Exception):
    """Be the parent of every error whose cause the caller can mend."""

    exit_code = 1


class ConfigError(MtrecError):
    """Report a configuration or a command line that cannot be run."""

    exit_code = 2


class DataError(MtrecError):
    """Report input data that mtrec cannot use."""

    exit_code = 3


class ArtifactError(MtrecError):
    """Report an artifact that is missing, damaged or does not fit the run."""

    exit_code = 4


class GateError(MtrecError):
    """Report a result that is worse than the configuration allows."""


class RequestError(MtrecError):
    """Report one request that cannot be answered.

    Attributes:
        status: HTTP status code, 400 to 499.
        code: short machine-readable name, such as `unknown_item`.
        field: path of the offending field in the request, if there is one.
    """

    def __init__(
        self, message: str, *, code: str = "invalid", status: int = 422, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
