"""The benchmark: every store beside the raw drivers of its database, in the same run."""
