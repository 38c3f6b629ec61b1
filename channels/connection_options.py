"""What the settings of providers that are reached over a network share, apart from any HTTP client."""

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from domain.duration import Duration


class ConnectionOptions(BaseModel):
    """What the settings of every such provider have in common.

    Attributes:
        timeout: from the connection to the answer.
        connections: kept and used at once, at most.
        ca_file: certificate authorities to trust instead of the system's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=15)
    connections: Annotated[int, Field(ge=1, le=1000)] = 100
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _certificates(self) -> Self:
        if self.ca_file is not None:
            try:
                ssl.create_default_context(cafile=str(self.ca_file))
            except OSError:
                raise ValueError("ca_file should be a readable file with certificates in PEM form") from None
        return self
