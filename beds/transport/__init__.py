"""RabbitMQ: the topology, the codec, and one connection that publishes and takes replies."""
