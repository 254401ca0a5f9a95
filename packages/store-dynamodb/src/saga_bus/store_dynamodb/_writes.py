"""Writes: each on a condition, each to be made again without harm."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from secrets import token_hex
from typing import Any, NamedTuple

from saga_bus.store import (
    Activity,
    Coalescer,
    DuplicateSagaError,
    OutcomeUnknownError,
    SagaRow,
    SagaStoreError,
    StoreUnavailableError,
    version_conflict,
)
from saga_bus.store_dynamodb._driver import Driver, RefusedError
from saga_bus.store_dynamodb._errors import code_of
from saga_bus.store_dynamodb._items import (
    ABSENT,
    FREE,
    Item,
    correlation_item,
    is_alive,
    state_item,
    statement_of,
    text,
    update_of,
    version_of,
)
from saga_bus.store_dynamodb._keys import NAMES_SLOT, correlation_key, name_key, split_state_key, state_key
from saga_bus.store_dynamodb._reads import Reads

__all__ = ["Writes"]

_MAX_STATEMENTS = 25  # of a BatchExecuteStatement
_UPDATE_GROUPS = 4  # in flight at the same time
_NOT_ALLOWED = ("AccessDeniedException", "UnknownOperationException")
_TRIES = 5


class _Update(NamedTuple):
    """An update of a saga, and the token by which it is known again."""

    row: SagaRow
    expected_version: int
    writer: str


class Writes:
    """What the store writes to its table.

    Args:
        driver: Makes the requests.
        table: The table's name.
        reads: Fetches items.
        completed_ttl: How long a completed saga stays after its last update, None for ever.
        activity: Shared with the reads, so that a caller is alone when no other one does anything.
    """

    def __init__(
        self, driver: Driver, table: str, reads: Reads, completed_ttl: timedelta | None, activity: Activity
    ) -> None:
        self._driver = driver
        self._table = table
        self._ttl = completed_ttl
        self._reads = reads
        self._named: set[str] = set()  # saga names that are known to be in the table
        self._may_group_updates = True
        self._updates: Coalescer[_Update, None] = Coalescer(
            self._update_together,
            max_size=_MAX_STATEMENTS,
            key=lambda update: (update.row.saga_name, update.row.saga_id),
            max_in_flight=_UPDATE_GROUPS,
            alone=self._update_alone,
            activity=activity,
        )

    async def join(self) -> None:
        """Wait until no group is in flight."""
        await self._updates.join()

    def forget(self) -> None:
        """Know nothing of the table any more: it was dropped."""
        self._named.clear()

    # -- insert --------------------------------------------------------------------------------------------

    async def insert(self, row: SagaRow, correlation_id: str) -> None:
        """Write both items of a new saga, or raise `DuplicateSagaError`."""
        await self._announce(row.saga_name)
        # The condition that lets expired items be replaced costs the service time, and is seldom needed.
        if not await self._put_both(row, correlation_id, ABSENT):
            await self._put_both(row, correlation_id, FREE, {":now": _now()})

    async def _announce(self, saga_name: str) -> None:
        """Write down that there are sagas of a name, before the first one that this store inserts."""
        if saga_name in self._named:
            return
        item = {"pk": text(name_key(saga_name)), "slot": text(NAMES_SLOT), "created": text(saga_name)}
        with suppress(RefusedError):  # it is there already
            await self._driver.write("put_item", TableName=self._table, Item=item, ConditionExpression=ABSENT)
        self._named.add(saga_name)

    async def _put_both(
        self, row: SagaRow, correlation_id: str, condition: str, values: dict[str, Any] | None = None
    ) -> bool:
        """Write both items of a new saga; False if what is in the way of it has expired, and the condition minds."""
        writer = _new_token()
        expires = self._expiry(row)
        items = state_item(row, correlation_id, writer, expires), correlation_item(row, correlation_id, expires)
        try:
            await self._transact(writer, *({"Put": self._checked(condition, values, Item=item)} for item in items))
        except RefusedError as refused:
            (id_taken, state), (_, correlation) = refused.found
            if state is not None and state["writer"]["S"] == writer:
                return True  # an earlier try of this very insert, of which the answer was lost
            if condition is ABSENT and any(item is not None and not is_alive(item) for item in (state, correlation)):
                return False
            raise DuplicateSagaError(
                saga_name=row.saga_name,
                saga_id=row.saga_id,
                correlation_id=correlation_id,
                conflict="saga_id" if id_taken else "correlation_id",
            ) from refused.__cause__
        return True

    # -- update --------------------------------------------------------------------------------------------

    async def update(self, row: SagaRow, expected_version: int) -> None:
        """Write the next version of a saga in one UpdateItem, or raise `version_conflict(...)`.

        Running sagas that many callers update at the same time go together. Only where a completed saga gets a time to
        live, or loses it because it is reopened, both items are written.
        """
        if not row.is_completed:
            await self._updates.call(_Update(row, expected_version, _new_token()))
        elif self._ttl is None:
            await self._update_alone(_Update(row, expected_version, _new_token()))
        else:
            await self._update_both(row, expected_version)

    async def _update_alone(self, update: _Update, *, uncertain: bool = False) -> None:
        row, expected_version, writer = update
        request = update_of(row, expected_version, writer)
        if row.is_completed:
            request["ConditionExpression"] += " AND (attribute_not_exists(expires) OR expires > :now)"
            request["ExpressionAttributeValues"][":now"] = _now()
        else:
            # A running saga must not expire. Where this fails alone, both items have to lose their time to live.
            request["ConditionExpression"] += " AND attribute_not_exists(expires)"
        try:
            await self._driver.write("update_item", uncertain=uncertain, TableName=self._table, **request)
        except RefusedError as refused:
            ((_, state),) = refused.found
            if not _may_be_reopened(row, expected_version, state):
                _judge(row, expected_version, writer, state, refused)
                return
            await self._update_both(row, expected_version, state)

    async def _update_together(self, updates: Sequence[_Update]) -> list[BaseException | None]:
        """Make updates of several sagas in one request, each with its own outcome.

        What the request does not acknowledge is done alone: it is known again if it was applied all the same.
        """
        answers: Sequence[dict[str, Any]] = ()
        uncertain = False
        if len(updates) > 1 and self._may_group_updates:
            statements = [statement_of(self._table, *update) for update in updates]
            try:
                response = await self._driver.write("batch_execute_statement", tries=1, Statements=statements)
                answers = response["Responses"]
            except SagaStoreError as error:
                uncertain = isinstance(error, OutcomeUnknownError)
                self._may_group_updates = code_of(error.__cause__) not in _NOT_ALLOWED
        if len(answers) != len(updates):
            answers = [{"Error": {}}] * len(updates)
        left = [update for update, answer in zip(updates, answers, strict=True) if "Error" in answer]
        outcomes = await asyncio.gather(
            *(self._update_alone(update, uncertain=uncertain) for update in left), return_exceptions=True
        )
        found = dict(zip((update.writer for update in left), outcomes, strict=True))
        return [found.get(update.writer) for update in updates]

    async def _update_both(self, row: SagaRow, expected_version: int, state: Item | None = None) -> None:
        key = state_key(row.saga_name, row.saga_id)
        for _ in range(_TRIES):
            state = state or await self._reads.get_item(key, "version, correlation_id, expires")
            actual = version_of(state) if state is not None and is_alive(state) else None
            if state is None or actual != expected_version:
                raise version_conflict(
                    row.saga_name, row.saga_id, expected_version=expected_version, actual_version=actual
                )
            correlation_id = state["correlation_id"]["S"]
            writer = _new_token()
            expires = self._expiry(row)
            update = update_of(row, expected_version, writer)
            values = update["ExpressionAttributeValues"]
            values.update({":now": _now(), ":correlation_id": text(correlation_id)})
            update["ConditionExpression"] += (
                " AND (attribute_not_exists(expires) OR expires > :now) AND correlation_id = :correlation_id"
            )
            if expires is None:
                update["UpdateExpression"] += "," if " REMOVE " in update["UpdateExpression"] else " REMOVE"
                update["UpdateExpression"] += " expires"
            else:
                values[":expires"] = {"N": str(expires)}
                update["UpdateExpression"] = update["UpdateExpression"].replace("SET ", "SET expires = :expires, ", 1)
            # The correlation item is written whole: by a clock that is ahead of ours it may have expired.
            put = self._checked(
                "attribute_not_exists(pk) OR saga_id = :saga_id",
                {":saga_id": text(row.saga_id)},
                Item=correlation_item(row, correlation_id, expires),
            )
            try:
                await self._transact(writer, {"Update": {"TableName": self._table, **update}}, {"Put": put})
            except RefusedError as refused:
                (failed, state), _ = refused.found
                if not failed:
                    state = None  # the correlation item is another saga's, so this one has changed since it was read
                elif not _is_other_life(state, expected_version, correlation_id):
                    _judge(row, expected_version, writer, state, refused)
                    return
            else:
                return
        raise StoreUnavailableError(f"saga {row.saga_name!r} {row.saga_id!r} was changed all the time")

    # -- delete --------------------------------------------------------------------------------------------

    async def delete(self, saga_name: str, saga_id: str, expected_version: int | None) -> None:
        """Delete both items: a read, then a transaction."""
        key = state_key(saga_name, saga_id)
        for _ in range(_TRIES):
            state = await self._reads.get_item(key, "version, correlation_id, expires")
            actual = version_of(state) if state is not None and is_alive(state) else None
            if expected_version is not None and actual != expected_version:
                raise version_conflict(saga_name, saga_id, expected_version=expected_version, actual_version=actual)
            if state is None or actual is None:
                return
            condition, values = "correlation_id = :correlation_id", {}
            if expected_version is not None:
                condition += " AND version = :version"
                values[":version"] = {"N": str(expected_version)}
            if await self.delete_both(key, state["correlation_id"]["S"], condition, values):
                return
        raise StoreUnavailableError(f"saga {saga_name!r} {saga_id!r} was changed all the time")

    async def delete_both(self, key: str, correlation_id: str, condition: str, values: dict[str, Any]) -> bool:
        """Delete both items of a saga if a condition on the state item holds.

        Args:
            key: The state item's.
            correlation_id: The saga's correlation id; ``:correlation_id`` in the condition.
            condition: The condition.
            values: Its other values.

        Returns:
            Whether it held.
        """
        saga_name, saga_id = split_state_key(key)
        state = self._checked(condition, {**values, ":correlation_id": text(correlation_id)}, Key={"pk": text(key)})
        correlation = self._checked(
            "attribute_not_exists(pk) OR saga_id = :saga_id",
            {":saga_id": text(saga_id)},
            Key={"pk": text(correlation_key(saga_name, correlation_id))},
        )
        del state["ReturnValuesOnConditionCheckFailure"], correlation["ReturnValuesOnConditionCheckFailure"]
        try:
            await self._transact(_new_token(), {"Delete": state}, {"Delete": correlation})
        except RefusedError:
            return False
        return True

    # -- helpers -------------------------------------------------------------------------------------------

    async def _transact(self, token: str, *actions: dict[str, Any]) -> None:
        await self._driver.write("transact_write_items", ClientRequestToken=token, TransactItems=list(actions))

    def _checked(self, condition: str, values: dict[str, Any] | None, **action: Any) -> dict[str, Any]:
        return {
            "TableName": self._table,
            "ConditionExpression": condition,
            **({} if values is None else {"ExpressionAttributeValues": values}),
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            **action,
        }

    def _expiry(self, row: SagaRow) -> int | None:
        if self._ttl is None or not row.is_completed:
            return None
        return math.ceil(time.time() + self._ttl.total_seconds())


def _new_token() -> str:
    return token_hex(12)


def _now() -> dict[str, str]:
    return {"N": str(int(time.time()))}


def _may_be_reopened(row: SagaRow, expected_version: int, state: Item | None) -> bool:
    return (
        state is not None
        and not row.is_completed
        and "expires" in state
        and is_alive(state)
        and version_of(state) == expected_version
    )


def _is_other_life(state: Item | None, expected_version: int, correlation_id: str) -> bool:
    """Whether a saga was deleted and inserted again, with another correlation id, and has the expected version."""
    return (
        state is not None
        and is_alive(state)
        and version_of(state) == expected_version
        and state["correlation_id"]["S"] != correlation_id
    )


def _judge(row: SagaRow, expected_version: int, writer: str, state: Item | None, refused: RefusedError) -> None:
    """Return if the item that was found is what this very update wrote before, else raise what the refusal means."""
    actual = version_of(state) if state is not None and is_alive(state) else None
    if state is not None and state["writer"]["S"] == writer:
        return
    cause = refused.__cause__
    if refused.uncertain and actual not in (expected_version, row.version):
        raise OutcomeUnknownError(
            f"saga {row.saga_name!r} {row.saga_id!r}: the answer to an update was lost, and the saga has changed since"
        ) from cause
    raise version_conflict(
        row.saga_name, row.saga_id, expected_version=expected_version, actual_version=actual
    ) from cause
