"""Recipes: what is kept comes back equal, under its name, to its owner alone; tensors are kept once and never half."""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.recipes import recipes
from tests.store.rooms import Clock, Room, at_once, small_recipe

from steersman.errors import Conflict, DataError, NotFound, RecipeError, StorageError
from steersman.steering.recipe import Recipe
from steersman.store.checks import utc_now
from steersman.store.packing import pack
from steersman.store.recipes import insert_recipe
from steersman.store.store import Store
from steersman.store.tables import RecipeRow

_ODD = [
    *("", " ", "\0", "a\0b", "\ud800", "../../etc/passwd", "a/b", "a b", "x" * 101, "x" * 1_000_000, ".hidden", "-rf"),
    *("'; DROP TABLE recipes; --", '" OR "1"="1', "ä", "日本", "a\n", "a\u202eb", "%", "%s%n", "${jndi:x}", "a:b"),
]
_few = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_few
@given(recipe=recipes())
def test_a_recipe_comes_back_equal(store: Store, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, name="drawn")
    made = store.recipes.add("ann", recipe)
    try:
        assert store.recipes.load("ann", made.id) == recipe
        assert store.recipes.load("ann", "drawn") == recipe
        assert store.recipes.get("ann", "drawn") == made
        assert (made.description, made.method, made.evidence) == (recipe.description, recipe.method, recipe.evidence)
    finally:
        store.recipes.delete("ann", made.id)


def test_a_restart_loses_nothing(room: Room, clock: Clock) -> None:
    with Store.open(room.url, room.folder, clock=clock) as store:
        made = store.recipes.add("ann", small_recipe(), tags=["b", "a", "b"])
    assert made.tags == ("a", "b")
    assert made.created_at == clock.now
    with room.open() as store:
        assert store.recipes.list("ann") == ([made], 1)
        assert store.recipes.load("ann", "cheerful") == small_recipe()


# --- names and owners


def test_a_name_is_its_owners_alone(store: Store) -> None:
    hers = store.recipes.add("ann", small_recipe())
    his = store.recipes.add("bob", small_recipe(number=2.0))
    with pytest.raises(Conflict, match="cheerful"):
        store.recipes.add("ann", small_recipe(number=3.0))
    assert store.recipes.load("ann", "cheerful") == small_recipe()
    assert store.recipes.load("bob", "cheerful") == small_recipe(number=2.0)
    for act in _by_name(store):
        with pytest.raises(NotFound):
            act("bob", hers.id)
        with pytest.raises(NotFound):
            act("eve", "cheerful")
    assert store.recipes.list("bob") == ([his], 1)
    assert store.recipes.list("eve") == ([], 0)
    store.recipes.delete("bob", "cheerful")
    assert store.recipes.get("ann", "cheerful") == hers


def _by_name(store: Store) -> list[Any]:
    return [
        store.recipes.get,
        store.recipes.load,
        store.recipes.delete,
        lambda owner, name: store.recipes.tag(owner, name, ["x"]),
    ]


def test_one_of_many_that_come_at_once_gets_the_name(store: Store) -> None:
    def add(n: int) -> bool:
        try:
            store.recipes.add("ann", small_recipe(number=1.0 + n))
        except Conflict:
            return False
        return True

    assert sum(at_once(8, add)) == 1
    assert store.recipes.list("ann")[1] == 1
    assert store.sweep() == 7


@pytest.mark.parametrize("name", [name for name in _ODD if name.strip()])
def test_a_name_that_will_not_do_is_refused_with_one_that_would(store: Store, name: str) -> None:
    with pytest.raises(DataError) as caught:
        store.recipes.add("ann", small_recipe(name))
    said = str(caught.value)
    assert said.isascii()
    assert len(said) < 500
    offered = said.split("'")[-2]
    store.recipes.add("ann", small_recipe(offered))


@_few
@given(name=st.text(st.characters(), min_size=1, max_size=120).filter(str.strip))
def test_any_name_is_kept_as_it_is_or_refused(store: Store, name: str) -> None:
    try:
        made = store.recipes.add("ann", small_recipe(name))
    except (DataError, Conflict):
        with pytest.raises(NotFound):
            store.recipes.get("bob", name)
        return
    assert made.name == name
    assert name.isascii()
    store.recipes.delete("ann", name)


@pytest.mark.parametrize("name", _ODD)
def test_an_odd_name_is_not_there(store: Store, name: str) -> None:
    made = store.recipes.add("ann", small_recipe())
    for act in _by_name(store):
        for owner in ("ann", name):
            with pytest.raises(NotFound) as caught:
                act(owner, name)
            assert len(str(caught.value)) < 1000
    assert store.recipes.list(name) == ([], 0)
    assert store.recipes.list("ann", tag=name) == ([], 0)
    assert store.recipes.get("ann", made.id) == made


def test_no_name_hides_an_id(store: Store) -> None:
    made = store.recipes.add("ann", small_recipe())
    with pytest.raises(DataError, match="id"):
        store.recipes.add("ann", small_recipe(made.id))


def test_a_recipe_that_json_cannot_hold_is_refused(room: Room, store: Store) -> None:
    for wrong in ({"x": float("nan")}, {"x": "\ud800"}):
        odd = Recipe(name="odd", edits=small_recipe().edits, data=wrong)  # type: ignore[arg-type]
        with pytest.raises(DataError):
            store.recipes.add("ann", odd)
    assert room.tensor_files() == []


# --- lists and tags


