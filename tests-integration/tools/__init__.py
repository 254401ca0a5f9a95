"""What `hatch run build` and `hatch run types` run."""
