"""What a case runs on: fresh places, the stores on them, and the author's hooks."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.lag import purged, settled
from saga_bus.store.conformance.states import MAIN, STATE_TYPES, KitState, new_state
from saga_bus.store.protocol import StoreCapabilities, capabilities_of

__all__ = [
    "ABILITIES",
    "CORE",
    "Case",
    "Hooks",
    "Kit",
    "OpenStore",
    "OpenTransaction",
    "Transaction",
    "UndeclaredError",
    "case",
    "close_store",
    "run_case",
]

T = TypeVar("T")

CORE = "core"
ABILITIES = (
    "conditional_delete",
    "query",
    "retention",
    "completed_ttl",
    "schema",
    "transactions",
    "ping",
    "processes",
)


class Transaction(Protocol):
    """An open transaction of the author's driver, for stores that declare ``transactions``."""

    @property
    def connection(self) -> Any:
        """What ``store.bind`` takes."""
        ...

    async def commit(self) -> None:
        """Commit it."""
        ...

    async def rollback(self) -> None:
        """Roll it back."""
        ...

    async def put_row(self, key: str) -> None:
        """Write a business row inside the transaction, into any table of the author's.

        Args:
            key: The row's key.
        """
        ...

    async def has_row(self, key: str) -> bool:
        """Whether a business row is there, seen from outside after the transaction has ended.

        Args:
            key: The row's key.
        """
        ...


CASE_TIMEOUT = 180  # seconds

