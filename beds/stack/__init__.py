"""RabbitMQ, MariaDB and MongoDB for a machine without containers: private, on loopback, under `.beds/`."""
