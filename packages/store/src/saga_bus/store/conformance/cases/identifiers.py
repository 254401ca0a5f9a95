"""Names and ids compare exactly."""

from __future__ import annotations

import asyncio
from itertools import chain, permutations

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.kit import Kit, case
from saga_bus.store.conformance.states import MAIN, ODD_NAMES, KitState, follow, new_state
from saga_bus.store.state import SagaMetadata

# Each group holds texts that a careless comparison takes for one another.
LOOKALIKES = {
    "case": ("order", "Order", "ORDER"),
    "case beyond ASCII": ("straße", "STRASSE", "strasse", "STRAßE"),
    "Turkish i": ("ID", "id", "\u0131d", "\u0130D"),
    "accents": ("resume", "r\u00e9sum\u00e9", "resum\u00e9"),
    "composition (NFC, NFD)": ("caf\u00e9", "cafe\u0301"),
    "compatibility (NFKC)": ("\ufb01x", "fix", "\uff46ix"),
    "trailing blanks": ("order", "order ", "order  ", "order\t", "order\n", "order\u00a0"),
    "leading blanks": ("order", " order", "\torder"),
    "characters without weight in old collations": (
        "order",
        "order\U0001f600",
        "order\u2b50",
        "\U0001f600",
        "\U0001f601",
        "\u2b50",
        "\u1200",
    ),
    "invisible characters": ("order", "or\u200bder", "or\u00adder", "\ufefforder"),
    "numbers": ("1", "01", "1.0", "1e0", "+1", "\u0661"),
    "wildcards": ("order%", "order_", "order*", "order?", "orderX"),
    "quotes": ("o'r", "o''r", "o\\'r", 'o"r', "o`r"),
    "escapes": ("a\\b", "a\\\\b", "a/b", "a%2Fb", "a%b"),
}
SEPARATORS = (":", "/", "|", "#", "\x1f", "\\", ".", " ", "-", "_", "::")
METACHARACTERS = (
    "'; DROP TABLE saga_instances; --",
    "' OR '1'='1",
    '"; SELECT 1; --',
    "x) OR (1=1",
    "${jndi:x}",
    "{{x}}",
    "$where",
    "*",
    "%",
    "_",
    "?",
    ":saga_id",
    "%(saga_id)s",
    "idx:id:x",
    "null",
    "NULL",
    "undefined",
    "true",
    "[]",
    "{}",
)


@case()
async def ids_compare_exactly(kit: Kit) -> None:
    """Ids that differ in case, accents, blanks, composition or anything else are different ids."""
    store = await kit.store()
    for group, (correlation_prefix, texts) in enumerate(LOOKALIKES.items()):
        states: dict[str, KitState] = {}
        for text in texts:
            expect.none(await store.get_by_id(MAIN, text), f"the id {text!r} before its insert ({correlation_prefix})")
            state = new_state(text, metadata=SagaMetadata.fresh(text))
            await store.insert(MAIN, f"{group} {len(states)}", state)
            states[text] = state
        for text, state in states.items():
            found = await store.get_by_id(MAIN, text)
            expect.same_state(found, state, f"the id {text!r} ({correlation_prefix})")
        first = texts[0]
        await store.delete(MAIN, first)
        for text in texts[1:]:
            found = await store.get_by_id(MAIN, text)
            expect.same_state(found, states.pop(text), f"the id {text!r} after the delete of {first!r}")
            await store.delete(MAIN, text)


@case()
async def updates_hit_exactly_one_id(kit: Kit) -> None:
    """An update changes the saga of exactly its id."""
    store = await kit.store()
    for group, (what, texts) in enumerate(LOOKALIKES.items()):
        states = [new_state(text, metadata=SagaMetadata.fresh(f"{group}{text}")) for text in texts]
        for number, state in enumerate(states):
            await store.insert(MAIN, f"{group} {number}", state)
        newer = follow(states[0], "newer")
        await store.update(MAIN, newer, 0)
        for number, state in enumerate([newer, *states[1:]]):
            await kit.holds(f"{group} {number}", state, f"after the update of one ({what})")


@case()
async def correlation_ids_compare_exactly(kit: Kit) -> None:
    """Correlation ids that differ in case, accents, blanks, composition or anything else are different."""
    store = await kit.store()
    for what, texts in LOOKALIKES.items():
        states = {}
        for text in texts:
            found = await store.get_by_correlation_id(MAIN, text)
            expect.none(found, f"the correlation id {text!r} before its insert ({what})")
            states[text] = await kit.inserted(text, text)
        for text, state in states.items():
            await kit.holds(text, state, f"the correlation id {text!r} ({what})")
            await store.delete(MAIN, state.metadata.saga_id)


