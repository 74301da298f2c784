"""Lists: they read what they show, and leave the documents that stand beside it where they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import event
from tests.store.rooms import small_recipe

from steersman.store.store import Store


@contextlib.contextmanager
def _reading(store: Store) -> Iterator[list[str]]:
    """What is asked of the database."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            sent.append(statement)

    engine = store._database._engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_a_list_of_sets_reads_neither_their_prompts_nor_the_documents_of_their_jobs(store: Store) -> None:
    made = [
        store.sets.create(
            "ann", f"s{n}", model="m", method="lat", dimensions={"a": {}}, prompts=["a"] * n, request={"n": n}
        )
        for n in range(3)
    ]
    job = store.jobs.claim("w", 30)
    assert job is not None
    store.jobs.fail(job.id, "w", "because")
    with _reading(store) as sent:
        found, total = store.sets.list("ann", 2, 0)
        assert [store.sets.get("ann", record.id) for record in found] == found
    assert ([record.id for record in found], total) == ([made[2].id, made[1].id], 3)
    assert store.sets.get("ann", made[0].id).error == "because"
    assert len(sent) == 4  # Nothing was fetched later, row by row.
    for never in ("jobs.request", "jobs.result", "sets.prompts"):
        assert not any(never in statement for statement in sent)


def test_a_list_of_recipes_reads_no_facts(store: Store) -> None:
    for n in range(3):
        store.recipes.add("ann", small_recipe(f"r{n}"), tags=["t"])
    with _reading(store) as sent:
        found, total = store.recipes.list("ann")
        assert store.recipes.get("ann", "r1") in found
    assert total == 3
    assert not any("recipes.facts" in statement for statement in sent)
    assert len(sent) == 5
