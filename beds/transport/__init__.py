"""RabbitMQ: the topology, the rights of users, and a connection that publishes and receives replies."""
