"""The store's own boto3 client."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.session import Session  # type: ignore[import-untyped]

from saga_bus.store import InvalidSagaError
from saga_bus.store_dynamodb._location import is_loopback

__all__ = ["Settings", "make_client"]

_MOST_THREADS = 1000


@dataclass(frozen=True)
class Settings:
    """How the store talks to the service.

    Args:
        threads: The most requests at the same time.
        attempts: How often a request is tried.
        connect_timeout: How long connecting may take, in seconds.
        read_timeout: How long an answer may take, in seconds.
        region: The region, None for the one of the session.
        endpoint: The address of the service, None for the region's.
        access_key: The access key, None for what the session finds.
        secret_key: Its secret.

    Raises:
        InvalidSagaError: A bad value.
    """

    threads: int
    attempts: int
    connect_timeout: float
    read_timeout: float
    region: str | None = None
    endpoint: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, most in (("threads", _MOST_THREADS), ("attempts", 100)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise InvalidSagaError(f"{name} must be an int from 1 to {most}, not {value!r}")
        for name in ("connect_timeout", "read_timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 3600:
                raise InvalidSagaError(f"{name} must be a number of seconds between 0 and 3600, not {value!r}")


def make_client(settings: Settings, session: Any = None) -> Any:
    """Make a client that tries each request once, and checks no arguments: the store's own are right.

    Args:
        settings: The settings.
        session: A boto3 session, None for one of the store's own.
    """
    config = Config(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        max_pool_connections=settings.threads,
        parameter_validation=False,
        retries={"total_max_attempts": 1},
        tcp_keepalive=True,
        # Whole, because botocore otherwise makes it anew for every request, which takes a tenth of its time.
        user_agent=f"Boto3/{boto3.__version__} saga-bus-store-dynamodb",
    )
    keys: dict[str, str | None] = {}
    if settings.access_key is not None:
        keys = {"aws_access_key_id": settings.access_key, "aws_secret_access_key": settings.secret_key}
    if session is None:
        core = Session()
        core.register_component("data_loader", _data_loader())
        if not keys and settings.endpoint is not None and is_loopback(settings.endpoint):
            # DynamoDB Local takes any keys. Those of a machine's role are not for it, and asking for them takes long.
            core.get_component("credential_provider").remove("iam-role")
            if core.get_credentials() is None:
                keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
        session = boto3.Session(botocore_session=core)
    return session.client(
        "dynamodb", region_name=settings.region, endpoint_url=settings.endpoint, config=config, **keys
    )


@cache
def _data_loader() -> Any:
    # It keeps the descriptions of the service, which take a tenth of a second to read, for every client.
    return Session().get_component("data_loader")
