"""Commands of many callers on few round trips: redis-py takes a connection for each command in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError

from saga_bus.store import Coalescer

__all__ = ["RedisPipe"]

_MOST_GROUPS = 2


class RedisPipe:
    """Sends the commands that concurrent callers give it as pipelines.

    Args:
        client: The Redis client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._coalescer: Coalescer[tuple[Any, ...], Any] = Coalescer(self._run, max_in_flight=_MOST_GROUPS)

    async def do(self, *command: Any) -> Any:
        """One command.

        Args:
            command: Its name and its arguments.

        Returns:
            The server's answer.
        """
        return await self._coalescer.call(command)

    async def script(self, source: str, keys: Sequence[str], *arguments: Any) -> Any:
        """One script.

        Args:
            source: In Lua.
            keys: Its keys.
            arguments: Its arguments.

        Returns:
            What it returns.
        """
        return await self.do("EVAL", source, len(keys), *keys, *arguments)

    async def _run(self, commands: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            answers: Sequence[Any] = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:  # what the server has done is not known, so nothing is sent again
            return [error] * len(commands)
        return answers
