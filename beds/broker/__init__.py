"""The workers' side: the Celery application, its tasks, its worker and how it answers."""
