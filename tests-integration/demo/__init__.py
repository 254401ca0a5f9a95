"""The demo: worker processes race on the same sagas, one is killed, and nothing may get lost."""
