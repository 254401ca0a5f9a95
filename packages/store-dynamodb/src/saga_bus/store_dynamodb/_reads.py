"""Reads by key: always consistent, alone or many callers' together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saga_bus.store import Activity, Coalescer, StoreUnavailableError
from saga_bus.store_dynamodb._driver import Ask, Driver, all_of
from saga_bus.store_dynamodb._items import SHOWN, Item, document_of, is_alive, text
from saga_bus.store_dynamodb._keys import correlation_key, state_key

__all__ = ["Reads"]

_CORRELATION = "pk, saga_id, expires"  # what a reader needs of a correlation item
_MAX_GROUP = 100  # keys of a BatchGetItem
Pair = tuple[str, str]


class Reads:
    """What the store reads of its table by key.

    Args:
        driver: Makes the requests.
        table: The table's name.
        attempts: How often keys that a BatchGetItem left out are asked for again, with no progress.
        activity: Shared with the writes, so that a caller is alone when no other one does anything.
    """

    def __init__(self, driver: Driver, table: str, attempts: int, activity: Activity) -> None:
        self._driver = driver
        self._table = table
        self._attempts = attempts
        self._by_id: Coalescer[str, Item | None] = Coalescer(
            self._states_together, max_size=_MAX_GROUP, alone=self._state_alone, activity=activity
        )
        self._by_correlation: Coalescer[Pair, Item | None] = Coalescer(
            self._correlated_together, max_size=_MAX_GROUP, alone=self._correlated_alone, activity=activity
        )

    async def join(self) -> None:
        """Wait until no group is in flight."""
        await self._by_correlation.join()
        await self._by_id.join()

    async def get_by_id(self, saga_name: str, saga_id: str) -> bytes | None:
        """Fetch a document by its saga's id, in one round trip."""
        return document_of(await self._by_id.call(state_key(saga_name, saga_id)))

    async def get_by_correlation_id(self, saga_name: str, correlation_id: str) -> bytes | None:
        """Fetch a document by its saga's correlation id, in two round trips, both consistent."""
        state = await self._by_correlation.call((saga_name, correlation_id))
        if state is None or state["correlation_id"]["S"] != correlation_id:
            return None  # it was deleted between the two, and then there was none of this correlation id
        return document_of(state)

    async def get_items(self, keys: Sequence[str], shown: str = SHOWN) -> dict[str, Item]:
        """Fetch items, as they are at this moment.

        Args:
            keys: Any number of partition keys.
            shown: The attributes to fetch, ``pk`` among them.

        Returns:
            Those that are there, by their keys.
        """
        different = list(dict.fromkeys(keys))
        if len(different) <= _MAX_GROUP:
            return await self._get_group(different, shown)
        groups = [different[start : start + _MAX_GROUP] for start in range(0, len(different), _MAX_GROUP)]
        found: dict[str, Item] = {}
        for part in await all_of(self._get_group(group, shown) for group in groups):
            found |= part
        return found

    async def _get_group(self, keys: Sequence[str], shown: str) -> dict[str, Item]:
        found: dict[str, Item] = {}
        left: list[dict[str, Any]] = [{"pk": text(key)} for key in keys]
        fruitless = 0
        while left:
            wanted = {"Keys": left, "ConsistentRead": True, "ProjectionExpression": shown}
            response = await self._driver.read("batch_get_item", RequestItems={self._table: wanted})
            found.update((item["pk"]["S"], item) for item in response["Responses"].get(self._table, ()))
            # What the service left out, because the answer got too long or it is too busy.
            again = response.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            fruitless = fruitless + 1 if len(again) == len(left) else 0
            left = again
            if fruitless == self._attempts:
                raise StoreUnavailableError(f"table {self._table!r}: BatchGetItem was throttled {fruitless} times")
            if fruitless:
                await self._driver.pause(fruitless)
        return found

    # -- alone and together --------------------------------------------------------------------------------

    async def _state_alone(self, key: str) -> Item | None:
        return await self.get_item(key, SHOWN)

    async def _states_together(self, keys: Sequence[str]) -> list[Item | None]:
        found = await self.get_items(keys)
        return [found.get(key) for key in keys]

    async def _correlated_alone(self, pair: Pair) -> Item | None:
        first = self._request(correlation_key(*pair), _CORRELATION)

        def both(ask: Ask) -> Item | None:
            key = _state_of(pair, ask("get_item", first).get("Item"))
            return None if key is None else ask("get_item", self._request(key, SHOWN)).get("Item")

        return await self._driver.read_in_turn(both)  # the way to a thread and back is long, and so is made once

    async def _correlated_together(self, pairs: Sequence[Pair]) -> list[Item | None]:
        keys = [correlation_key(*pair) for pair in pairs]
        found = await self.get_items(keys, _CORRELATION)
        states = [_state_of(pair, found.get(key)) for pair, key in zip(pairs, keys, strict=True)]
        there = await self.get_items([key for key in states if key is not None])
        return [None if key is None else there.get(key) for key in states]

    async def get_item(self, key: str, shown: str) -> Item | None:
        """Fetch one item, as it is at this moment.

        Args:
            key: Its partition key.
            shown: The attributes to fetch.
        """
        return (await self._driver.read("get_item", **self._request(key, shown))).get("Item")

    def _request(self, key: str, shown: str) -> dict[str, Any]:
        return {
            "TableName": self._table,
            "Key": {"pk": text(key)},
            "ConsistentRead": True,
            "ProjectionExpression": shown,
        }


def _state_of(pair: Pair, found: Item | None) -> str | None:
    """The key of the state item that a correlation item leads to, None where there is none."""
    if found is None or not is_alive(found):
        return None
    return state_key(pair[0], found["saga_id"]["S"])
