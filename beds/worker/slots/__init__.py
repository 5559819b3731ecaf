"""The pool of slots: processes that each consume the pool's queues over a connection of their own."""
