"""Servers in containers, where Docker answers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from providers.errors import UnavailableError

__all__ = ["container", "docker_answers"]


def docker_answers() -> bool:
    """Whether there is a Docker that can run containers."""
    if shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@contextmanager
def container(
    image: str, port: int, *, command: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Have a container up for a while; yields the port of loopback that its port is published on.

    Args:
        image: The image.
        port: The port inside.
        command: The command, instead of the image's own.
        environment: Environment variables, by name.

    Raises:
        UnavailableError: Docker cannot run it.
    """
    # Imported late: it looks for Docker's settings when it is.
    from docker.errors import DockerException  # noqa: PLC0415
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415

    try:
        server = DockerContainer(image, command=list(command) or None, env=dict(environment or {}))
    except DockerException as error:
        raise UnavailableError(f"Docker does not answer: {error}") from error
    server.ports = {f"{port}/tcp": ("127.0.0.1",)}  # on loopback only, which with_exposed_ports() cannot say
    try:
        try:
            server.start()
        except DockerException as error:
            raise UnavailableError(f"Docker cannot run {image}: {error}") from error
        yield server.get_exposed_port(port)
    finally:
        server.stop()
