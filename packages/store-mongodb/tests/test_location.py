"""URLs and names."""

from __future__ import annotations

import pytest
from pymongo import AsyncMongoClient, MongoClient

from saga_bus.store import InvalidSagaError, open_store
from saga_bus.store_mongodb import MongoSagaStore
from saga_bus.store_mongodb._location import parsed


@pytest.mark.parametrize(
    ("url", "shown", "database"),
    [
        ("mongodb://localhost/shop", "mongodb://localhost/shop", "shop"),
        ("mongodb://localhost:27017", "mongodb://localhost:27017", None),
        ("mongodb://localhost/?replicaSet=rs0", "mongodb://localhost/", None),
        (
            "mongodb://bob:s3cret@a:1,b:2,c:3/shop?replicaSet=rs0&tlsCertificateKeyFilePassword=s3cret&tls=true",
            "mongodb://bob@a:1,b:2,c:3/shop",
            "shop",
        ),
        ("mongodb://b%40b:s%2Fcret@[::1]:27017/sh%2Dop", "mongodb://b%40b@[::1]:27017/sh%2Dop", "sh-op"),
        ("mongodb+srv://bob:s3cret@cluster.example.net/shop", "mongodb+srv://bob@cluster.example.net/shop", "shop"),
    ],
)
def test_what_a_url_says(url, shown, database):
    location = parsed(url)
    assert (location.shown, location.database) == (shown, database)


def test_no_repr_shows_a_secret_or_an_option():
    url = (
        "mongodb://bob:s3cret@localhost/shop?authMechanismProperties=AWS_SESSION_TOKEN:s3cret&authMechanism=MONGODB-AWS"
    )
    assert repr(MongoSagaStore(url)) == (
        "MongoSagaStore('mongodb://bob@localhost/shop', database='shop', collection='saga_instances')"
    )
    assert "s3cret" not in repr(MongoSagaStore(client=AsyncMongoClient(url)))


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://bob:s3/cret@localhost/shop",
        "mongodb://bob:s3cret@localhost/shop?retryWrites=s3cret",
        "mongodb://bob:s3cret@localhost:port/shop",
        "mongodb://bob:s3cret@/shop",
        "mongodb+srv://bob:s3cret@one.example.net,two.example.net/shop",
        "mongodb+srv://bob:s3cret@one.example.net:27017/shop",
        "postgresql://bob:s3cret@localhost/shop",
        "mongodb:bob:s3cret",
        b"mongodb://localhost/shop",
        7,
    ],
)
def test_bad_urls_are_refused_without_showing_them(url):
    with pytest.raises(InvalidSagaError) as caught:
        MongoSagaStore(url)
    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_database_is_named_once_or_more():
    assert "database='shop'" in repr(MongoSagaStore("mongodb://localhost/shop"))
    assert "database='other'" in repr(MongoSagaStore("mongodb://localhost/shop", database="other"))
    assert "database='shop'" in repr(MongoSagaStore(client=AsyncMongoClient("mongodb://localhost/shop")))
    for options in ({"url": "mongodb://localhost"}, {"client": AsyncMongoClient("mongodb://localhost")}):
        with pytest.raises(InvalidSagaError, match="name a database"):
            MongoSagaStore(**options)


def test_exactly_one_of_a_url_and_an_async_client():
    client = AsyncMongoClient("mongodb://localhost/shop")
    for options in ({}, {"url": "mongodb://localhost/shop", "client": client}):
        with pytest.raises(InvalidSagaError, match="either a URL or a client"):
            MongoSagaStore(**options)
    blocking = MongoClient("mongodb://localhost/shop", connect=False)
    with blocking, pytest.raises(InvalidSagaError, match="AsyncMongoClient, not MongoClient"):
        MongoSagaStore(client=blocking)


@pytest.mark.parametrize(
    ("database", "collection"),
    [
        ("", "x"),
        ("a b", "x"),
        ("a.b", "x"),
        ("a" * 64, "x"),
        ("a\x00", "x"),
        (7, "x"),
        ("a", ""),
        ("a", "x$y"),
        ("a", "system.x"),
        ("a", ".x"),
        ("a", "x."),
        ("a", "x..y"),
        ("a", "x" * 254),
        ("a", "x\x00"),
        ("a", "saga_bus_schema"),
    ],
)
def test_bad_names_are_refused(database, collection):
    with pytest.raises(InvalidSagaError):
        MongoSagaStore("mongodb://localhost/shop", database=database, collection=collection)


def test_writes_without_an_answer_are_refused():
    for options in (
        {"url": "mongodb://localhost/shop?w=0"},
        {"client": AsyncMongoClient("mongodb://localhost/shop", w=0)},
    ):
        with pytest.raises(InvalidSagaError, match="w=0"):
            MongoSagaStore(**options)


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv", "MongoDB"])
def test_open_store_finds_it(scheme):
    assert isinstance(open_store(f"{scheme}://cluster.example.net/shop"), MongoSagaStore)
