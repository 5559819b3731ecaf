"""The workers' logic without Celery: execution of events, tickets, dead events, audit, records and metrics."""
