"""``hatch run conformance``: the kit's report on our own stores, each on a database that is started for it."""