def test_lists_are_the_newest_first_in_pages_and_by_tag(store: Store, clock: Clock) -> None:
    made = []
    for n in range(5):
        clock.move(1)
        made.append(store.recipes.add("ann", small_recipe(f"r{n}"), tags=["even" if n % 2 == 0 else "odd"]))
    assert store.recipes.list("ann") == (made[::-1], 5)
    assert store.recipes.list("ann", limit=2, offset=1) == (made[::-1][1:3], 5)
    assert store.recipes.list("ann", tag="odd") == ([made[3], made[1]], 2)
    assert store.recipes.list("ann", limit=0) == ([], 5)
    assert store.recipes.list("ann", offset=10**40) == ([], 5)
    for wrong in ({"limit": -1}, {"limit": 1001}, {"offset": -1}):
        with pytest.raises(DataError):
            store.recipes.list("ann", **wrong)


def test_pages_of_recipes_of_the_same_moment_show_each_once(store: Store) -> None:
    made = {store.recipes.add("ann", small_recipe(f"r{n}")).id for n in range(7)}
    pages = [store.recipes.list("ann", limit=3, offset=offset)[0] for offset in (0, 3, 6)]
    assert sorted(record.id for page in pages for record in page) == sorted(made)


def test_tags_are_replaced_as_a_whole_or_not_at_all(store: Store) -> None:
    store.recipes.add("ann", small_recipe(), tags=["a", "b"])
    assert store.recipes.tag("ann", "cheerful", ["c", "b"]).tags == ("b", "c")
    for wrong in (["ok", "not ok"], ["x\0"], [f"t{n}" for n in range(51)]):
        with pytest.raises(DataError):
            store.recipes.tag("ann", "cheerful", wrong)
    assert store.recipes.get("ann", "cheerful").tags == ("b", "c")
    assert store.recipes.tag("ann", "cheerful", []).tags == ()


# --- tensor files


def test_the_same_tensors_are_kept_once_and_swept_with_the_last(room: Room, store: Store) -> None:
    store.recipes.add("ann", small_recipe("one"))
    store.recipes.add("bob", small_recipe("two"))
    assert len(room.tensor_files()) == 1
    store.recipes.delete("ann", "one")
    assert store.sweep() == 0
    assert store.recipes.load("bob", "two") == small_recipe("two")
    store.recipes.delete("bob", "two")
    assert store.sweep() == 1
    assert room.tensor_files() == []


def test_damaged_and_missing_tensors_are_said_and_mended_by_keeping_them_again(room: Room, store: Store) -> None:
    store.recipes.add("ann", small_recipe("one"))
    (path,) = room.tensor_files()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        store.recipes.load("ann", "one")
    path.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        store.recipes.load("ann", "one")
    path.write_bytes(data)
    store.recipes.add("ann", small_recipe("two"))
    assert store.recipes.load("ann", "one") == small_recipe("one")


def test_the_files_of_another_database_in_the_same_folder_stay(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    with Store.open(None, folder) as one, Store.open(f"sqlite:///{tmp_path / 'other.db'}", folder) as other:
        one.recipes.add("ann", small_recipe())
        other.recipes.add("ann", small_recipe())
        other.recipes.delete("ann", "cheerful")
        assert other.sweep() == 1
        assert one.recipes.load("ann", "cheerful") == small_recipe()


def test_what_an_interrupted_write_left_goes_after_an_hour(room: Room, store: Store) -> None:
    store.recipes.add("ann", small_recipe())
    (path,) = room.tensor_files()
    old, new = path.with_name(".a.1.part"), path.with_name(".b.2.part")
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert store.sweep() == 0
    assert room.tensor_files() == sorted([path, new])


def test_sweeping_never_takes_what_is_being_kept(room: Room, store: Store) -> None:
    def work(n: int) -> None:
        for i in range(12):
            if n == 0:
                store.sweep()
            else:  # The same few tensors come and go.
                store.recipes.add("ann", small_recipe(f"r{n}-{i}", number=1.0 + i % 3))
                assert store.recipes.load("ann", f"r{n}-{i}").edits == small_recipe(number=1.0 + i % 3).edits
                store.recipes.delete("ann", f"r{n}-{i}")

    at_once(4, work)
    store.sweep()
    assert room.tensor_files() == []


def test_a_sweep_waits_for_what_is_not_committed_yet(store: Store) -> None:
    with ThreadPoolExecutor(1) as pool:
        with store._database.holding_tensors() as session:
            insert_recipe(session, store._blobs, utc_now(), "ann", "cheerful", pack(small_recipe()))
            swept = pool.submit(store.sweep)
            with pytest.raises(TimeoutError):
                swept.result(0.3)
        assert swept.result(30) == 0
    assert store.recipes.load("ann", "cheerful") == small_recipe()


def test_loading_what_is_deleted_meanwhile_is_not_found_or_whole(store: Store) -> None:
    def work(n: int) -> None:
        for i in range(20):
            try:
                if n == 0:
                    store.recipes.add("ann", small_recipe())
                    store.recipes.delete("ann", "cheerful")
                    store.sweep()
                else:
                    assert store.recipes.load("ann", "cheerful") == small_recipe(), i
            except NotFound:
                assert n

    at_once(3, work)


def test_a_recipe_of_a_newer_steersman_is_said(room: Room, store: Store) -> None:
    made = store.recipes.add("ann", small_recipe())
    with store._database.writing() as session:
        row = session.get_one(RecipeRow, made.id)
        row.facts = row.facts.replace('"steersman_recipe":1', '"steersman_recipe":2')
    with pytest.raises(RecipeError, match="up to date"):
        store.recipes.load("ann", "cheerful")
