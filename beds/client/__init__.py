"""The client: publishes events and waits for replies. Imports no driver and no Celery."""