@case()
async def saga_names_compare_exactly(kit: Kit) -> None:
    """Saga names compare exactly too: the same keys under each of many odd names are different sagas."""
    store = await kit.store()
    states = {}
    for name in (MAIN, *ODD_NAMES):
        await kit.lacks("order-1", "id-1", f"the name {name!r} before its insert", saga_name=name)
        state = new_state(name, metadata=SagaMetadata.fresh("id-1"))
        await store.insert(name, "order-1", state)
        states[name] = state
    for name, state in states.items():
        await kit.holds("order-1", state, f"the name {name!r}", saga_name=name)
    await store.delete(MAIN, "id-1")
    for name in ODD_NAMES:
        await kit.holds("order-1", states[name], f"the name {name!r} after a delete", saga_name=name)


@case()
async def joined_keys_do_not_collide(kit: Kit) -> None:
    """("a:b", "c") and ("a", "b:c") are different keys, whatever a store joins them with."""
    store = await kit.store()
    for name in (name for name in ODD_NAMES if name.startswith("a") and len(name) == 3):
        separator = name[1]
        left = new_state("left", metadata=SagaMetadata.fresh(f"c{separator}d"))
        right = new_state("right", metadata=SagaMetadata.fresh(f"b{separator}c{separator}d"))
        await store.insert(name, f"c{separator}d", left)
        await kit.lacks(f"b{separator}c{separator}d", right.metadata.saga_id, "the other split", saga_name="a")
        await store.insert("a", f"b{separator}c{separator}d", right)
        await kit.holds(f"c{separator}d", left, f"one split at {separator!r}", saga_name=name)
        await kit.holds(f"b{separator}c{separator}d", right, f"the other split at {separator!r}", saga_name="a")


@case()
async def separators_in_ids(kit: Kit) -> None:
    """Separators and path signs inside ids and correlation ids are just characters."""
    store = await kit.store()
    for separator in SEPARATORS:
        parts = [separator.join(order) for order in permutations(("x", "y", "z"))] + [separator, separator * 2]
        states = {part: new_state(part, metadata=SagaMetadata.fresh(part)) for part in parts}
        for part, state in states.items():
            await store.insert(MAIN, part, state)
        for part, state in states.items():
            await kit.holds(part, state, f"keys with {separator!r}")
            await store.delete(MAIN, part)


@case()
async def metacharacters_are_text(kit: Kit) -> None:
    """Signs that mean something to a query language or a driver are just characters, in every operation."""
    store = await kit.store()
    bystander = await kit.inserted("bystander", "stays")
    for text in METACHARACTERS:
        state = new_state(text, metadata=SagaMetadata.fresh(text))
        await kit.lacks(text, text, f"the keys {text!r} before the insert")
        await store.insert(MAIN, text, state)
        newer = follow(state, "newer")
        await store.update(MAIN, newer, 0)
        await kit.holds(text, newer, f"the keys {text!r}")
        await store.delete(MAIN, text)
        await kit.lacks(text, text, f"the keys {text!r} after the delete")
        await kit.holds("bystander", bystander, f"another saga after a delete of {text!r}")


@case()
async def odd_ids_at_once(kit: Kit) -> None:
    """Calls of odd ids that are made at the same time, and may leave together, each reach their own saga."""
    store = await kit.store()
    states = {
        text: new_state(text, metadata=SagaMetadata.fresh(text)) for text in chain(*LOOKALIKES.values(), METACHARACTERS)
    }

    async def each_is_there(when: str) -> None:
        by_id = await asyncio.gather(*(store.get_by_id(MAIN, text) for text in states))
        by_correlation_id = await asyncio.gather(*(store.get_by_correlation_id(MAIN, text) for text in states))
        for state, *found in zip(states.values(), by_id, by_correlation_id, strict=True):
            for one in found:
                expect.same_state(one, state, f"the keys {state.note!r} after {when} at once")

    await asyncio.gather(*(store.insert(MAIN, text, state) for text, state in states.items()))
    await each_is_there("inserts")
    states = {text: follow(state, count=state.count + 1) for text, state in states.items()}
    await asyncio.gather(*(store.update(MAIN, state, 0) for state in states.values()))
    await each_is_there("updates")
