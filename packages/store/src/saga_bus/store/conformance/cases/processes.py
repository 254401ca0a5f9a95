"""Several processes on the same sagas."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import multiprocessing
import pickle
import sys
from types import ModuleType
from typing import Any

import msgspec

from saga_bus.store.conformance import expect
from saga_bus.store.conformance.cases.concurrency import increment
from saga_bus.store.conformance.kit import Hooks, Kit, case
from saga_bus.store.conformance.states import MAIN, new_state
from saga_bus.store.errors import DuplicateSagaError

PROCESSES = 3
TURNS = 15
RACES = 5
PATIENCE = 60.0  # seconds for a process that starts an interpreter and does some hundred operations


class _Luggage(msgspec.Struct, frozen=True):
    """The hooks on their way to another process, with the files of the modules that define them."""

    hooks: bytes
    modules: tuple[tuple[str, str], ...]

    @classmethod
    def pack(cls, hooks: Hooks) -> _Luggage:
        names = {
            name
            for hook in (hooks.open_store, hooks.open_transaction)
            for name in (
                getattr(hook, "__module__", None),
                getattr(type(getattr(hook, "__self__", None)), "__module__", None),
            )
        }
        files = ((name, getattr(sys.modules.get(name or ""), "__file__", None)) for name in sorted(filter(None, names)))
        return cls(pickle.dumps(hooks), tuple((name, file) for name, file in files if file is not None))

    def unpack(self) -> Hooks:
        for name, file in self.modules:
            _import(name, file)
        hooks: Hooks = pickle.loads(self.hooks)  # noqa: S301 - the parent's own
        return hooks


def _import(name: str, file: str) -> None:
    """Import a module by its name, or from its file where the name is only pytest's."""
    if name in sys.modules or name == "__main__":
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise
        parents = name.split(".")[:-1]
        for length in range(1, len(parents) + 1):  # pickle imports them too, though they are folders of tests
            sys.modules.setdefault(".".join(parents[:length]), ModuleType(parents[length - 1]))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def _work(luggage: _Luggage, namespace: str, number: int, answers: Any) -> None:
    try:
        answers.put((number, asyncio.run(_in_process(luggage.unpack(), namespace, number))))
    except BaseException as error:  # the parent raises it
        answers.put((number, f"{type(error).__name__}: {error}"))
        raise


async def _in_process(hooks: Hooks, namespace: str, number: int) -> list[int]:
    """Increment the shared sagas and race for new ones; the races that this process won."""
    kit = Kit(hooks)
    store = await kit.bare(namespace)
    won = []
    for race in range(RACES):
        try:
            await store.insert(MAIN, f"race-{race}", new_state(str(number)))
        except DuplicateSagaError:
            pass
        else:
            won.append(race)
    for _ in range(TURNS):
        await asyncio.gather(increment(store, "shared-1"), increment(store, "shared-2"))
    await kit.close()
    return won


@case("processes")
async def share_the_sagas(kit: Kit) -> None:
    """Increments by several processes add up, and of their inserts of one correlation id exactly one succeeds."""
    states = [await kit.inserted("shared-1"), await kit.inserted("shared-2")]
    try:
        luggage = _Luggage.pack(kit.hooks)
    except Exception as error:
        raise AssertionError(
            "the store declares processes, but open_store cannot be sent to another process; make it a function of a "
            f"module, or a method of an object that can be pickled: {error}"
        ) from error
    results = await asyncio.to_thread(_run_processes, luggage, kit.namespace)
    failures = {number: result for number, result in results.items() if isinstance(result, str)}
    expect.equal(failures, {}, "the errors of the processes")
    winners = [race for won in results.values() for race in won]
    expect.equal(sorted(winners), list(range(RACES)), "the races that some process says it won")
    store = await kit.store()
    for state in states:
        found = await store.get_by_id(MAIN, state.metadata.saga_id)
        what = f"after {PROCESSES} processes of {TURNS} increments"
        expect.equal((found.count, found.metadata.version), (PROCESSES * TURNS,) * 2, f"the count and version {what}")


def _run_processes(luggage: _Luggage, namespace: str) -> dict[int, Any]:
    # "spawn" everywhere: a forked child would inherit the parent's connections.
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(luggage, namespace, number, answers), daemon=True)
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.terminate()
            process.join()
    results: dict[int, Any] = dict.fromkeys(range(PROCESSES), "no answer: it died or took too long")
    while not answers.empty():
        number, result = answers.get()
        results[number] = result
    answers.close()
    for process in processes:
        process.close()
    return results