OpenStore = Callable[[str], Any | Awaitable[Any]]
OpenTransaction = Callable[[str], AbstractAsyncContextManager[Transaction]]


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the author of a store gives to the kit.

    Args:
        open_store: Returns, or awaits to, a store on the place that a namespace names: the same namespace is
            the same data, another one is isolated. A namespace is 16 lower-case letters, digits and underscores.
        open_transaction: Opens a transaction on the place of a namespace; only for ``transactions``.
        secrets: Texts that must appear in no ``repr`` and in no error, such as the password in the URL.
    """

    open_store: OpenStore
    open_transaction: OpenTransaction | None = None
    secrets: tuple[str, ...] = ()


class UndeclaredError(Exception):
    """The store does not declare the ability that a case is about."""


@dataclass(frozen=True)
class Case:
    """One case of the kit.

    Args:
        group: The group it belongs to, such as "insert".
        name: Its name, unique in the kit.
        level: "core" or the ability that it proves.
        rule: The rule that it checks.
        function: The case itself.
    """

    group: str
    name: str
    level: str
    rule: str
    function: Callable[[Kit], Awaitable[None]]


def case(level: str = CORE) -> Callable[[Callable[[Kit], Awaitable[None]]], Case]:
    """Make a case of an async function; its module is the group, its docstring the rule.

    Args:
        level: "core" or the ability that it proves.
    """

    def make(function: Callable[[Kit], Awaitable[None]]) -> Case:
        group = function.__module__.rpartition(".")[2]
        rule = " ".join((function.__doc__ or "").split())
        return Case(group, f"{group}_{function.__name__}", level, rule, function)

    return make


class Kit:
    """The places and stores of one run of one case; it closes what it opened.

    Args:
        hooks: The author's hooks.
    """

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self._namespaces: list[str] = []
        self.namespace = self.place()
        self._opened: list[Any] = []
        self._with_schema: set[str] = set()
        self._store: Any = None

    def place(self) -> str:
        """The namespace of another place; what is created there is dropped with the rest."""
        self._namespaces.append(f"kit_{uuid.uuid4().hex[:12]}")
        return self._namespaces[-1]

    @property
    def capabilities(self) -> StoreCapabilities:
        """What the store declares."""
        return capabilities_of(self._store)

    def require(self, level: str) -> None:
        """Refuse a level that the store does not declare.

        Args:
            level: "core", which every store has, or an ability.

        Raises:
            UndeclaredError: The store does not declare it.
        """
        if level != CORE and not getattr(self.capabilities, level):
            raise UndeclaredError(level)

    async def store(self) -> Any:
        """The case's store, on the case's place; the same at every call."""
        if self._store is None:
            self._store = await self.client()
        return self._store

    async def client(self, namespace: str | None = None, *, keep: bool = True) -> Any:
        """Another store, as another client of the same place.

        Args:
            namespace: Another place.
            keep: Whether the kit closes it at the end.
        """
        namespace = namespace or self.namespace
        store = await self.bare(namespace, keep=keep)
        if namespace not in self._with_schema:
            self._with_schema.add(namespace)
            if capabilities_of(store).schema:
                await store.create_schema()
        return store

    async def bare(self, namespace: str, *, keep: bool = True) -> Any:
        """A store on a place, without making sure that its schema is there.

        Args:
            namespace: The place.
            keep: Whether the kit closes it at the end.
        """
        store = self.hooks.open_store(namespace)
        if inspect.isawaitable(store):
            store = await store
        if keep:
            self._opened.append(store)
        if hasattr(store, "register"):
            for saga_name, state_type in STATE_TYPES.items():
                store.register(saga_name, state_type)
        return store

    async def closable(self) -> Any:
        """Another client of the case's place, which the case closes itself.

        Raises:
            UndeclaredError: The stores have no ``close``, which the five operations do not ask for.
        """
        store = await self.client()
        if not hasattr(store, "close"):
            raise UndeclaredError("close")
        return store

    async def elsewhere(self) -> Any:
        """A store on another place."""
        return await self.client(self.place())

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction of the author's driver on the case's place."""
        if self.hooks.open_transaction is None:
            raise AssertionError(
                "the store declares transactions, but no open_transaction hook was given to prove them"
            )
        return self.hooks.open_transaction(self.namespace)

    async def inserted(self, correlation_id: str, note: str = "", *, saga_name: str = MAIN, **fields: Any) -> KitState:
        """Insert a new saga and return its state.

        Args:
            correlation_id: Its correlation id.
            note: A text to know the state by.
            saga_name: Its name.
            **fields: The state's other fields, its metadata among them.
        """
        state = new_state(note, **fields)
        await (await self.store()).insert(saga_name, correlation_id, state)
        return state

    async def holds(self, correlation_id: str, state: KitState, what: str, *, saga_name: str = MAIN) -> None:
        """Fail unless a state is stored, by its id and by its correlation id.

        Args:
            correlation_id: The saga's correlation id.
            state: The state that must be there.
            what: When this is checked.
            saga_name: The saga's name.
        """
        store = await self.store()
        expect.same_state(await store.get_by_id(saga_name, state.metadata.saga_id), state, f"{what}, by id")
        found = await store.get_by_correlation_id(saga_name, correlation_id)
        expect.same_state(found, state, f"{what}, by correlation id")

    async def lacks(self, correlation_id: str, saga_id: str, what: str, *, saga_name: str = MAIN) -> None:
        """Fail if anything is stored under an id or under a correlation id.

        Args:
            correlation_id: The correlation id.
            saga_id: The id.
            what: When this is checked.
            saga_name: The saga's name.
        """
        store = await self.store()
        expect.none(await store.get_by_id(saga_name, saga_id), f"{what}, by id")
        expect.none(await store.get_by_correlation_id(saga_name, correlation_id), f"{what}, by correlation id")

    async def settles(self, look: Callable[[], Awaitable[T]]) -> T:
        """Look into an index, and return what was found; repeated within the store's declared ``index_lag`` only.

        Args:
            look: Asks the store, and fails when the answer is not the expected one.
        """
        return await settled(look, self.capabilities.index_lag)

    async def sees(self, ask: Callable[[], Awaitable[object]], expected: object, what: str) -> None:
        """Fail unless a question that an index answers has the expected answer.

        Args:
            ask: Asks the store.
            expected: The answer that must come.
            what: What the answer is.
        """

        async def look() -> None:
            expect.equal(await ask(), expected, what)

        await self.settles(look)

    async def purges(self, purge: Callable[..., Awaitable[int]], number: int, what: str) -> None:
        """Fail unless a purge deletes so many sagas.

        Args:
            purge: ``delete_completed_before`` with its arguments.
            number: How many must go.
            what: What the number is.
        """
        expect.equal(await purged(purge, number, self.capabilities.index_lag), number, what)

    async def clean_up(self) -> None:
        """Drop what the kit created and close every store that it opened."""
        for namespace in self._namespaces:
            store = await self.bare(namespace)
            if capabilities_of(store).schema:
                await store.drop_schema()
        await self.close()

    async def close(self) -> None:
        """Close every store that the kit opened and keeps."""
        for store in self._opened:
            await close_store(store)


async def close_store(store: Any) -> None:
    """Close a store that knows how to be closed.

    Args:
        store: Any store.
    """
    close = getattr(store, "close", None)
    if close is not None:
        answer = close()
        if inspect.isawaitable(answer):
            await answer


async def run_case(chosen: Case, hooks: Hooks) -> None:
    """Run one case on a fresh place.

    Args:
        chosen: The case.
        hooks: The author's hooks.

    Raises:
        UndeclaredError: The store does not declare the ability that the case is about.
        AssertionError: The store breaks the rule.
    """
    kit = Kit(hooks)
    try:
        await kit.store()
        kit.require(chosen.level)
        await _in_time(chosen, kit)
    except BaseException as error:
        try:
            await kit.clean_up()
        except Exception as second:  # noqa: BLE001 - the first error is the one to report
            error.add_note(f"and the clean-up failed: {type(second).__name__}: {second}")
        raise
    await kit.clean_up()


async def _in_time(chosen: Case, kit: Kit) -> None:
    try:
        async with asyncio.timeout(CASE_TIMEOUT):
            await chosen.function(kit)
    except TimeoutError as error:
        raise AssertionError(f"the case did not end within {CASE_TIMEOUT} s: the store hangs") from error
