"""What a ping warns about, from what the server tells."""

import pytest

from saga_bus.store import SagaStoreError
from saga_bus.store_sqlserver import _health
from saga_bus.store_sqlserver._schema import Place


class Told:
    """A session that answers the questions of a ping."""

    is_lost = has_ended = False

    def __init__(self, **answers):
        self.answers = {"_ROUND_TRIP": [(1,)], **answers}

    def read(self, statement, parameters=()):
        return next(rows for name, rows in self.answers.items() if getattr(_health, name) is statement)


def warnings(*, database=(0, 0, 0), level=2, collations=()):
    session = Told(_DATABASE=[database], _SESSION=[(level,)], _COLLATIONS=list(collations))
    return _health.warnings_about(Place("saga_instances", "dbo"), session)


def test_a_sound_database():
    columns = [("saga_id", "Latin1_General_100_BIN2"), ("state", "SQL_Latin1_General_CP1_CI_AS"), ("version", None)]
    assert warnings(collations=columns) == []
    assert warnings(collations=[("saga_id", "bbf_unicode_bin2")]) == []


def test_each_setting_that_puts_sagas_at_risk():
    assert "read-only" in warnings(database=(1, 0, 0))[0]
    assert "AUTO_CLOSE" in warnings(database=(0, 1, 0))[0]
    assert "DELAYED_DURABILITY" in warnings(database=(0, 0, 2))[0]
    assert "READ UNCOMMITTED" in warnings(level=1)[0]
    (warning,) = warnings(collations=[("correlation_id", "SQL_Latin1_General_CP1_CI_AS")])
    assert "correlation_id" in warning


@pytest.mark.parametrize("ends", [True, False])
def test_a_question_that_ends_the_callers_transaction_is_an_error(ends):
    """Babelfish undoes the whole transaction after an error that has no number of SQL Server's."""

    class Refusing(Told):
        def read(self, statement, parameters=()):
            if statement is _health._DATABASE:
                self.has_ended = ends
                raise SagaStoreError("refused")
            return super().read(statement, parameters)

    session = Refusing(_SESSION=[(1,)], _COLLATIONS=[])
    if ends:
        with pytest.raises(SagaStoreError, match="refused"):
            _health.warnings_about(Place("saga_instances", "dbo"), session)
    else:
        (warning,) = _health.warnings_about(Place("saga_instances", "dbo"), session)
        assert "READ UNCOMMITTED" in warning
