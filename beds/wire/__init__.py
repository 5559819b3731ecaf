"""The wire format: messages, headers, replies, routes, and the codec of values. No I/O."""
