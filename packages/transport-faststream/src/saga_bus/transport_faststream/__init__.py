"""A transport for the bus on FastStream's brokers: RabbitMQ, NATS JetStream, Redis Streams and Kafka."""

from saga_bus.transport_faststream._transport import FastStreamTransport

__all__ = ["FastStreamTransport"]
