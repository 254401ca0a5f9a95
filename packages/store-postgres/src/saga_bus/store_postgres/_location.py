"""The URL of a database: checked without I/O, and shown without its password."""

from __future__ import annotations

from urllib.parse import urlsplit

from saga_bus.store import InvalidSagaError

__all__ = ["check_url", "shown"]

_SCHEMES = ("postgresql", "postgres")


def check_url(url: str) -> str:
    """Refuse what is no URL of a PostgreSQL database.

    Args:
        url: ``postgresql://user:password@host:port/database``, with what else asyncpg takes.

    Returns:
        The same URL.

    Raises:
        InvalidSagaError: It is none; the URL is not shown, for it may hold a password.
    """
    refused = InvalidSagaError("the URL must be a text like postgresql://user:password@host:5432/database")
    if not isinstance(url, str):
        raise refused
    try:
        parts = urlsplit(url)
        _ = parts.port if "," not in parts.netloc else None  # several hosts are asyncpg's to read
    except ValueError as error:
        raise refused from error
    if parts.scheme not in _SCHEMES or "://" not in url:
        raise refused
    return url


def shown(url: str) -> str:
    """A URL without its password and its options, which may hold one too.

    Args:
        url: A URL that was checked.
    """
    parts = urlsplit(url)
    account, at, hosts = parts.netloc.rpartition("@")
    user = account.partition(":")[0]
    return f"{parts.scheme}://{user}{at}{hosts}{parts.path}"
