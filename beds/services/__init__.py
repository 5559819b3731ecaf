"""What the brokers do with an event: find the adapter, call the verb, answer."""
